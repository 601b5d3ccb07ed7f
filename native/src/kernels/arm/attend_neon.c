/* Attention for every 64-bit Arm: 4 positions, or 4 dimensions of a value, in lanes. */
#include "pe_kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

#define LANES 4

/* 16 sums of the 32 registers: two units with a latency of 4 need 8. */
#define SCORE_ROWS 4
#define SCORE_VECS 4
#define MIX_ROWS 4
#define MIX_VECS 4
#define WEIGH_ROWS 1
#define PAGE_VECS (PE_PAGE_TOKENS / LANES)

typedef float32x4_t vec;

INLINE vec vec_load(const float *x) {
    return vld1q_f32(x);
}
INLINE void vec_store(float *out, vec v) {
    vst1q_f32(out, v);
}
INLINE vec vec_all(float x) {
    return vdupq_n_f32(x);
}
INLINE vec vec_add(vec a, vec b) {
    return vaddq_f32(a, b);
}
INLINE vec vec_sub(vec a, vec b) {
    return vsubq_f32(a, b);
}
INLINE vec vec_mul(vec a, vec b) {
    return vmulq_f32(a, b);
}
INLINE vec vec_fma(vec a, vec b, vec c) {
    return vfmaq_f32(c, a, b);
}
INLINE vec vec_max(vec a, vec b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

INLINE vec vec_hold(vec x) {
    // These give NaN when either operand is: x stays NaN.
    x = vmaxq_f32(x, vdupq_n_f32(PE_EXP_MIN));
    return vminq_f32(x, vdupq_n_f32(PE_EXP_MAX));
}

INLINE vec vec_two_to(vec t) {
    const int32x4_t magic = vreinterpretq_s32_f32(vdupq_n_f32(PE_EXP_MAGIC));
    const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t), magic);
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

INLINE vec vec_keep(vec v, vec other, size_t first, size_t n_valid) {
    static const int32_t lanes[LANES] = {0, 1, 2, 3};
    const int32x4_t limit = vdupq_n_s32((int32_t)n_valid - (int32_t)first);
    return vbslq_f32(vcltq_s32(vld1q_s32(lanes), limit), v, other);
}

INLINE void max_rows(float *out, const vec *v) {
    *out = vmaxvq_f32(v[0]);
}

INLINE void add_rows(float *out, vec (*e)[PAGE_VECS]) {
    vec v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        v[i] = vaddq_f32(e[0][i], e[0][i + 4]);
    }
    const vec four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    *out = vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE vec vec_f16(const pe_f16 *x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
}

/* Four bytes in the low half of a register. */
INLINE uint8x8_t four_bytes(const void *q) {
    uint32_t bytes;
    memcpy(&bytes, q, sizeof bytes);
    return vreinterpret_u8_u32(vdup_n_u32(bytes));
}

INLINE vec vec_s8(int8x8_t q) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(q))));
}

INLINE vec vec_i8(const int8_t *q) {
    return vec_s8(vreinterpret_s8_u8(four_bytes(q)));
}

INLINE vec vec_low(const uint8_t *q) {
    const uint8x8_t low = vand_u8(four_bytes(q), vdup_n_u8(15));
    return vec_s8(vsub_s8(vreinterpret_s8_u8(low), vdup_n_s8(8)));
}

INLINE vec vec_high(const uint8_t *q) {
    const uint8x8_t high = vshr_n_u8(four_bytes(q), 4);
    return vec_s8(vsub_s8(vreinterpret_s8_u8(high), vdup_n_s8(8)));
}

/* 4 rows of 4 floats as columns: the load puts every fourth number into one vector. */
INLINE void turn_square(float *out, size_t out_stride, const float *in) {
    float rows[16];
    for (size_t r = 0; r < 4; r++) {
        vst1q_f32(rows + 4 * r, vld1q_f32(in + r * PE_PAGE_TOKENS));
    }
    const float32x4x4_t columns = vld4q_f32(rows);
    for (size_t c = 0; c < 4; c++) {
        vst1q_f32(out + c * out_stride, columns.val[c]);
    }
}

#include "attend.h"
#include "delta.h"

void pe_kernels_init_attend_neon(pe_kernels *kernels) {
    init_attend(kernels);
    kernels->delta = delta;
}

#else

void pe_kernels_init_attend_neon(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
