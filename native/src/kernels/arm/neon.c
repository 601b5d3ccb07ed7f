/* Kernels for every 64-bit Arm: four rows, or four positions, in lanes.
 *
 * Each gives the bits of its namesake in scalar.c; the order of its float
 * operations is argued there and in pe_kernels.h, not again here.
 */
#include "pe_kernels.h"

#if defined(__aarch64__)

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

#include "rows.h"

/* Floats per register, and registers of the virtual lanes. */
#define WIDTH 4
#define LANE_REGISTERS (PE_LANES / WIDTH)

/* ---- shared ----------------------------------------------------------- */

INLINE float32x4_t exp_f32x4(float32x4_t x) {
    const float32x4_t magic = vdupq_n_f32(PE_EXP_MAGIC);
    // These give NaN when either operand is: x stays NaN.
    x = vmaxq_f32(x, vdupq_n_f32(PE_EXP_MIN));
    x = vminq_f32(x, vdupq_n_f32(PE_EXP_MAX));
    const float32x4_t t = vfmaq_f32(magic, x, vdupq_n_f32(PE_EXP_LOG2E));
    const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t), vreinterpretq_s32_f32(magic));
    const float32x4_t n_f32 = vsubq_f32(t, magic);
    float32x4_t r = vfmaq_f32(x, n_f32, vdupq_n_f32(-PE_EXP_LN2_HI));
    r = vfmaq_f32(r, n_f32, vdupq_n_f32(-PE_EXP_LN2_LO));
    float32x4_t p = vdupq_n_f32(PE_EXP_P0);
    p = vfmaq_f32(vdupq_n_f32(PE_EXP_P1), p, r);
    p = vfmaq_f32(vdupq_n_f32(PE_EXP_P2), p, r);
    p = vfmaq_f32(vdupq_n_f32(PE_EXP_P3), p, r);
    p = vfmaq_f32(vdupq_n_f32(PE_EXP_P4), p, r);
    p = vfmaq_f32(vdupq_n_f32(PE_EXP_P5), p, r);
    p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    const int32x4_t scale = vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(scale));
}

/* ---- activations ------------------------------------------------------ */

static void quantize_acts_neon(pe_act_block *out, const float *x, size_t n) {
    for (size_t b = 0; b < n / PE_BLOCK; b++, x += PE_BLOCK) {
        float32x4_t v[8];
        uint32x4_t max_u32x4 = vdupq_n_u32(0);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            v[i] = vld1q_f32(x + WIDTH * i);
            const uint32x4_t bits = vreinterpretq_u32_f32(v[i]);
            max_u32x4 = vmaxq_u32(max_u32x4, vandq_u32(bits, vdupq_n_u32(0x7fffffffu)));
        }
        const uint32_t max_bits = vmaxvq_u32(max_u32x4);
        if (max_bits >= 0x7f800000u) {
            out[b] = (pe_act_block){.d = NAN};
            continue;
        }
        const float max = pe_f32_from_bits(max_bits);
        const float inverse = max >= 0x1p-119f ? 127.0f / max : 0.0f;
        int32x4_t q[8];
        int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            q[i] = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse));  // to nearest even
            sum[i / 4] = vaddq_s32(sum[i / 4], q[i]);
        }
        out[b].d = max / 127.0f;
        out[b].half[0] = (float)vaddvq_s32(sum[0]);
        out[b].half[1] = (float)vaddvq_s32(sum[1]);
        out[b].sum = out[b].half[0] + out[b].half[1];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            const int16x8_t eight = vcombine_s16(vmovn_s32(q[2 * i]), vmovn_s32(q[2 * i + 1]));
            vst1_s8(out[b].q + 8 * i, vmovn_s16(eight));
        }
    }
}

/* ---- products of quantized weights ------------------------------------ */

/* Four lanes of two products each, eight when added up, stay within 16 bits for weights
 * up to 32: 8 * 32 * 127 < 2^15. Larger ones are widened after two. */
INLINE int32x4_t dot_16(int8x16_t w, int8x16_t x, int limit) {
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    if (limit <= 32) {
        return vpaddlq_s16(vmlal_high_s8(low, w, x));
    }
    return vpadalq_s16(vpaddlq_s16(low), vmull_high_s8(w, x));
}

INLINE void dot_rows(int32x4_t *sums, const row_units *rows, const int8x16_t *x, pe_dtype dtype) {
    int32x4_t v[2][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[0][r] = dot_16(rows->w[r][0], x[0], limit_of(dtype));
        v[1][r] = dot_16(rows->w[r][1], x[1], limit_of(dtype));
        if (!has_two_scales(dtype)) {
            v[0][r] = vaddq_s32(v[0][r], v[1][r]);
        }
    }
    const int32x4_t magic = vdupq_n_s32(PE_SUM_MAGIC_BITS);
    sums[0] = vaddq_s32(add_each(v[0]), magic);
    if (has_two_scales(dtype)) {
        sums[1] = vaddq_s32(add_each(v[1]), magic);
    }
}

#define MATMUL_QUANT matmul_rows
#define LEVEL neon
#include "products.h"

/* ---- activation function ---------------------------------------------- */

static void silu_mul_neon(float *out, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += WIDTH) {
        const size_t n_valid = PE_MIN(n - i, (size_t)WIDTH);
        float padded[2][WIDTH] = {{0}};
        const float *g_at = gate + i;
        const float *u_at = up + i;
        if (n_valid < WIDTH) {
            memcpy(padded[0], g_at, n_valid * sizeof *gate);
            memcpy(padded[1], u_at, n_valid * sizeof *up);
            g_at = padded[0];
            u_at = padded[1];
        }
        const float32x4_t g = vld1q_f32(g_at);
        const float32x4_t e = exp_f32x4(vnegq_f32(g));
        const float32x4_t s = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1.0f), e));
        store_rows(out + i, vmulq_f32(s, vld1q_f32(u_at)), n_valid);
    }
}

void pe_kernels_init_neon(pe_kernels *kernels) {
    kernels->isa = PE_ISA_NEON;
    kernels->quantize_acts = quantize_acts_neon;
    set_products_neon(kernels);
    kernels->silu_mul = silu_mul_neon;
}

#else

void pe_kernels_init_neon(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
