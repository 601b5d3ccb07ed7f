/* Products of quantized weights for AVX2 with VPDPBUSD, as processors without AVX-512
 * have it.
 */
#include "pe_kernels.h"

/* GCC knows it from version 11 on, clang from 12. */
#if defined(__x86_64__) &&                                                                         \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))

/* Switched on for this file alone; see avx2.c. */
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avxvnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avxvnni,avx2,fma,f16c")
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define TILE_SUMS 12  // 2 weights and 1 activation fit 16 registers beside them
#define TILE_SUMS_TWO 6

#include "panels256.h"

INLINE bool offset_in_start(panel_kind kind) {
    (void)kind;
    return true;
}

INLINE void sum_fours(vec (*isum)[VECS], const vec *start, const panel *w, size_t u, size_t f,
                      size_t n_fours, const pe_act_block *const *x, size_t n_tile_cols,
                      size_t n_vecs, panel_kind kind) {
    (void)kind;
#pragma GCC unroll 6
    for (size_t c = 0; c < n_tile_cols; c++) {
#pragma GCC unroll 2
        for (size_t v = 0; v < n_vecs; v++) {
            isum[c][v] = start[c];
        }
    }
#pragma GCC unroll 8
    for (size_t i = f; i < f + n_fours; i++) {
        __m256i weights[VECS];
#pragma GCC unroll 2
        for (size_t v = 0; v < n_vecs; v++) {
            weights[v] = _mm256_load_si256((const void *)w->q[u][i][8 * v]);
        }
#pragma GCC unroll 6
        for (size_t c = 0; c < n_tile_cols; c++) {
            int32_t four;
            memcpy(&four, x[c]->q + 4 * i, sizeof four);
            const __m256i a = _mm256_set1_epi32(four);
#pragma GCC unroll 2
            for (size_t v = 0; v < n_vecs; v++) {
                isum[c][v] = _mm256_dpbusd_avx_epi32(isum[c][v], weights[v], a);
            }
        }
    }
}

/* Two chains, for one alone takes longer than the processor looks ahead. */
INLINE vec dot_fours(vec start, const vec *fours, size_t n_fours, const int8_t *x, int limit) {
    (void)limit;
    vec other = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (size_t f = 0; f < n_fours; f += 2) {
        start = _mm256_dpbusd_avx_epi32(start, fours[f], broadcast_four(x + 4 * f));
        other = _mm256_dpbusd_avx_epi32(other, fours[f + 1], broadcast_four(x + 4 * f + 4));
    }
    return _mm256_add_epi32(start, other);
}

INLINE __m256i dot_partial(__m256i w, __m256i x, pe_dtype dtype) {
    (void)dtype;
    return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, x);
}

INLINE bool subtracts_offset(pe_dtype dtype) {
    (void)dtype;
    return true;
}

#define MATMUL_QUANT matmul_panels
#define MATMUL_STRIPS matmul_strips
#define GAINS_BY_STRIPS(dtype) true
#define LEVEL avx_vnni
#include "products.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_avx_vnni(pe_kernels *kernels) {
    kernels->isa = PE_ISA_AVX_VNNI;
    set_products_avx_vnni(kernels);
}

#else

void pe_kernels_init_avx_vnni(pe_kernels *kernels) {
    (void)kernels;  // not this processor family, or not with this compiler
}

#endif
