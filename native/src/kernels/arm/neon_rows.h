/* Products of quantized weights for Arm, four rows in lanes: what neon.c and
 * dotprod.c have in common.
 *
 * All is static: the two files compile it for different instruction sets, and each
 * defines how 16 and 32 products become sums, dot_16 and dot_32. Everything that
 * depends on dtype folds away: it is a constant in every caller.
 */
#ifndef PE_NEON_ROWS_H
#define PE_NEON_ROWS_H

#include "pe_kernels.h"

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))

/* 32 weights each of four rows. */
typedef struct row_blocks {
    int8x16_t w[4][2];   // q in Q4_0 (with offset 8) and Q4_1, else the weight's integer
    float32x4_t d;       // scale of each row
    float32x4_t m;       // minimum of each row, Q4_1 only
    int32x4_t scale[2];  // of the sub-blocks of 16, Q6_K only
} row_blocks;

/* The exact sums, one of four rows per lane, of w[r][half] x and of w[r][0] x[0] +
 * w[r][1] x[1]; x is never -128. dot_16 is for weights from -32 to 31. */
INLINE int32x4_t dot_16(const row_blocks *rows, size_t half, int8x16_t x);
INLINE int32x4_t dot_32(const row_blocks *rows, const int8x16_t *x, pe_dtype dtype);

/* Adds up the lanes of four registers: lane r of the result is the sum of v[r]. */
INLINE int32x4_t add_each(const int32x4_t *v) {
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

/* The block that holds weights 32 b to 32 b + 31 of a row. */
INLINE const uint8_t *block_of(const uint8_t *row, size_t b, pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return row + b * sizeof(pe_block_q4_0);
    case PE_DTYPE_Q4_1: return row + b * sizeof(pe_block_q4_1);
    case PE_DTYPE_Q8_0: return row + b * sizeof(pe_block_q8_0);
    default: return row + b / 8 * sizeof(pe_block_q6_k);
    }
}

/* Two bytes at the same place of four blocks. */
INLINE uint16x4_t gather_u16(const uint8_t *const *blocks, size_t at) {
    uint16x4_t v = vdup_n_u16(0);
    v = vld1_lane_u16((const void *)(blocks[0] + at), v, 0);
    v = vld1_lane_u16((const void *)(blocks[1] + at), v, 1);
    v = vld1_lane_u16((const void *)(blocks[2] + at), v, 2);
    return vld1_lane_u16((const void *)(blocks[3] + at), v, 3);
}

INLINE float32x4_t gather_f16(const uint8_t *const *blocks, size_t at) {
    return vcvt_f32_f16(vreinterpret_f16_u16(gather_u16(blocks, at)));
}

INLINE void unpack_nibbles(int8x16_t *out, const uint8_t *nibbles) {
    const uint8x16_t packed = vld1q_u8(nibbles);
    out[0] = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
    out[1] = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
}

INLINE void unpack_q6_k(int8x16_t *out, const pe_block_q6_k *super, size_t b) {
    const size_t n = b % 4;
    const uint8_t *low = super->low + 64 * (b % 8 / 4) + 32 * (n % 2);
    const uint8_t *high = super->high + 32 * (b % 8 / 4);
    const int8x16_t low_shift = vdupq_n_s8((int8_t)(-4 * (int)(n / 2)));  // to the right
    const int8x16_t high_shift = vdupq_n_s8((int8_t)(-2 * (int)n));
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++) {
        const uint8x16_t low4 = vshlq_u8(vld1q_u8(low + 16 * i), low_shift);
        const uint8x16_t high2 =
            vandq_u8(vshlq_u8(vld1q_u8(high + 16 * i), high_shift), vdupq_n_u8(3));
        // The insertion keeps the four low bits of low4 alone.
        const int8x16_t q = vreinterpretq_s8_u8(vsliq_n_u8(low4, high2, 4));
        out[i] = vsubq_s8(q, vdupq_n_s8(32));
    }
}

INLINE void unpack_rows(row_blocks *out, const uint8_t *const *rows, size_t b, pe_dtype dtype) {
    const uint8_t *blocks[4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        const uint8_t *block = blocks[r] = block_of(rows[r], b, dtype);
        if (dtype == PE_DTYPE_Q4_0) {
            unpack_nibbles(out->w[r], block + offsetof(pe_block_q4_0, q));
        } else if (dtype == PE_DTYPE_Q4_1) {
            unpack_nibbles(out->w[r], block + offsetof(pe_block_q4_1, q));
        } else if (dtype == PE_DTYPE_Q8_0) {
            out->w[r][0] = vld1q_s8(((const pe_block_q8_0 *)block)->q);
            out->w[r][1] = vld1q_s8(((const pe_block_q8_0 *)block)->q + 16);
        } else {
            unpack_q6_k(out->w[r], (const void *)block, b);
        }
    }
    out->d = gather_f16(blocks, dtype == PE_DTYPE_Q6_K ? offsetof(pe_block_q6_k, d) : 0);
    if (dtype == PE_DTYPE_Q4_1) {
        out->m = gather_f16(blocks, offsetof(pe_block_q4_1, m));
    }
    if (dtype == PE_DTYPE_Q6_K) {
        // Both sub-blocks' scales of a row are neighbours: one lane of 32 bits.
        const uint16x4_t pairs = gather_u16(blocks, offsetof(pe_block_q6_k, scale) + 2 * (b % 8));
        const int32x4_t both = vreinterpretq_s32_s16(vmovl_s8(vreinterpret_s8_u16(pairs)));
        out->scale[0] = vshrq_n_s32(vshlq_n_s32(both, 16), 16);
        out->scale[1] = vshrq_n_s32(both, 16);
    }
}

/* Four rows against n_tile_cols columns (a constant, at most 4). */
INLINE void row_tile(float32x4_t *out, const uint8_t *const *rows, const uint8_t *acts,
                     size_t act_bytes, size_t n_tile_cols, size_t n_k, pe_dtype dtype) {
    float32x4_t acc[4] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f),
                          vdupq_n_f32(0.0f)};
    for (size_t b = 0; b < n_k / PE_BLOCK; b++) {
        row_blocks blocks;
        unpack_rows(&blocks, rows, b, dtype);
#pragma GCC unroll 4
        for (size_t c = 0; c < n_tile_cols; c++) {
            const pe_act_block *x = (const pe_act_block *)(acts + c * act_bytes) + b;
            const int8x16_t q[2] = {vld1q_s8(x->q), vld1q_s8(x->q + 16)};
            int32x4_t isum;
            if (dtype == PE_DTYPE_Q6_K) {
                isum = vmulq_s32(dot_16(&blocks, 0, q[0]), blocks.scale[0]);
                isum = vmlaq_s32(isum, dot_16(&blocks, 1, q[1]), blocks.scale[1]);
            } else {
                isum = dot_32(&blocks, q, dtype);
            }
            if (dtype == PE_DTYPE_Q4_0) {  // sum of (q - 8) a = sum of q a - 8 sum of a
                isum = vsubq_s32(isum, vshlq_n_s32(vld1q_dup_s32(&x->sum), 3));
            }
            acc[c] = vfmaq_f32(acc[c], vcvtq_f32_s32(isum), vmulq_n_f32(blocks.d, x->d));
            if (dtype == PE_DTYPE_Q4_1) {
                acc[c] = vfmaq_n_f32(acc[c], blocks.m, x->d * (float)x->sum);
            }
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < n_tile_cols; c++) {
        out[c] = acc[c];
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

/* All rows against one column. */
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

#endif
