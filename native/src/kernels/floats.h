/* Products of float weights with any number of columns, and the norm, whose sum of squares
 * is such a product. The definition's virtual lanes are neighbours in k, and so are those
 * of a register: weights are read where they lie and nothing is transposed.
 *
 * A tile is two rows and as many columns as registers have sums for. Two registers of
 * weights are widened and meet every column. Activations of a slice of k are gathered side
 * by side first: columns that lie a power of two apart would share the few ways of one
 * cache set. While a block of rows uses the slice, its sums wait in memory, as lanes.
 *
 * The including file says what a register is: vec of WIDTH floats, its register class for
 * asm, VEC_CLASS, MAX_SUMS registers for sums, the operations declared below, and LEVEL, its
 * suffix.
 */
#ifndef PE_FLOATS_H
#define PE_FLOATS_H

#include <math.h>

#define TILE_ROWS 2
#define PARTS (PE_LANES / WIDTH)  // registers of a sum
#define TILE_COLS (MAX_SUMS / TILE_ROWS)
#define BLOCK_ROWS 64       // rows that use a slice: sums of 48 KB or less
#define SLICE_FLOATS 4096u  // activations of a slice: 16 KB, half a first-level cache

INLINE vec vec_zero(void);
INLINE vec vec_load(const float *x);
INLINE void vec_store(float *out, vec v);
INLINE vec vec_fma(vec a, vec b, vec c);

/* WIDTH weights of a float type, widened; i counts weights. */
INLINE vec vec_widen(const void *weights, size_t i, pe_dtype dtype);

/* out[i] = the sum of the PE_LANES floats from lanes + PE_LANES * i on, in halves. */
INLINE void add_lanes_of_four(float *out, const float *lanes);

INLINE size_t item_bytes(pe_dtype dtype) {
    return dtype == PE_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* v in a register: GCC would load it anew for each product, or spill it. */
INLINE vec held(vec v) {
    __asm__("" : "+" VEC_CLASS(v));
    return v;
}

/* Asks for the line at p + offset, for the first level or the second. An address behind the
 * mapping is no fault for a prefetch; as an integer it is no undefined pointer either. */
INLINE void prefetch(const void *p, size_t offset, bool first_level) {
    const void *at = (const void *)((uintptr_t)p + offset);
    if (first_level) {
        __builtin_prefetch(at, 0, 3);
    } else {
        __builtin_prefetch(at, 0, 2);
    }
}

/* n_steps times PE_LANES products, the lanes of n_parts registers of each sum from part
 * on. x: [step][column][lane]; sums: [row][column][lane], not read when first; widths are
 * constants. */
INLINE void tile_part(float *sums, const uint8_t *const *rows, size_t ahead, const float *x,
                      size_t n_steps, bool first, size_t n_cols, size_t part, size_t n_parts,
                      pe_dtype dtype) {
    vec acc[MAX_SUMS];
    const size_t n_acc = TILE_ROWS * n_cols * n_parts;
#pragma GCC unroll 24
    for (size_t i = 0; i < n_acc; i++) {
        acc[i] = first ? vec_zero()
                       : vec_load(sums + i / n_parts * PE_LANES + (part + i % n_parts) * WIDTH);
    }
    for (size_t s = 0; s < n_steps; s++) {
        if (part == 0) {
#pragma GCC unroll 2
            for (size_t r = 0; r < TILE_ROWS; r++) {
                prefetch(rows[r], ahead + s * PE_LANES * item_bytes(dtype), n_cols == TILE_COLS);
            }
        }
#pragma GCC unroll 4
        for (size_t p = 0; p < n_parts; p++) {
            const size_t lane = (part + p) * WIDTH;
            vec w[TILE_ROWS];
#pragma GCC unroll 2
            for (size_t r = 0; r < TILE_ROWS; r++) {
                w[r] = held(vec_widen(rows[r], s * PE_LANES + lane, dtype));
            }
#pragma GCC unroll 12
            for (size_t c = 0; c < n_cols; c++) {
                const vec v = held(vec_load(x + (s * n_cols + c) * PE_LANES + lane));
#pragma GCC unroll 2
                for (size_t r = 0; r < TILE_ROWS; r++) {
                    vec *sum = &acc[(r * n_cols + c) * n_parts + p];
                    *sum = vec_fma(w[r], v, *sum);
                }
            }
        }
    }
#pragma GCC unroll 24
    for (size_t i = 0; i < n_acc; i++) {
        vec_store(sums + i / n_parts * PE_LANES + (part + i % n_parts) * WIDTH, acc[i]);
    }
}

/* Weights behind the last whole step of TILE_ROWS rows, zeros behind them. */
typedef struct row_ends {
    uint32_t w[TILE_ROWS][PE_LANES];
} row_ends;

INLINE void copy_ends(row_ends *out, const uint8_t **rows, size_t n_bytes) {
    *out = (row_ends){0};
    for (size_t r = 0; r < TILE_ROWS; r++) {
        memcpy(out->w[r], rows[r], n_bytes);
        rows[r] = (const uint8_t *)out->w[r];
    }
}

/* x[step][column][lane] from n_valid columns; zeros behind them and behind n_k. */
INLINE void gather(float *x, const uint8_t *acts, size_t act_bytes, size_t n_valid, size_t n_k,
                   size_t n_cols) {
    for (size_t c = 0; c < n_cols; c++) {
        const float *column = (const float *)(const void *)(acts + c * act_bytes);
        for (size_t k = 0; k < n_k; k += PE_LANES) {
            float *out = x + k * n_cols + c * PE_LANES;
            if (c < n_valid && n_k - k >= PE_LANES) {
                memcpy(out, column + k, PE_LANES * sizeof *out);
            } else {
                memset(out, 0, PE_LANES * sizeof *out);
                if (c < n_valid) {
                    memcpy(out, column + k, (n_k - k) * sizeof *out);
                }
            }
        }
    }
}

/* Up to BLOCK_ROWS rows times n_valid columns, computed as n_cols (a constant). */
INLINE void float_block(float *out, size_t out_stride, const uint8_t *weights, size_t row_bytes,
                        size_t n_rows, const uint8_t *acts, size_t act_bytes, size_t n_valid,
                        size_t n_k, size_t n_cols, pe_dtype dtype) {
    float sums[BLOCK_ROWS * TILE_COLS * PE_LANES] __attribute__((aligned(PE_CACHE_LINE)));
    float gathered[SLICE_FLOATS] __attribute__((aligned(PE_CACHE_LINE)));
    const size_t n_whole = n_k / PE_LANES * PE_LANES;
    const size_t slice = SLICE_FLOATS / n_cols / PE_LANES * PE_LANES;
    const size_t n_room = TILE_COLS / n_cols;
    const size_t n_parts = PE_MIN(PARTS, n_room >= 4 ? 4 : n_room >= 2 ? 2 : 1);
    if (n_cols == 1) {  // lanes are added up four sums at a time, and a tile has two
        memset(sums, 0, (n_rows + 3) * PE_LANES * sizeof *sums);
    }
    size_t k = 0;
    do {
        const bool ends = k == n_whole;
        const size_t n = PE_MIN(slice, (ends ? n_k : n_whole) - k);
        const float *x = (const float *)(const void *)acts + k;
        if (n_cols > 1 || ends) {
            gather(gathered, acts + k * sizeof(float), act_bytes, n_valid, n, n_cols);
            x = gathered;
        }
        for (size_t r = 0; r < n_rows; r += TILE_ROWS) {
            float *sum = sums + r * n_cols * PE_LANES;
            const uint8_t *rows[TILE_ROWS];
            row_ends copies;
            for (size_t i = 0; i < TILE_ROWS; i++) {  // past the last: the last again
                rows[i] = weights + PE_MIN(r + i, n_rows - 1) * row_bytes + k * item_bytes(dtype);
            }
            if (n_cols == TILE_COLS && r / TILE_ROWS < n_cols) {
                // A column of the next slice, or of the next tile's first.
                const uint8_t *column = acts + r / TILE_ROWS * act_bytes;
                const size_t next = k + n < n_k ? (k + n) * sizeof(float) : TILE_COLS * act_bytes;
                for (size_t at = 0; at < n * sizeof(float); at += PE_CACHE_LINE) {
                    prefetch(column, next + at, false);
                }
            }
            if (ends) {
                copy_ends(&copies, rows, n * item_bytes(dtype));
            }
#pragma GCC unroll 4
            for (size_t part = 0; part < PARTS; part += n_parts) {
                tile_part(sum, rows, TILE_ROWS * row_bytes, x, (n + PE_LANES - 1) / PE_LANES,
                          k == 0, n_cols, part, n_parts, dtype);
            }
            if (k + n == n_k) {
                float totals[MAX_SUMS];
                for (size_t i = 0; i < TILE_ROWS * n_cols; i += 4) {
                    add_lanes_of_four(totals + i, sum + i * PE_LANES);
                }
                for (size_t c = 0; c < n_valid; c++) {
                    for (size_t i = 0; i < PE_MIN(n_rows - r, (size_t)TILE_ROWS); i++) {
                        out[c * out_stride + r + i] = totals[i * n_cols + c];
                    }
                }
            }
        }
        k += n;
    } while (k < n_k);
}

INLINE void matmul_float(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                         size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                         size_t n_k, pe_dtype dtype) {
    for (size_t r = 0; r < n_rows; r += BLOCK_ROWS) {
        const uint8_t *w = (const uint8_t *)weights + r * row_bytes;
        const size_t n_block = PE_MIN(n_rows - r, (size_t)BLOCK_ROWS);
        for (size_t c = 0; c < n_cols; c += TILE_COLS) {
            const uint8_t *x = (const uint8_t *)acts + c * act_bytes;
            const size_t n = PE_MIN(n_cols - c, (size_t)TILE_COLS);
#define BLOCK(width)                                                                               \
    float_block(out + c * out_stride + r, out_stride, w, row_bytes, n_block, x, act_bytes, n, n_k, \
                (width), dtype)
            if (n == 1) {
                BLOCK(1);
            } else if (n == 2) {
                BLOCK(2);
            } else if (n <= 4) {
                BLOCK(4);
            } else if (n <= 6) {
                BLOCK(6);
            } else if (TILE_COLS > 6 && n <= 8) {
                BLOCK(PE_MIN(8, TILE_COLS));
            } else {
                BLOCK(TILE_COLS);
            }
#undef BLOCK
        }
    }
}

#define GLUE(a, b, c) a##b##_##c
#define NAME(kind, name, level) GLUE(kind, name, level)

#define PRODUCTS(name, dtype)                                                                      \
    static void NAME(matmul_, name, LEVEL)(float *out, size_t out_stride, const void *weights,     \
                                           size_t row_bytes, size_t n_rows, const void *acts,      \
                                           size_t act_bytes, size_t n_cols, size_t n_k) {          \
        matmul_float(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k,    \
                     dtype);                                                                       \
    }

PRODUCTS(f32, PE_DTYPE_F32)
PRODUCTS(f16, PE_DTYPE_F16)
PRODUCTS(bf16, PE_DTYPE_BF16)
#undef PRODUCTS

static void NAME(rms_, norm, LEVEL)(float *out, const float *x, const float *weight, size_t n,
                                    float eps) {
    float sum_of_squares;
    NAME(matmul_, f32, LEVEL)(&sum_of_squares, 1, x, 0, 1, x, 0, 1, n);
    const float r = 1.0f / sqrtf(sum_of_squares / (float)n + eps);
    for (size_t i = 0; i < n; i++) {
        out[i] = (x[i] * r) * weight[i];
    }
}

/* One row of ssm_scan; its sum's lanes go to lanes[PE_LANES], which are zeros. */
INLINE void scan_row(float *lanes, float *state, float x, const float *b, const float *c,
                     float decay, size_t n) {
    float same[2][PE_LANES];
    for (size_t l = 0; l < PE_LANES; l++) {
        same[0][l] = x;
        same[1][l] = decay;
    }
    const vec xs = vec_load(same[0]);
    const vec decays = vec_load(same[1]);
    vec sums[PARTS];
#pragma GCC unroll 4
    for (size_t p = 0; p < PARTS; p++) {
        sums[p] = vec_zero();
    }
    size_t i = 0;
    for (; n - i >= PE_LANES; i += PE_LANES) {
#pragma GCC unroll 4
        for (size_t p = 0; p < PARTS; p++) {
            const size_t at = i + p * WIDTH;
            const vec v = vec_fma(vec_load(b + at), xs, vec_load(state + at) * decays);
            vec_store(state + at, v);
            sums[p] = vec_fma(v, vec_load(c + at), sums[p]);
        }
    }
#pragma GCC unroll 4
    for (size_t p = 0; p < PARTS; p++) {
        vec_store(lanes + p * WIDTH, sums[p]);
    }
    for (; i < n; i++) {
        state[i] = fmaf(b[i], x, state[i] * decay);
        lanes[i % PE_LANES] = fmaf(state[i], c[i], lanes[i % PE_LANES]);
    }
}

static void NAME(ssm_, scan, LEVEL)(float *out, float *state, const float *x, const float *b,
                                    const float *c, float decay, size_t n_rows, size_t n) {
    for (size_t r = 0; r < n_rows; r += 4) {
        float lanes[4 * PE_LANES] = {0};
        float totals[4];
        const size_t n_here = PE_MIN(n_rows - r, (size_t)4);
        for (size_t i = 0; i < n_here; i++) {
            scan_row(lanes + i * PE_LANES, state + (r + i) * n, x[r + i], b, c, decay, n);
        }
        add_lanes_of_four(totals, lanes);
        memcpy(out + r, totals, n_here * sizeof *out);
    }
}

/* The sum of x in lanes. */
INLINE float sum_lanes(const float *x, size_t n) {
    float lanes[4 * PE_LANES] __attribute__((aligned(PE_CACHE_LINE))) = {0};
    float totals[4];
    size_t i = 0;
    for (; i + PE_LANES <= n; i += PE_LANES) {
        for (size_t l = 0; l < PE_LANES; l++) {
            lanes[l] += x[i + l];
        }
    }
    for (size_t l = 0; i + l < n; l++) {
        lanes[l] += x[i + l];
    }
    add_lanes_of_four(totals, lanes);
    return totals[0];
}

static void NAME(layer_, norm, LEVEL)(float *out, const float *x, const float *weight,
                                      const float *bias, size_t n, float eps) {
    const float mean = sum_lanes(x, n) / (float)n;
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] - mean;
    }
    float sum_of_squares;
    NAME(matmul_, f32, LEVEL)(&sum_of_squares, 1, out, 0, 1, out, 0, 1, n);
    const float r = 1.0f / sqrtf(sum_of_squares / (float)n + eps);
    for (size_t i = 0; i < n; i++) {
        out[i] = (out[i] * r) * weight[i] + bias[i];
    }
}

static void NAME(set_, floats, LEVEL)(pe_kernels *kernels) {
#define SET(name, dtype)                                                                           \
    kernels->matvec[dtype] = kernels->matmul[dtype] = NAME(matmul_, name, LEVEL);
    SET(f32, PE_DTYPE_F32)
    SET(f16, PE_DTYPE_F16)
    SET(bf16, PE_DTYPE_BF16)
#undef SET
    kernels->rms_norm = NAME(rms_, norm, LEVEL);
    kernels->ssm_scan = NAME(ssm_, scan, LEVEL);
    kernels->layer_norm = NAME(layer_, norm, LEVEL);
}

#endif
