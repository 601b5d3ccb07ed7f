/* What SDOT and SMMLA share. One column: four rows by SDOT. Several: 8 rows by 8 units are
 * unpacked once into an int8 panel, which one micro-kernel multiplies, whatever type the
 * weights had. The including file says how the integers of four rows lie in a panel and how
 * products are summed.
 */
#ifndef PE_ARM_PANELS_H
#define PE_ARM_PANELS_H

#include "rows.h"

#define ROWS 8        // of a panel: two registers of four lanes
#define TILE_COLS 4   // 8 integer and 8 float sums, 4 activations, 2 weights of 32 registers
#define MAX_COLS 256  // columns that share an unpacked panel: 8 KB of sums

typedef struct panel {
    int8_t q[UNITS][PE_BLOCK * ROWS];
    float d[UNITS][2][ROWS];
    float start[UNITS][2][ROWS];  // -(PE_SUM_MAGIC * d), where a scaled sum starts
    float m[UNITS][2][ROWS];
} panel;

/* Eight floats from memory, each time anew: a copy would take one of the two ports that the
 * products need, loads have their own. */
INLINE void load_eight(float32x4_t out[2], const float *from) {
    __asm__ volatile("ldp %q0, %q1, %2"
                     : "=w"(out[0]), "=w"(out[1])
                     : "Q"(*(const float(*)[ROWS])from));
}

/* Eight integer sums of no products: the floats whose bits are PE_SUM_MAGIC_BITS. */
INLINE void start_sums(int32x4_t *low, int32x4_t *high) {
    static const float start[ROWS] = {
        PE_SUM_MAGIC, PE_SUM_MAGIC, PE_SUM_MAGIC, PE_SUM_MAGIC,
        PE_SUM_MAGIC, PE_SUM_MAGIC, PE_SUM_MAGIC, PE_SUM_MAGIC,
    };
    float32x4_t sums[2];
    load_eight(sums, start);
    *low = vreinterpretq_s32_f32(sums[0]);
    *high = vreinterpretq_s32_f32(sums[1]);
}

/* ---- one column ------------------------------------------------------- */

/* Two registers whose lanes add up to PE_SUM_MAGIC_BITS each. */
INLINE void start_lanes(int32x4_t *first, int32x4_t *second) {
    static const float start[8] = {PE_SUM_MAGIC, 0, 0, 0, PE_SUM_MAGIC, 0, 0, 0};
    float32x4_t sums[2];
    load_eight(sums, start);
    *first = vreinterpretq_s32_f32(sums[0]);
    *second = vreinterpretq_s32_f32(sums[1]);
}

INLINE void dot_rows(int32x4_t *sums, const row_units *rows, const int8x16_t *x, pe_dtype dtype) {
    int32x4_t v[2][4];
#pragma GCC unroll 2
    for (size_t r = 0; r < 4; r += 2) {
        start_lanes(&v[0][r], &v[0][r + 1]);
        if (has_two_scales(dtype)) {
            start_lanes(&v[1][r], &v[1][r + 1]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[0][r] = vdotq_s32(v[0][r], rows->w[r][0], x[0]);
        v[1][r] = vdotq_s32(has_two_scales(dtype) ? v[1][r] : v[0][r], rows->w[r][1], x[1]);
    }
    sums[0] = add_each(has_two_scales(dtype) ? v[0] : v[1]);
    if (has_two_scales(dtype)) {
        sums[1] = add_each(v[1]);
    }
}

/* ---- the panel -------------------------------------------------------- */

/* Puts 32 weights of rows first to first + 3 where sum_halves looks for them. */
INLINE void pack_rows(int8_t *q, size_t first, const row_units *units);

/* isum[column][rows 0-3, rows 4-7]: the magic bits plus the exact sums over n_halves
 * halves of a unit from half h on. */
INLINE void sum_halves(int32x4_t (*isum)[2], const int8_t *q, size_t h, size_t n_halves,
                       const pe_act_block *const *x, size_t n_tile_cols);

INLINE void fill_panel(panel *out, const uint8_t *const *rows, size_t first_unit, size_t n_units,
                       pe_dtype dtype) {
    for (size_t first = 0; first < ROWS; first += 4) {
        scales_of_four(out->d[0][0] + first, out->m[0][0] + first, ROWS, rows + first, first_unit,
                       n_units, dtype);
        for (size_t u = 0; u < n_units; u++) {
            row_units units;
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; r++) {
                expand(units.w[r], block_of(rows[first + r], first_unit + u, dtype), u, dtype);
            }
            pack_rows(out->q[u], first, &units);
        }
    }
    for (size_t u = 0; u < n_units; u++) {
        for (size_t i = 0; i < (has_two_scales(dtype) ? 2 * ROWS : ROWS); i += 4) {
            const float32x4_t d = vld1q_f32(out->d[u][0] + i);
            vst1q_f32(out->start[u][0] + i, vmulq_n_f32(d, -PE_SUM_MAGIC));
        }
    }
}

/* ---- the tile --------------------------------------------------------- */

/* Adds n_units of the panel times n_tile_cols columns (a constant) to the sums,
 * [column][ROWS]. */
INLINE void panel_tile(float (*sums)[ROWS], const panel *w, const uint8_t *acts, size_t act_bytes,
                       size_t n_units, size_t n_tile_cols, bool two_scales, bool min) {
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
            sum_halves(isum, w->q[u], h, two_scales ? 1 : 2, x, n_tile_cols);
            const float32x4_t d[2] = {vld1q_f32(w->d[u][h]), vld1q_f32(w->d[u][h] + 4)};
#pragma GCC unroll 4
            for (size_t c = 0; c < n_tile_cols; c++) {
                float32x4_t part[2];
                load_eight(part, w->start[u][h]);
#pragma GCC unroll 2
                for (size_t v = 0; v < 2; v++) {
                    part[v] = vfmaq_f32(part[v], vreinterpretq_f32_s32(isum[c][v]), d[v]);
                    s[c][v] = h == 0 ? part[v] : vaddq_f32(s[c][v], part[v]);
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

#endif
