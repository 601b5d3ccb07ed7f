/* Products of float weights with AVX-512: 24 sums, two weights and an activation
 * fit 32 registers.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

#define WIDTH 16
#define MAX_SUMS 24
#define VEC_CLASS "v"
#define LEVEL avx512

typedef __m512 vec;

#include "floats.h"

INLINE vec vec_zero(void) {
    return _mm512_setzero_ps();
}
INLINE vec vec_load(const float *x) {
    return _mm512_loadu_ps(x);
}
INLINE void vec_store(float *out, vec v) {
    _mm512_storeu_ps(out, v);
}
INLINE vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}

INLINE vec vec_widen(const void *weights, size_t i, pe_dtype dtype) {
    if (dtype == PE_DTYPE_F32) {
        return vec_load((const float *)weights + i);
    }
    const __m256i halves = _mm256_loadu_si256((const void *)((const uint16_t *)weights + i));
    if (dtype == PE_DTYPE_F16) {
        return _mm512_cvtph_ps(halves);
    }
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Lanes i and i + 8 of both: parts of four lanes a, a, b, b. */
INLINE vec add_halves(vec a, vec b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

INLINE void add_lanes_of_four(float *out, const float *lanes) {
    const vec ab = add_halves(vec_load(lanes), vec_load(lanes + 16));
    const vec cd = add_halves(vec_load(lanes + 32), vec_load(lanes + 48));
    const vec four =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const vec two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
    const vec one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
    const __m512i first = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one)));
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_floats_avx512(pe_kernels *kernels) {
    set_floats_avx512(kernels);
}

#else

void pe_kernels_init_floats_avx512(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
