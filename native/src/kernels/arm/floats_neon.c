/* Products of float weights with NEON: 24 sums, two weights and an activation fit 32
 * registers.
 */
#include "pe_kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

#define WIDTH 4
#define MAX_SUMS 24
#define VEC_CLASS "w"
#define LEVEL neon

typedef float32x4_t vec;

#include "floats.h"

INLINE vec vec_zero(void) {
    return vdupq_n_f32(0.0f);
}
INLINE vec vec_load(const float *x) {
    return vld1q_f32(x);
}
INLINE void vec_store(float *out, vec v) {
    vst1q_f32(out, v);
}
INLINE vec vec_fma(vec a, vec b, vec c) {
    return vfmaq_f32(c, a, b);
}

INLINE vec vec_widen(const void *weights, size_t i, pe_dtype dtype) {
    if (dtype == PE_DTYPE_F32) {
        return vec_load((const float *)weights + i);
    }
    const uint16x4_t halves = vld1_u16((const uint16_t *)weights + i);
    if (dtype == PE_DTYPE_F16) {
        return vcvt_f32_f16(vreinterpret_f16_u16(halves));
    }
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

INLINE void add_lanes_of_four(float *out, const float *lanes) {
    vec v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        const float *p = lanes + 16 * i;
        v[i] = vaddq_f32(vaddq_f32(vec_load(p), vec_load(p + 8)),
                         vaddq_f32(vec_load(p + 4), vec_load(p + 12)));
    }
    vec pair[2];
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++) {
        pair[i] = vaddq_f32(vcombine_f32(vget_low_f32(v[2 * i]), vget_low_f32(v[2 * i + 1])),
                            vcombine_f32(vget_high_f32(v[2 * i]), vget_high_f32(v[2 * i + 1])));
    }
    vec_store(out, vpaddq_f32(pair[0], pair[1]));
}

void pe_kernels_init_floats_neon(pe_kernels *kernels) {
    set_floats_neon(kernels);
}

#else

void pe_kernels_init_floats_neon(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
