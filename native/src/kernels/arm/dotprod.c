/* Products of quantized weights for 64-bit Arm with SDOT: four int8 products a lane.
 *
 * One column goes row by row (rows.h). For several, 8 rows by 8 units are unpacked once
 * into a panel, in which four neighbouring weights of one row lie side by side and rows
 * follow each other, so that one SDOT by element multiplies four rows by the same four
 * activations and no lanes need to be added up:
 *
 *     q[unit][four of k][row][4]           the weights' integers, signed
 *     d[unit][half][row], m[...]           scales and minimums
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

#define INLINE static inline __attribute__((always_inline))

#include "rows.h"

INLINE void dot_rows(int32x4_t *sums, const row_units *rows, const int8x16_t *x, pe_dtype dtype) {
    int32x4_t v[2][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[0][r] = vdotq_s32(vdupq_n_s32(0), rows->w[r][0], x[0]);
        v[1][r] = vdotq_s32(has_two_scales(dtype) ? vdupq_n_s32(0) : v[0][r], rows->w[r][1], x[1]);
    }
    sums[0] = add_each(has_two_scales(dtype) ? v[0] : v[1]);
    if (has_two_scales(dtype)) {
        sums[1] = add_each(v[1]);
    }
}

/* ---- formats to panels ------------------------------------------------ */

#define ROWS 8        // of a panel: two registers of four lanes
#define FOURS 8       // runs of four weights in a unit
#define TILE_COLS 4   // 8 integer and 8 float sums, 4 activations, 2 weights of 32 registers
#define MAX_COLS 256  // columns that share an unpacked panel: 8 KB of sums

typedef struct panel {
    int8_t q[UNITS][FOURS][ROWS][4];
    float d[UNITS][2][ROWS];
    float m[UNITS][2][ROWS];
} panel;

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

INLINE void fill_panel(panel *out, const uint8_t *const *rows, size_t first_unit, size_t n_units,
                       pe_dtype dtype) {
    for (size_t u = 0; u < n_units; u++) {
        for (size_t first = 0; first < ROWS; first += 4) {
            row_units units;
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; r++) {
                const uint8_t *block = block_of(rows[first + r], first_unit + u, dtype);
                float d[2];
                float m[2];
                expand(units.w[r], block, u, dtype);
                unit_scales(d, m, block, u, dtype);
                for (size_t h = 0; h < (has_two_scales(dtype) ? 2u : 1u); h++) {
                    out->d[u][h][first + r] = d[h];
                    if (has_min(dtype)) {
                        out->m[u][h][first + r] = m[h];
                    }
                }
            }
            transpose_fours(out->q[u], first, &units, 0);
            transpose_fours(out->q[u] + 4, first, &units, 1);
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

/* Adds the exact sums over half h of unit u to isum, [column][register]. */
INLINE void sum_half(int32x4_t (*isum)[2], const panel *w, size_t u, size_t h,
                     const pe_act_block *const *x, size_t n_tile_cols) {
    int8x16_t q[TILE_COLS];
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        q[c] = vld1q_s8(x[c]->q + 16 * h);
    }
#pragma GCC unroll 4
    for (size_t f = 0; f < 4; f++) {
#pragma GCC unroll 8
        for (size_t i = 0; i < 2 * n_tile_cols; i++) {
            int32x4_t *sum = &isum[i / 2][i % 2];
            *sum = dot_four(*sum, w->q[u][4 * h + f][4 * (i % 2)], q[i / 2], f);
        }
    }
}

/* Adds n_units of the panel times n_tile_cols columns (a constant) to the sums,
 * [column][ROWS]. */
INLINE void panel_tile(float (*sums)[ROWS], const panel *w, const uint8_t *acts, size_t act_bytes,
                       size_t n_units, size_t n_tile_cols, bool two_scales, bool min) {
    const int32x4_t magic = vdupq_n_s32(PE_SUM_MAGIC_BITS);
    float32x4_t acc[TILE_COLS][2];
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        acc[c][0] = vld1q_f32(sums[c]);
        acc[c][1] = vld1q_f32(sums[c] + 4);
    }
    for (size_t u = 0; u < n_units; u++) {
        const pe_act_block *x[TILE_COLS];
        float32x4_t s[TILE_COLS][2];
#pragma GCC unroll 4
        for (size_t c = 0; c < n_tile_cols; c++) {
            x[c] = (const pe_act_block *)(acts + c * act_bytes) + u;
        }
        for (size_t h = 0; h < (two_scales ? 2u : 1u); h++) {
            int32x4_t isum[TILE_COLS][2];
#pragma GCC unroll 8
            for (size_t i = 0; i < 2 * n_tile_cols; i++) {
                isum[i / 2][i % 2] = magic;
            }
            sum_half(isum, w, u, h, x, n_tile_cols);
            if (!two_scales) {
                sum_half(isum, w, u, 1, x, n_tile_cols);
            }
#pragma GCC unroll 2
            for (size_t v = 0; v < 2; v++) {
                const float32x4_t d = vld1q_f32(w->d[u][h] + 4 * v);
                const float32x4_t product = vmulq_n_f32(d, -PE_SUM_MAGIC);
#pragma GCC unroll 4
                for (size_t c = 0; c < n_tile_cols; c++) {
                    const float32x4_t part =
                        vfmaq_f32(product, vreinterpretq_f32_s32(isum[c][v]), d);
                    s[c][v] = h == 0 ? part : vaddq_f32(s[c][v], part);
                }
            }
        }
#pragma GCC unroll 8
        for (size_t i = 0; i < 2 * n_tile_cols; i++) {
            const size_t c = i / 2;
            const size_t r = 4 * (i % 2);
            float32x4_t *part = &s[c][i % 2];
            if (min && two_scales) {
                *part = vfmaq_n_f32(*part, vld1q_f32(w->m[u][0] + r), x[c]->half[0]);
                *part = vfmaq_n_f32(*part, vld1q_f32(w->m[u][1] + r), x[c]->half[1]);
            } else if (min) {
                *part = vfmaq_n_f32(*part, vld1q_f32(w->m[u][0] + r), x[c]->sum);
            }
            acc[c][i % 2] = vfmaq_n_f32(acc[c][i % 2], *part, x[c]->d);
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        vst1q_f32(sums[c], acc[c][0]);
        vst1q_f32(sums[c] + 4, acc[c][1]);
    }
}

/* All columns against one panel, in tiles of 4, then 2, then 1. */
INLINE void multiply_panel(float (*sums)[ROWS], const panel *w, const uint8_t *acts,
                           size_t act_bytes, size_t n_units, size_t n_cols, bool two_scales,
                           bool min) {
    size_t c = 0;
#define TILES(width)                                                                               \
    for (; c + (width) <= n_cols; c += (width)) {                                                  \
        panel_tile(sums + c, w, acts + c * act_bytes, act_bytes, n_units, (width), two_scales,     \
                   min);                                                                           \
    }
    TILES(4)
    TILES(2)
    TILES(1)
#undef TILES
}

/* One function for each kind of panel, not for each type. */
#define MULTIPLY(name, two_scales, min)                                                            \
    static __attribute__((noinline)) void name(float(*sums)[ROWS], const panel *w,                 \
                                               const uint8_t *acts, size_t act_bytes,              \
                                               size_t n_units, size_t n_cols) {                    \
        multiply_panel(sums, w, acts, act_bytes, n_units, n_cols, two_scales, min);                \
    }

MULTIPLY(multiply_plain, false, false)
MULTIPLY(multiply_min, false, true)
MULTIPLY(multiply_two, true, false)
MULTIPLY(multiply_two_min, true, true)
#undef MULTIPLY

INLINE void matmul_panels(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                          size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                          size_t n_k, pe_dtype dtype) {
    const size_t n_units = n_k / PE_BLOCK;
    panel w;
    float sums[MAX_COLS][ROWS];
    for (size_t r = 0; r < n_rows; r += ROWS) {
        const uint8_t *rows[ROWS];
        const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, ROWS);
        for (size_t c = 0; c < n_cols; c += MAX_COLS) {
            const size_t n_shared = PE_MIN(n_cols - c, (size_t)MAX_COLS);
            memset(sums, 0, n_shared * sizeof *sums);
            for (size_t u = 0; u < n_units; u += UNITS) {
                const size_t n = PE_MIN(n_units - u, (size_t)UNITS);
                fill_panel(&w, rows, u, n, dtype);
                const uint8_t *x = (const uint8_t *)acts + c * act_bytes + u * sizeof(pe_act_block);
                (has_two_scales(dtype) ? (has_min(dtype) ? multiply_two_min : multiply_two)
                 : has_min(dtype)      ? multiply_min
                                       : multiply_plain)(sums, &w, x, act_bytes, n, n_shared);
            }
            for (size_t i = 0; i < n_shared; i++) {
                memcpy(out + (c + i) * out_stride + r, sums[i], n_valid * sizeof **sums);
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
