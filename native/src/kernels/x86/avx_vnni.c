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
#define vec_dpbusd _mm256_dpbusd_avx_epi32
#include "vnni.h"

INLINE __m256i dot_partial(__m256i w, __m256i x, pe_dtype dtype) {
    (void)dtype;
    return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, x);
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
