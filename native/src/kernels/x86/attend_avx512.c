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
#define WEIGH_ROWS 4
#define PAGE_VECS (PE_PAGE_TOKENS / LANES)

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

/* [a: first half | b: first half] and [a: second half | b: second half]. */
INLINE vec first_halves(vec a, vec b) {
    return _mm512_shuffle_f32x4(a, b, 0x44);
}
INLINE vec second_halves(vec a, vec b) {
    return _mm512_shuffle_f32x4(a, b, 0xee);
}

/* Lanes 0, 4, 8, 12. */
INLINE void store_fourths(float *out, vec v) {
    const __m512i fourths = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(fourths, v)));
}

/* Four rows are folded at once: lanes i and i + 8 of two rows, then i and i + 4 of
 * four, then within each fourth. */
INLINE void max_rows(float *out, const vec *v) {
    const vec a = _mm512_max_ps(first_halves(v[0], v[1]), second_halves(v[0], v[1]));
    const vec b = _mm512_max_ps(first_halves(v[2], v[3]), second_halves(v[2], v[3]));
    vec four = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    four = _mm512_max_ps(four, _mm512_permute_ps(four, 0x4e));
    store_fourths(out, _mm512_max_ps(four, _mm512_permute_ps(four, 0xb1)));
}

INLINE void add_rows(float *out, vec (*e)[PAGE_VECS]) {
    vec v[WEIGH_ROWS];
#pragma GCC unroll 4
    for (size_t r = 0; r < WEIGH_ROWS; r++) {
        v[r] = _mm512_add_ps(e[r][0], e[r][1]);
    }
    const vec a = _mm512_add_ps(first_halves(v[0], v[1]), second_halves(v[0], v[1]));
    const vec b = _mm512_add_ps(first_halves(v[2], v[3]), second_halves(v[2], v[3]));
    vec four = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    four = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
    store_fourths(out, _mm512_add_ps(four, _mm512_permute_ps(four, 0xb1)));
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

void pe_kernels_init_attend_avx512(pe_kernels *kernels) {
    init_attend(kernels);
    kernels->delta = delta;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

void pe_kernels_init_attend_avx512(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
