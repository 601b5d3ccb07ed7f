/* Products of float weights with AVX2, FMA and F16C: 12 sums, two weights and an
 * activation fit 16 registers.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

/* See avx2.c. */
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#define WIDTH 8
#define MAX_SUMS 12
#define VEC_CLASS "x"
#define LEVEL avx2

typedef __m256 vec;

#include "floats.h"

INLINE vec vec_zero(void) {
    return _mm256_setzero_ps();
}
INLINE vec vec_load(const float *x) {
    return _mm256_loadu_ps(x);
}
INLINE void vec_store(float *out, vec v) {
    _mm256_storeu_ps(out, v);
}
INLINE vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vec vec_widen(const void *weights, size_t i, pe_dtype dtype) {
    if (dtype == PE_DTYPE_F32) {
        return vec_load((const float *)weights + i);
    }
    const __m128i halves = _mm_loadu_si128((const void *)((const uint16_t *)weights + i));
    if (dtype == PE_DTYPE_F16) {
        return _mm256_cvtph_ps(halves);
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

INLINE void add_lanes_of_four(float *out, const float *lanes) {
    vec v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        v[i] = _mm256_add_ps(vec_load(lanes + 16 * i), vec_load(lanes + 16 * i + 8));
    }
    const vec ac = _mm256_add_ps(_mm256_permute2f128_ps(v[0], v[2], 0x20),
                                 _mm256_permute2f128_ps(v[0], v[2], 0x31));
    const vec bd = _mm256_add_ps(_mm256_permute2f128_ps(v[1], v[3], 0x20),
                                 _mm256_permute2f128_ps(v[1], v[3], 0x31));
    // Halves [a, a, b, b] and [c, c, d, d].
    const vec two = _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xee));
    const __m128 low = _mm256_castps256_ps128(two);
    const __m128 high = _mm256_extractf128_ps(two, 1);
    _mm_storeu_ps(out, _mm_hadd_ps(low, high));
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_floats_avx2(pe_kernels *kernels) {
    set_floats_avx2(kernels);
}

#else

void pe_kernels_init_floats_avx2(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
