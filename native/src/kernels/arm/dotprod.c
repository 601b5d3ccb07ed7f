/* Products of quantized weights for 64-bit Arm with SDOT: four int8 products a lane.
 *
 * In a unit of a panel four neighbouring weights of one row lie side by side and rows
 * follow each other, [four of k][row][4], so that one SDOT by element multiplies four rows
 * by the same four activations and no lanes need to be added up.
 */
#include "pe_kernels.h"

/* Clang before 16 declares the intrinsics only where all files are compiled for them. */
#if defined(__aarch64__) &&                                                                        \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))

/* As in avx2.c, the instruction set is switched on for this file alone and all but
 * the last function is static. Tuned for another core, GCC spills sums of the tile; when it
 * schedules before it has given out registers, it copies them (a tenth of the loop). */
#if defined(__clang__)
#include <arm_neon.h>
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod,tune=cortex-a76")
#pragma GCC optimize("no-schedule-insns")
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#include "panels.h"

/* ---- panels ----------------------------------------------------------- */

/* Four rows of four fours each become four fours of four rows. */
INLINE void transpose_fours(int8_t (*out)[ROWS][4], size_t first_row, const row_units *rows,
                            size_t half) {
    const int32x4_t r0 = vreinterpretq_s32_s8(rows->w[0][half]);
    const int32x4_t r1 = vreinterpretq_s32_s8(rows->w[1][half]);
    const int32x4_t r2 = vreinterpretq_s32_s8(rows->w[2][half]);
    const int32x4_t r3 = vreinterpretq_s32_s8(rows->w[3][half]);
    // Fours 0 and 2, 1 and 3 of two rows: [r0f0, r1f0, r0f2, r1f2], ...
    const int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(r0, r1));
    const int64x2_t odd01 = vreinterpretq_s64_s32(vtrn2q_s32(r0, r1));
    const int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(r2, r3));
    const int64x2_t odd23 = vreinterpretq_s64_s32(vtrn2q_s32(r2, r3));
    vst1q_s8(out[0][first_row], vreinterpretq_s8_s64(vtrn1q_s64(even01, even23)));
    vst1q_s8(out[1][first_row], vreinterpretq_s8_s64(vtrn1q_s64(odd01, odd23)));
    vst1q_s8(out[2][first_row], vreinterpretq_s8_s64(vtrn2q_s64(even01, even23)));
    vst1q_s8(out[3][first_row], vreinterpretq_s8_s64(vtrn2q_s64(odd01, odd23)));
}

INLINE void pack_rows(int8_t *q, size_t first, const row_units *units) {
    int8_t(*fours)[ROWS][4] = (int8_t(*)[ROWS][4])q;
    transpose_fours(fours, first, units, 0);
    transpose_fours(fours + 4, first, units, 1);
}

/* sum plus four rows times the same four activations, four f of x. */
INLINE int32x4_t dot_four(int32x4_t sum, const int8_t *w, int8x16_t x, size_t f) {
    switch (f) {  // the instruction holds f: it is a constant once loops are unrolled
    case 0: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 0);
    case 1: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 1);
    case 2: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 2);
    default: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 3);
    }
}

INLINE void sum_halves(int32x4_t (*isum)[2], const int8_t *q, size_t h, size_t n_halves,
                       const pe_act_block *const *x, size_t n_tile_cols) {
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        start_sums(&isum[c][0], &isum[c][1]);
    }
#pragma GCC unroll 2
    for (size_t half = h; half < h + n_halves; half++) {
        int8x16_t a[TILE_COLS];
#pragma GCC unroll 4
        for (size_t c = 0; c < n_tile_cols; c++) {
            a[c] = vld1q_s8(x[c]->q + 16 * half);
        }
#pragma GCC unroll 4
        for (size_t f = 0; f < 4; f++) {
#pragma GCC unroll 8
            for (size_t i = 0; i < 2 * n_tile_cols; i++) {
                const int8_t *w = q + (4 * half + f) * (ROWS * 4) + 16 * (i % 2);
                isum[i / 2][i % 2] = dot_four(isum[i / 2][i % 2], w, a[i / 2], f);
            }
        }
    }
}

#define MATMUL_QUANT matmul_panels
#define LEVEL dotprod
#include "products.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_dotprod(pe_kernels *kernels) {
    kernels->isa = PE_ISA_DOTPROD;
    set_products_dotprod(kernels);
}

#else

void pe_kernels_init_dotprod(pe_kernels *kernels) {
    (void)kernels;  // not this processor family, or not with this compiler
}

#endif
