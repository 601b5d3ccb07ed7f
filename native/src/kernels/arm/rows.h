/* Products with rows where they lie, four of them in lanes: one column with dot products,
 * any number without. The including file says how 32 products become sums: dot_rows.
 */
#ifndef PE_ARM_ROWS_H
#define PE_ARM_ROWS_H

#include "scales.h"

#define ROW_SLICE 8  // units whose scales are taken together

/* 32 weights of four rows. */
typedef struct row_units {
    int8x16_t w[4][2];
} row_units;

/* The magic bits plus the exact sums of four rows, in lanes: of both halves of x in sums[0],
 * or for types with two scales of each half in its own. x is never -128. */
INLINE void dot_rows(int32x4_t *sums, const row_units *rows, const int8x16_t *x, pe_dtype dtype);

/* Adds up the lanes of four registers: lane r of the result is the sum of v[r]. */
INLINE int32x4_t add_each(const int32x4_t *v) {
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

/* isum * d, rounded once; see PE_SUM_MAGIC. */
INLINE float32x4_t scaled_sum(int32x4_t magic_sum, float32x4_t d) {
    const float32x4_t product = vmulq_n_f32(d, PE_SUM_MAGIC);
    return vfmaq_f32(vnegq_f32(product), vreinterpretq_f32_s32(magic_sum), d);
}

/* Four rows times n_tile_cols columns (a constant), one register of sums a column. */
INLINE void row_tile(float32x4_t *acc, const uint8_t *const *rows, const uint8_t *acts,
                     size_t act_bytes, size_t n_tile_cols, size_t n_k, pe_dtype dtype) {
    const size_t n_units = n_k / PE_BLOCK;
    const size_t n_scales = has_two_scales(dtype) ? 2 : 1;
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        acc[c] = vdupq_n_f32(0.0f);
    }
    for (size_t first = 0; first < n_units; first += ROW_SLICE) {
        float d[ROW_SLICE][2][4];
        float m[ROW_SLICE][2][4];
        const size_t n = PE_MIN(n_units - first, (size_t)ROW_SLICE);
        scales_of_four(d[0][0], m[0][0], 4, rows, first, n, dtype);
        for (size_t u = 0; u < n; u++) {
            row_units units;
#pragma GCC unroll 4
            for (size_t r = 0; r < 4; r++) {
                expand(units.w[r], block_of(rows[r], first + u, dtype), u, dtype);
            }
#pragma GCC unroll 4
            for (size_t c = 0; c < n_tile_cols; c++) {
                const pe_act_block *x = (const pe_act_block *)(acts + c * act_bytes) + first + u;
                const int8x16_t q[2] = {vld1q_s8(x->q), vld1q_s8(x->q + 16)};
                int32x4_t sums[2];
                dot_rows(sums, &units, q, dtype);
                float32x4_t s = scaled_sum(sums[0], vld1q_f32(d[u][0]));
                if (n_scales == 2) {
                    s = vaddq_f32(s, scaled_sum(sums[1], vld1q_f32(d[u][1])));
                }
                if (has_min(dtype) && n_scales == 2) {
                    s = vfmaq_n_f32(s, vld1q_f32(m[u][0]), x->half[0]);
                    s = vfmaq_n_f32(s, vld1q_f32(m[u][1]), x->half[1]);
                } else if (has_min(dtype)) {
                    s = vfmaq_n_f32(s, vld1q_f32(m[u][0]), x->sum);
                }
                acc[c] = vfmaq_n_f32(acc[c], s, x->d);
            }
        }
    }
}

/* Writes the first n_valid of four rows' results. */
INLINE void store_rows(float *out, float32x4_t values, size_t n_valid) {
    if (n_valid == 4) {
        vst1q_f32(out, values);
        return;
    }
    float all[4];
    vst1q_f32(all, values);
    memcpy(out, all, n_valid * sizeof *out);
}

/* Rows past the last are the last one again; their results are dropped. */
INLINE size_t tile_rows(const uint8_t **rows, const void *weights, size_t row_bytes, size_t r,
                        size_t n_rows, size_t n_tile_rows) {
    for (size_t i = 0; i < n_tile_rows; i++) {
        rows[i] = (const uint8_t *)weights + PE_MIN(r + i, n_rows - 1) * row_bytes;
    }
    return PE_MIN(n_rows - r, n_tile_rows);
}

INLINE void matvec_rows(float *out, const void *weights, size_t row_bytes, size_t n_rows,
                        const void *acts, size_t n_k, pe_dtype dtype) {
    for (size_t r = 0; r < n_rows; r += 4) {
        const uint8_t *rows[4];
        const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, 4);
        float32x4_t acc;
        row_tile(&acc, rows, acts, 0, 1, n_k, dtype);
        store_rows(out + r, acc, n_valid);
    }
}

INLINE void matmul_rows(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                        size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                        size_t n_k, pe_dtype dtype) {
    for (size_t r = 0; r < n_rows; r += 4) {
        const uint8_t *rows[4];
        const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, 4);
        size_t c = 0;
        while (c < n_cols) {
            const uint8_t *x = (const uint8_t *)acts + c * act_bytes;
            const size_t n_tile_cols = n_cols - c >= 4 ? 4 : 1;
            float32x4_t acc[4];
            if (n_tile_cols == 4) {
                row_tile(acc, rows, x, act_bytes, 4, n_k, dtype);
            } else {
                row_tile(acc, rows, x, act_bytes, 1, n_k, dtype);
            }
            for (size_t i = 0; i < n_tile_cols; i++) {
                store_rows(out + (c + i) * out_stride + r, acc[i], n_valid);
            }
            c += n_tile_cols;
        }
    }
}

#endif
