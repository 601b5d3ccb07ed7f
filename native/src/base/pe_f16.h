/* Half-precision and bfloat16 numbers as bits, and their conversions.
 *
 * Every conversion equals what the F16C and NEON instructions give, bit for bit,
 * NaN payloads included: widening is exact, narrowing rounds to nearest even.
 */
#ifndef PE_F16_H
#define PE_F16_H

#include "pe_base.h"

typedef uint16_t pe_f16;
typedef uint16_t pe_bf16;

static inline float pe_f16_to_f32(pe_f16 h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity, or NaN made quiet
        const uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0;
        return pe_f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | quiet);
    }
    if (magnitude < 0x0400u) {  // subnormal: a multiple of 2^-24
        const float value = (float)magnitude * 0x1p-24f;
        return pe_f32_from_bits(sign | pe_f32_bits(value));
    }
    return pe_f32_from_bits(sign | ((magnitude << 13) + (112u << 23)));  // bias 15 -> 127
}

static inline pe_f16 pe_f16_from_f32(float x) {
    const uint32_t bits = pe_f32_bits(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t h;
    if (magnitude > 0x7f800000u) {
        h = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN, made quiet
    } else if (magnitude >= 0x477ff000u) {
        h = 0x7c00u;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14: the spacing of floats at 0.5 is 2^-24, that of subnormal halves.
        h = pe_f32_bits(pe_f32_from_bits(magnitude) + 0.5f) - pe_f32_bits(0.5f);
    } else {
        const uint32_t odd = (magnitude >> 13) & 1u;
        h = ((magnitude + 0xfffu + odd) >> 13) - (112u << 10);
    }
    return (pe_f16)(sign | h);
}

static inline float pe_bf16_to_f32(pe_bf16 h) {
    return pe_f32_from_bits((uint32_t)h << 16);
}

static inline pe_bf16 pe_bf16_from_f32(float x) {
    const uint32_t bits = pe_f32_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (pe_bf16)((bits >> 16) | 0x40u);  // NaN, made quiet
    }
    return (pe_bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Half of the OCP E8M0 scale 2^(e - 127): 2^(e - 128), subnormal for e below 2. */
static inline float pe_e8m0_half_to_f32(uint8_t e) {
    return pe_f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

#endif
