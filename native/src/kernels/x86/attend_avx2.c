/* Attention with AVX2, FMA and F16C: 8 positions, or 8 dimensions of a value, in
 * lanes.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#define LANES 8

/* Eight sums of the 16 registers; two vectors of b and one of a beside them. */
#define SCORE_ROWS 4
#define SCORE_VECS 2
#define MIX_ROWS 4
#define MIX_VECS 2
#define WEIGH_ROWS 1
#define PAGE_VECS (PE_PAGE_TOKENS / LANES)

typedef __m256 vec;

INLINE vec vec_load(const float *x) {
    return _mm256_loadu_ps(x);
}
INLINE void vec_store(float *out, vec v) {
    _mm256_storeu_ps(out, v);
}
INLINE vec vec_all(float x) {
    return _mm256_set1_ps(x);
}
INLINE vec vec_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
INLINE vec vec_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}
INLINE vec vec_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}
INLINE vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vec vec_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}

INLINE vec vec_hold(vec x) {
    // The second operand is what a NaN comparison returns.
    x = _mm256_max_ps(_mm256_set1_ps(PE_EXP_MIN), x);
    return _mm256_min_ps(_mm256_set1_ps(PE_EXP_MAX), x);
}

INLINE vec vec_two_to(vec t) {
    const __m256i magic = _mm256_castps_si256(_mm256_set1_ps(PE_EXP_MAGIC));
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), magic);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

INLINE vec vec_keep(vec v, vec other, size_t first, size_t n_valid) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i limit = _mm256_set1_epi32((int)n_valid - (int)first);
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, lane)));
}

INLINE void max_rows(float *out, const vec *v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v[0]), _mm256_extractf128_ps(v[0], 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    *out = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

INLINE void add_rows(float *out, vec (*e)[PAGE_VECS]) {
    const vec *v = e[0];
    const __m256 eight = _mm256_add_ps(_mm256_add_ps(v[0], v[2]), _mm256_add_ps(v[1], v[3]));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    *out = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE vec vec_f16(const pe_f16 *x) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)x));
}

INLINE vec vec_i8(const int8_t *q) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)q)));
}

INLINE vec vec_low(const uint8_t *q) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)q));
    const __m256i low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(8)));
}

INLINE vec vec_high(const uint8_t *q) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)q));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bytes, 4), _mm256_set1_epi32(8)));
}

/* 4 rows of 4 floats as columns. */
INLINE void turn_square(float *out, size_t out_stride, const float *in) {
    __m128 a = _mm_loadu_ps(in);
    __m128 b = _mm_loadu_ps(in + PE_PAGE_TOKENS);
    __m128 c = _mm_loadu_ps(in + 2 * (size_t)PE_PAGE_TOKENS);
    __m128 d = _mm_loadu_ps(in + 3 * (size_t)PE_PAGE_TOKENS);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + out_stride, b);
    _mm_storeu_ps(out + 2 * out_stride, c);
    _mm_storeu_ps(out + 3 * out_stride, d);
}

#include "attend.h"
#include "delta.h"

void pe_kernels_init_attend_avx2(pe_kernels *kernels) {
    init_attend(kernels);
    kernels->delta = delta;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

void pe_kernels_init_attend_avx2(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
