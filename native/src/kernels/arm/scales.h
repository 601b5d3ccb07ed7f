/* Scales and minimums of four rows side by side, up to eight units at once: a super-block's
 * are unpacked together. A new type is a case here as in formats.h.
 */
#ifndef PE_ARM_SCALES_H
#define PE_ARM_SCALES_H

#include "formats.h"

INLINE bool has_super_blocks(pe_dtype dtype) {
    return has_two_scales(dtype) || dtype == PE_DTYPE_Q4_K || dtype == PE_DTYPE_Q5_K ||
           dtype == PE_DTYPE_IQ4_XS;
}

INLINE float load_f16(const void *p) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_dup_u16(p))), 0);
}

/* An fp16 number of each of four blocks, some bytes behind its beginning. */
INLINE float32x4_t load_four_f16(const uint8_t *const *blocks, size_t at) {
    uint16x4_t half = vld1_dup_u16((const void *)(blocks[0] + at));
    half = vld1_lane_u16((const void *)(blocks[1] + at), half, 1);
    half = vld1_lane_u16((const void *)(blocks[2] + at), half, 2);
    half = vld1_lane_u16((const void *)(blocks[3] + at), half, 3);
    return vcvt_f32_f16(vreinterpret_f16_u16(half));
}

/* d times 4 n_fours integers; exact. */
INLINE void scale_each(float32x4_t *out, int8x16_t q, float d, size_t n_fours) {
#pragma GCC unroll 4
    for (size_t i = 0; i < n_fours; i++) {
        const int16x8_t eight = vmovl_s8(i < 2 ? vget_low_s8(q) : vget_high_s8(q));
        const int32x4_t four = vmovl_s16(i % 2 == 0 ? vget_low_s16(eight) : vget_high_s16(eight));
        out[i] = vmulq_n_f32(vcvtq_f32_s32(four), d);
    }
}

INLINE int8x16_t eight_bytes(uint64_t bytes) {
    return vcombine_s8(vcreate_s8(bytes), vdup_n_s8(0));
}

/* All scales of a super-block, and its minimums, in the order of the weights. */
INLINE void super_block_scales(float32x4_t *d, float32x4_t *m, const uint8_t *block,
                               pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q2_K: {
        const uint8x16_t q = vld1q_u8(block);
        scale_each(d, vreinterpretq_s8_u8(vandq_u8(q, vdupq_n_u8(15))),
                   load_f16(block + offsetof(pe_block_q2_k, d)), 4);
        scale_each(m, vreinterpretq_s8_u8(vshrq_n_u8(q, 4)),
                   -load_f16(block + offsetof(pe_block_q2_k, dmin)), 4);
        break;
    }
    case PE_DTYPE_Q3_K: {
        static const int8_t shifts[16] = {0,  0,  0,  0,  -2, -2, -2, -2,
                                          -4, -4, -4, -4, -6, -6, -6, -6};
        const uint8_t *scale = block + offsetof(pe_block_q3_k, scale);
        uint32_t four;
        memcpy(&four, scale + 8, sizeof four);
        const uint8x8_t low = vld1_u8(scale);
        const uint8x16_t nibbles = vcombine_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8(low, 4));
        const uint8x16_t pairs = vandq_u8(
            vshlq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), vld1q_s8(shifts)), vdupq_n_u8(3));
        scale_each(d, minus(vorrq_u8(nibbles, vshlq_n_u8(pairs, 4)), 32),
                   load_f16(block + offsetof(pe_block_q3_k, d)), 4);
        break;
    }
    case PE_DTYPE_Q4_K:
    case PE_DTYPE_Q5_K: {  // which begin alike
        uint32_t w[3];
        memcpy(w, block + offsetof(pe_block_q4_k, scale), sizeof w);
        const uint32_t scale_high = (w[2] & 0x0f0f0f0fu) | (w[0] >> 2 & 0x30303030u);
        const uint32_t min_high = (w[2] >> 4 & 0x0f0f0f0fu) | (w[1] >> 2 & 0x30303030u);
        scale_each(d, eight_bytes((w[0] & 0x3f3f3f3fu) | (uint64_t)scale_high << 32),
                   load_f16(block), 2);
        scale_each(m, eight_bytes((w[1] & 0x3f3f3f3fu) | (uint64_t)min_high << 32),
                   -load_f16(block + offsetof(pe_block_q4_k, dmin)), 2);
        break;
    }
    case PE_DTYPE_IQ4_XS: {
        static const int8_t shifts[8] = {0, -2, -4, -6, 0, -2, -4, -6};
        const pe_block_iq4_xs *b = (const void *)block;
        uint32_t four;
        memcpy(&four, b->scale_low, sizeof four);
        const uint8x8_t packed = vcreate_u8(four);
        const uint8x8_t nibbles = vzip1_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8(packed, 4));
        const uint64_t high = (b->scale_high & 0xffu) * (uint64_t)0x01010101u |
                              (uint64_t)((b->scale_high >> 8) * 0x01010101u) << 32;
        const uint8x8_t pairs = vand_u8(vshl_u8(vcreate_u8(high), vld1_s8(shifts)), vdup_n_u8(3));
        const uint8x8_t six = vorr_u8(nibbles, vshl_n_u8(pairs, 4));
        scale_each(d, minus(vcombine_u8(six, six), 32), load_f16(block), 2);
        break;
    }
    default:  // Q6_K
        scale_each(d, vld1q_s8((const int8_t *)block + offsetof(pe_block_q6_k, scale)),
                   load_f16(block + offsetof(pe_block_q6_k, d)), 4);
        break;
    }
}

/* Four numbers of each of four rows become four rows of each number, 'stride' floats apart. */
INLINE void store_transposed(float *out, size_t stride, float32x4_t r0, float32x4_t r1,
                             float32x4_t r2, float32x4_t r3) {
    const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1));
    const float64x2_t odd01 = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));
    const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
    const float64x2_t odd23 = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
    vst1q_f32(out, vreinterpretq_f32_f64(vtrn1q_f64(even01, even23)));
    vst1q_f32(out + stride, vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23)));
    vst1q_f32(out + 2 * stride, vreinterpretq_f32_f64(vtrn2q_f64(even01, even23)));
    vst1q_f32(out + 3 * stride, vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23)));
}

/* The scales of n_units units of four rows from first_unit on, and the minimums of types with
 * them: those of half h of unit u at (2 u + h) * stride floats, h = 0 for types with one.
 * For types of super-blocks first_unit and n_units are a multiple of UNITS and UNITS. */
INLINE void scales_of_four(float *d, float *m, size_t stride, const uint8_t *const *rows,
                           size_t first_unit, size_t n_units, pe_dtype dtype) {
    if (has_super_blocks(dtype)) {
        const size_t n_fours = has_two_scales(dtype) ? 4 : 2;
        const size_t step = has_two_scales(dtype) ? stride : 2 * stride;
        float32x4_t v[4][4];
        float32x4_t w[4][4];
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; r++) {
            super_block_scales(v[r], w[r], block_of(rows[r], first_unit, dtype), dtype);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < n_fours; i++) {
            store_transposed(d + 4 * i * step, step, v[0][i], v[1][i], v[2][i], v[3][i]);
            if (has_min(dtype)) {
                store_transposed(m + 4 * i * step, step, w[0][i], w[1][i], w[2][i], w[3][i]);
            }
        }
        return;
    }
    for (size_t u = 0; u < n_units; u++) {
        const uint8_t *blocks[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; r++) {
            blocks[r] = block_of(rows[r], first_unit + u, dtype);
        }
        if (dtype == PE_DTYPE_MXFP4) {
            for (size_t r = 0; r < 4; r++) {
                d[2 * u * stride + r] = pe_e8m0_half_to_f32(blocks[r][0]);
            }
            continue;
        }
        vst1q_f32(d + 2 * u * stride, load_four_f16(blocks, 0));
        if (has_min(dtype)) {
            vst1q_f32(m + 2 * u * stride, load_four_f16(blocks, 2));
        }
    }
}

#endif
