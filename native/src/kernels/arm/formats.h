/* The quantized types as 64-bit Arm code sees them: how 32 weights become signed bytes. A
 * new type is a case in each of the functions below and in scales.h; everything that
 * multiplies is built on them.
 *
 * All is static and inlined where dtype is a constant, so that it folds away: every
 * instruction set compiles its own copy. To be included after INLINE is defined.
 */
#ifndef PE_ARM_FORMATS_H
#define PE_ARM_FORMATS_H

#include <arm_neon.h>

#include "pe_kernels.h"

#define UNITS 8  // of a super-block

INLINE bool has_two_scales(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q2_K || dtype == PE_DTYPE_Q3_K || dtype == PE_DTYPE_Q6_K;
}

INLINE bool has_min(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q4_1 || dtype == PE_DTYPE_Q5_1 || dtype == PE_DTYPE_Q2_K ||
           dtype == PE_DTYPE_Q4_K || dtype == PE_DTYPE_Q5_K;
}

/* The largest magnitude of a type's integers. */
INLINE int limit_of(pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q8_0:
    case PE_DTYPE_IQ4_NL:
    case PE_DTYPE_IQ4_XS: return 128;
    default: return 32;
    }
}

/* The block that holds unit i_unit of a row. */
INLINE const uint8_t *block_of(const uint8_t *row, size_t i_unit, pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return row + i_unit * sizeof(pe_block_q4_0);
    case PE_DTYPE_Q4_1: return row + i_unit * sizeof(pe_block_q4_1);
    case PE_DTYPE_Q5_0: return row + i_unit * sizeof(pe_block_q5_0);
    case PE_DTYPE_Q5_1: return row + i_unit * sizeof(pe_block_q5_1);
    case PE_DTYPE_Q8_0: return row + i_unit * sizeof(pe_block_q8_0);
    case PE_DTYPE_IQ4_NL: return row + i_unit * sizeof(pe_block_iq4_nl);
    case PE_DTYPE_MXFP4: return row + i_unit * sizeof(pe_block_mxfp4);
    case PE_DTYPE_Q2_K: return row + i_unit / UNITS * sizeof(pe_block_q2_k);
    case PE_DTYPE_Q3_K: return row + i_unit / UNITS * sizeof(pe_block_q3_k);
    case PE_DTYPE_Q4_K: return row + i_unit / UNITS * sizeof(pe_block_q4_k);
    case PE_DTYPE_Q5_K: return row + i_unit / UNITS * sizeof(pe_block_q5_k);
    case PE_DTYPE_IQ4_XS: return row + i_unit / UNITS * sizeof(pe_block_iq4_xs);
    default: return row + i_unit / UNITS * sizeof(pe_block_q6_k);
    }
}

/* ---- integers --------------------------------------------------------- */

/* Bytes shifted right by a count from 0 to 7, masked. */
INLINE uint8x16_t bits(const uint8_t *p, size_t shift, uint8_t mask) {
    if (__builtin_constant_p(shift) && shift == 4 && mask == 15) {
        return vshrq_n_u8(vld1q_u8(p), 4);  // the mask is of no use
    }
    return vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)-(int)shift)), vdupq_n_u8(mask));
}

/* Bits 16 half .. 16 half + 15 of four bytes as 16 in each byte. */
INLINE uint8x16_t spread_bits(const uint8_t *p, size_t half) {
    const uint8x16_t bytes = vcombine_u8(vdup_n_u8(p[2 * half]), vdup_n_u8(p[2 * half + 1]));
    const uint8x16_t mask = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    return vandq_u8(vtstq_u8(bytes, mask), vdupq_n_u8(16));
}

INLINE int8x16_t minus(uint8x16_t q, int offset) {
    return vsubq_s8(vreinterpretq_s8_u8(q), vdupq_n_s8((int8_t)offset));
}

INLINE int8x16_t look_up(uint8x16_t q, pe_dtype dtype) {
    static const int8_t iq4[16] = {PE_IQ4_VALUES};
    static const int8_t mxfp4[16] = {PE_MXFP4_VALUES};
    return vqtbl1q_s8(vld1q_s8(dtype == PE_DTYPE_MXFP4 ? mxfp4 : iq4), q);
}

/* 32 weights: unit u (below 8) of a block. */
INLINE void expand(int8x16_t *out, const uint8_t *block, size_t u, pe_dtype dtype) {
#pragma GCC unroll 2
    for (size_t h = 0; h < 2; h++) {
        const size_t nibble = 4 * h;  // low nibbles first, in blocks of 32
        switch (dtype) {
        case PE_DTYPE_Q4_0: out[h] = minus(bits(block + 2, nibble, 15), 8); break;
        case PE_DTYPE_Q4_1: out[h] = minus(bits(block + 4, nibble, 15), 0); break;
        case PE_DTYPE_Q5_0:
            out[h] = minus(vorrq_u8(bits(block + offsetof(pe_block_q5_0, low), nibble, 15),
                                    spread_bits(block + offsetof(pe_block_q5_0, high), h)),
                           16);
            break;
        case PE_DTYPE_Q5_1:
            out[h] = minus(vorrq_u8(bits(block + offsetof(pe_block_q5_1, low), nibble, 15),
                                    spread_bits(block + offsetof(pe_block_q5_1, high), h)),
                           0);
            break;
        case PE_DTYPE_Q8_0: out[h] = vld1q_s8((const int8_t *)block + 2 + 16 * h); break;
        case PE_DTYPE_IQ4_NL: out[h] = look_up(bits(block + 2, nibble, 15), dtype); break;
        case PE_DTYPE_MXFP4: out[h] = look_up(bits(block + 1, nibble, 15), dtype); break;
        case PE_DTYPE_IQ4_XS:
            out[h] =
                look_up(bits(block + offsetof(pe_block_iq4_xs, q) + 16 * u, nibble, 15), dtype);
            break;
        case PE_DTYPE_Q2_K:
            out[h] = minus(
                bits(block + offsetof(pe_block_q2_k, q) + 32 * (u / 4) + 16 * h, 2 * (u % 4), 3),
                0);
            break;
        case PE_DTYPE_Q3_K: {
            const uint8x16_t low =
                bits(block + offsetof(pe_block_q3_k, low) + 32 * (u / 4) + 16 * h, 2 * (u % 4), 3);
            const uint8x16_t high = bits(block + 16 * h, u, 1);
            out[h] = minus(vorrq_u8(low, vshlq_n_u8(high, 2)), 4);
            break;
        }
        case PE_DTYPE_Q4_K:
            out[h] = minus(
                bits(block + offsetof(pe_block_q4_k, q) + 32 * (u / 2) + 16 * h, 4 * (u % 2), 15),
                0);
            break;
        case PE_DTYPE_Q5_K: {
            const uint8x16_t low =
                bits(block + offsetof(pe_block_q5_k, low) + 32 * (u / 2) + 16 * h, 4 * (u % 2), 15);
            const uint8x16_t high = bits(block + offsetof(pe_block_q5_k, high) + 16 * h, u, 1);
            out[h] = minus(vorrq_u8(low, vshlq_n_u8(high, 4)), 0);
            break;
        }
        default: {  // Q6_K
            const uint8x16_t low =
                bits(block + 64 * (u / 4) + 32 * (u % 2) + 16 * h, 4 * (u % 4 / 2), 15);
            const uint8x16_t high =
                bits(block + offsetof(pe_block_q6_k, high) + 32 * (u / 4) + 16 * h, 2 * (u % 4), 3);
            out[h] = minus(vorrq_u8(low, vshlq_n_u8(high, 4)), 32);
            break;
        }
        }
    }
}

#endif
