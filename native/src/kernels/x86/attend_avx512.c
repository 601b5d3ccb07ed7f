/* Attention with AVX-512: 16 positions, or 16 dimensions of a value, in lanes. */
#include "pe_kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

#define LANES 16

/* 16 sums in registers either way: as many as two units with a latency of 4 need,
 * twice. */
#define SCORE_ROWS 8
#define SCORE_VECS 2
#define MIX_ROWS 4
#define MIX_VECS 4

typedef __m512 vec;

INLINE vec vec_load(const float *x) {
    return _mm512_loadu_ps(x);
}
INLINE void vec_store(float *out, vec v) {
    _mm512_storeu_ps(out, v);
}
INLINE vec vec_all(float x) {
    return _mm512_set1_ps(x);
}
INLINE vec vec_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
INLINE vec vec_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}
INLINE vec vec_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}
INLINE vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vec vec_max(vec a, vec b) {
    return _mm512_max_ps(a, b);
}

INLINE vec vec_hold(vec x) {
    // The second operand is what a NaN comparison returns.
    x = _mm512_max_ps(_mm512_set1_ps(PE_EXP_MIN), x);
    return _mm512_min_ps(_mm512_set1_ps(PE_EXP_MAX), x);
}

INLINE vec vec_two_to(vec t) {
    const __m512i magic = _mm512_castps_si512(_mm512_set1_ps(PE_EXP_MAGIC));
    const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), magic);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

INLINE vec vec_keep(vec v, vec other, size_t first, size_t n_valid) {
    const __mmask16 valid = (__mmask16)((0xffffffffu >> (PE_PAGE_TOKENS - n_valid)) >> first);
    return _mm512_mask_mov_ps(other, valid, v);
}

INLINE float max_lanes(vec v) {
    return _mm512_reduce_max_ps(v);
}

INLINE float add_page(const vec *v) {
    const __m512 sixteen = _mm512_add_ps(v[0], v[1]);
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE vec vec_f16(const pe_f16 *x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)x));
}

INLINE vec vec_i8(const int8_t *q) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q)));
}

/* The float of a nibble in the low four bits of each lane, from a table. */
INLINE vec nibbles(__m512i q) {
    const vec table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(q, table);
}

INLINE vec vec_low(const uint8_t *q) {
    return nibbles(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)q)));
}

INLINE vec vec_high(const uint8_t *q) {
    return nibbles(_mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)q)), 4));
}

#include "attend.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_attend_avx512(pe_kernels *kernels) {
    init_attend(kernels);
}

#else

void pe_kernels_init_attend_avx512(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
