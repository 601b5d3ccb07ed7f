/* Products of quantized weights for 64-bit Arm with SMMLA: two rows by two columns by
 * eight weights in one instruction.
 *
 * In a unit of a panel eight neighbouring weights of one row lie side by side and rows
 * follow each other, [eight of k][row][8].
 */
#include "pe_kernels.h"

/* Clang before 16 declares the intrinsics only where all files are compiled for them. */
#if defined(__aarch64__) &&                                                                        \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8))

/* As in avx2.c, the instruction set is switched on for this file alone and all but
 * the last function is static. */
#if defined(__clang__)
#include <arm_neon.h>
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#include "panels.h"

/* ---- panels ----------------------------------------------------------- */

INLINE void pack_rows(int8_t *q, size_t first, const row_units *units) {
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) {
        const size_t half = i / 4;
        const size_t r = i % 4;
        const int8x16_t w = units->w[r][half];
        vst1_s8(q + ((2 * half) * ROWS + first + r) * 8, vget_low_s8(w));
        vst1_s8(q + ((2 * half + 1) * ROWS + first + r) * 8, vget_high_s8(w));
    }
}

/* Eight activations of one column, and of the next; of the only one twice. */
INLINE int8x16_t two_columns(const pe_act_block *const *x, size_t c, size_t n_cols, size_t at) {
    const size_t next = c + 1 < n_cols ? c + 1 : c;
    return vcombine_s8(vld1_s8(x[c]->q + at), vld1_s8(x[next]->q + at));
}

INLINE void sum_halves(int32x4_t (*isum)[2], const int8_t *q, size_t h, size_t n_halves,
                       const pe_act_block *const *x, size_t n_tile_cols) {
    const size_t n_pairs = (n_tile_cols + 1) / 2;
    int32x4_t sum[2][4];  // [columns][rows]: two rows of two columns
#pragma GCC unroll 4
    for (size_t i = 0; i < 2 * n_pairs; i++) {
        start_sums(&sum[i / 2][i % 2 * 2], &sum[i / 2][i % 2 * 2 + 1]);
    }
#pragma GCC unroll 4
    for (size_t eight = 2 * h; eight < 2 * (h + n_halves); eight++) {
#pragma GCC unroll 2
        for (size_t pair = 0; pair < n_pairs; pair++) {
            const int8x16_t a = two_columns(x, 2 * pair, n_tile_cols, 8 * eight);
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; r++) {
                const int8x16_t w = vld1q_s8(q + (eight * ROWS + 2 * r) * 8);
                sum[pair][r] = vmmlaq_s32(sum[pair][r], w, a);
            }
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
#pragma GCC unroll 2
        for (size_t v = 0; v < 2; v++) {
            const int32x4_t low = sum[c / 2][2 * v];
            const int32x4_t high = sum[c / 2][2 * v + 1];
            isum[c][v] = c % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high);
        }
    }
}

#define MATMUL_QUANT matmul_panels
#define LEVEL i8mm
#include "products.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_i8mm(pe_kernels *kernels) {
    kernels->isa = PE_ISA_I8MM;
    set_products_i8mm(kernels);
}

#else

void pe_kernels_init_i8mm(pe_kernels *kernels) {
    (void)kernels;  // not this processor family, or not with this compiler
}

#endif
