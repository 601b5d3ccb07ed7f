/* Kernels for 64-bit Arm with SDOT: products of quantized weights, four int8
 * products per 32-bit lane.
 *
 * A single column goes row by row (neon_rows.h). For several, a run of 8 rows and
 * up to 512 weights of each is unpacked once into a panel, in which four
 * neighbouring weights of one row lie side by side and rows follow each other, so
 * that one SDOT by element multiplies four rows by the same four activations and no
 * lanes need to be added up:
 *
 *     q[block][four of k][row][4]     the weights' integers, signed
 *     d[block][row], m[block][row]    scales and minimums as floats
 *     scale[block][sub-block][row]    Q6_K's scales of 16 weights
 *
 * Sums are those of pe_kernels.h: exact in int32 within a block, then one fused
 * multiply-add per block in block order.
 */
#include "pe_kernels.h"

/* Clang before 16 declares the intrinsics only where all files are compiled for them. */
#if defined(__aarch64__) &&                                                                        \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))

/* As in avx2.c, the instruction set is switched on for this file alone and all but
 * the last function is static. Tuned for another core, GCC spills sums of the tile. */
#if defined(__clang__)
#include <arm_neon.h>
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod,tune=cortex-a76")
#include <arm_neon.h>
#endif

#include "neon_rows.h"

/* ---- rows in lanes ---------------------------------------------------- */

INLINE int32x4_t dot_16(const row_blocks *rows, size_t half, int8x16_t x) {
    int32x4_t v[4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[r] = vdotq_s32(vdupq_n_s32(0), rows->w[r][half], x);
    }
    return add_each(v);
}

INLINE int32x4_t dot_32(const row_blocks *rows, const int8x16_t *x, pe_dtype dtype) {
    (void)dtype;
    int32x4_t v[4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[r] = vdotq_s32(vdotq_s32(vdupq_n_s32(0), rows->w[r][0], x[0]), rows->w[r][1], x[1]);
    }
    return add_each(v);
}

/* ---- formats to panels ------------------------------------------------ */

#define ROWS 8        // of a panel: two registers of four lanes
#define SLICE 16      // blocks of a panel: 4 KB of weights, beside it 2.5 KB of activations
#define FOURS 8       // runs of four weights in a block
#define TILE_COLS 4   // 8 integer and 8 float sums, 4 activations, 2 weights of 32 registers
#define MAX_COLS 256  // columns that share an unpacked panel: 8 KB of sums

typedef struct panel {
    int8_t q[SLICE][FOURS][ROWS][4];
    float d[SLICE][ROWS];
    float m[SLICE][ROWS];
    int32_t scale[SLICE][2][ROWS];
} panel;

/* Four rows of four fours each become four fours of four rows. */
INLINE void transpose_fours(int8_t (*out)[ROWS][4], size_t first_row, const row_blocks *rows,
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

/* Fills n_blocks of the panel from block first_block of the rows on. */
INLINE void fill_panel(panel *out, const uint8_t *const *rows, size_t first_block, size_t n_blocks,
                       pe_dtype dtype) {
    for (size_t b = 0; b < n_blocks; b++) {
        for (size_t r = 0; r < ROWS; r += 4) {
            row_blocks blocks;
            unpack_rows(&blocks, rows + r, first_block + b, dtype);
            if (dtype == PE_DTYPE_Q4_0) {
#pragma GCC unroll 8
                for (size_t i = 0; i < 8; i++) {
                    blocks.w[i / 2][i % 2] = vsubq_s8(blocks.w[i / 2][i % 2], vdupq_n_s8(8));
                }
            }
            transpose_fours(out->q[b], r, &blocks, 0);
            transpose_fours(out->q[b] + 4, r, &blocks, 1);
            vst1q_f32(out->d[b] + r, blocks.d);
            if (dtype == PE_DTYPE_Q4_1) {
                vst1q_f32(out->m[b] + r, blocks.m);
            }
            if (dtype == PE_DTYPE_Q6_K) {
                vst1q_s32(out->scale[b][0] + r, blocks.scale[0]);
                vst1q_s32(out->scale[b][1] + r, blocks.scale[1]);
            }
        }
    }
}

/* ---- the tile --------------------------------------------------------- */

/* sum plus four rows times the same four activations, four f of x. */
INLINE int32x4_t dot_four(int32x4_t sum, const int8_t *w, int8x16_t x, size_t f) {
    switch (f) {  // the instruction holds f: it is a constant once loops are unrolled
    case 0: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 0);
    case 1: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 1);
    case 2: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 2);
    default: return vdotq_laneq_s32(sum, vld1q_s8(w), x, 3);
    }
}

/* Exact sums of block b of the panel and of the columns at x. */
INLINE void sum_block(int32x4_t (*isum)[2], const panel *w, size_t b, const pe_act_block *const *x,
                      size_t n_tile_cols, pe_dtype dtype) {
#pragma GCC unroll 8
    for (size_t i = 0; i < 2 * n_tile_cols; i++) {
        isum[i / 2][i % 2] = vdupq_n_s32(0);
    }
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; half++) {
        int8x16_t q[TILE_COLS];
        int32x4_t part[TILE_COLS][2];
#pragma GCC unroll 8
        for (size_t i = 0; i < 2 * n_tile_cols; i++) {
            q[i / 2] = vld1q_s8(x[i / 2]->q + 16 * half);
            part[i / 2][i % 2] = dtype == PE_DTYPE_Q6_K ? vdupq_n_s32(0) : isum[i / 2][i % 2];
        }
#pragma GCC unroll 4
        for (size_t f = 0; f < 4; f++) {
#pragma GCC unroll 8
            for (size_t i = 0; i < 2 * n_tile_cols; i++) {
                int32x4_t *sum = &part[i / 2][i % 2];
                *sum = dot_four(*sum, w->q[b][4 * half + f][4 * (i % 2)], q[i / 2], f);
            }
        }
#pragma GCC unroll 8
        for (size_t i = 0; i < 2 * n_tile_cols; i++) {
            int32x4_t *sum = &isum[i / 2][i % 2];
            const int32x4_t scale = vld1q_s32(w->scale[b][half] + 4 * (i % 2));
            *sum = dtype == PE_DTYPE_Q6_K ? vmlaq_s32(*sum, part[i / 2][i % 2], scale)
                                          : part[i / 2][i % 2];
        }
    }
}

/* Adds n_blocks of the panel times n_tile_cols columns (a constant) to the sums,
 * [column][ROWS]. */
INLINE void panel_tile(float (*sums)[ROWS], const panel *w, const uint8_t *acts, size_t act_bytes,
                       size_t n_blocks, size_t n_tile_cols, pe_dtype dtype) {
    float32x4_t acc[TILE_COLS][2];
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        acc[c][0] = vld1q_f32(sums[c]);
        acc[c][1] = vld1q_f32(sums[c] + 4);
    }
    for (size_t b = 0; b < n_blocks; b++) {
        const pe_act_block *x[TILE_COLS];
#pragma GCC unroll 4
        for (size_t c = 0; c < n_tile_cols; c++) {
            x[c] = (const pe_act_block *)(acts + c * act_bytes) + b;
        }
        int32x4_t isum[TILE_COLS][2];
        sum_block(isum, w, b, x, n_tile_cols, dtype);
#pragma GCC unroll 8
        for (size_t i = 0; i < 2 * n_tile_cols; i++) {
            const size_t c = i / 2;
            const size_t r = 4 * (i % 2);
            float32x4_t *sum = &acc[c][i % 2];
            *sum = vfmaq_f32(*sum, vcvtq_f32_s32(isum[c][i % 2]),
                             vmulq_n_f32(vld1q_f32(w->d[b] + r), x[c]->d));
            if (dtype == PE_DTYPE_Q4_1) {
                *sum = vfmaq_n_f32(*sum, vld1q_f32(w->m[b] + r), x[c]->d * (float)x[c]->sum);
            }
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        vst1q_f32(sums[c], acc[c][0]);
        vst1q_f32(sums[c] + 4, acc[c][1]);
    }
}

/* All columns against one panel, in tiles of 4, then 1. */
INLINE void multiply_panel(float (*sums)[ROWS], const panel *w, const uint8_t *acts,
                           size_t act_bytes, size_t n_blocks, size_t n_cols, pe_dtype dtype) {
    size_t c = 0;
    for (; c + TILE_COLS <= n_cols; c += TILE_COLS) {
        panel_tile(sums + c, w, acts + c * act_bytes, act_bytes, n_blocks, TILE_COLS, dtype);
    }
    for (; c < n_cols; c++) {
        panel_tile(sums + c, w, acts + c * act_bytes, act_bytes, n_blocks, 1, dtype);
    }
}

INLINE void matmul_panels(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                          size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                          size_t n_k, pe_dtype dtype) {
    panel w;
    float sums[MAX_COLS][ROWS];
    for (size_t r = 0; r < n_rows; r += ROWS) {
        const uint8_t *rows[ROWS];
        const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, ROWS);
        for (size_t c = 0; c < n_cols; c += MAX_COLS) {
            const size_t n_shared = PE_MIN(n_cols - c, (size_t)MAX_COLS);
            memset(sums, 0, n_shared * sizeof *sums);
            for (size_t b = 0; b < n_k / PE_BLOCK; b += SLICE) {
                const size_t n_slice = PE_MIN(n_k / PE_BLOCK - b, (size_t)SLICE);
                fill_panel(&w, rows, b, n_slice, dtype);
                const uint8_t *x = (const uint8_t *)acts + c * act_bytes + b * sizeof(pe_act_block);
                multiply_panel(sums, &w, x, act_bytes, n_slice, n_shared, dtype);
            }
            for (size_t i = 0; i < n_shared; i++) {
                memcpy(out + (c + i) * out_stride + r, sums[i], n_valid * sizeof **sums);
            }
        }
    }
}

/* ---- entries ---------------------------------------------------------- */

/* Defines matvec_<name>_dotprod and matmul_<name>_dotprod for one type. */
#define PRODUCTS(name, dtype)                                                                      \
    static void matvec_##name##_dotprod(float *out, size_t out_stride, const void *weights,        \
                                        size_t row_bytes, size_t n_rows, const void *acts,         \
                                        size_t act_bytes, size_t n_cols, size_t n_k) {             \
        (void)out_stride, (void)act_bytes, (void)n_cols;                                           \
        matvec_rows(out, weights, row_bytes, n_rows, acts, n_k, dtype);                            \
    }                                                                                              \
    static void matmul_##name##_dotprod(float *out, size_t out_stride, const void *weights,        \
                                        size_t row_bytes, size_t n_rows, const void *acts,         \
                                        size_t act_bytes, size_t n_cols, size_t n_k) {             \
        matmul_panels(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k,   \
                      dtype);                                                                      \
    }

PRODUCTS(q4_0, PE_DTYPE_Q4_0)
PRODUCTS(q4_1, PE_DTYPE_Q4_1)
PRODUCTS(q8_0, PE_DTYPE_Q8_0)
PRODUCTS(q6_k, PE_DTYPE_Q6_K)

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_dotprod(pe_kernels *kernels) {
    kernels->isa = PE_ISA_DOTPROD;
    kernels->matvec[PE_DTYPE_Q4_0] = matvec_q4_0_dotprod;
    kernels->matvec[PE_DTYPE_Q4_1] = matvec_q4_1_dotprod;
    kernels->matvec[PE_DTYPE_Q8_0] = matvec_q8_0_dotprod;
    kernels->matvec[PE_DTYPE_Q6_K] = matvec_q6_k_dotprod;
    kernels->matmul[PE_DTYPE_Q4_0] = matmul_q4_0_dotprod;
    kernels->matmul[PE_DTYPE_Q4_1] = matmul_q4_1_dotprod;
    kernels->matmul[PE_DTYPE_Q8_0] = matmul_q8_0_dotprod;
    kernels->matmul[PE_DTYPE_Q6_K] = matmul_q6_k_dotprod;
}

#else

void pe_kernels_init_dotprod(pe_kernels *kernels) {
    (void)kernels;  // not this processor family, or not with this compiler
}

#endif
