/* One column: rows of quantized weights where they lie, eight at a time, each walked from
 * end to end, so that memory is read in one stream. Decoding is this file.
 *
 * A row gives one float per unit, s of pe_kernels.h, eight units in lanes. Eight rows'
 * floats are then transposed, and every row adds its units up in order in its own lane.
 * The including file says how 32 products become eight partial sums: dot_partial.
 */
#ifndef PE_X86_ROWS_H
#define PE_X86_ROWS_H

#include "formats.h"

#define ROW_GROUP 8

/* The column in the form that all rows want. */
typedef struct column {
    float d[MAX_UNITS];
    int32_t start[2][MAX_UNITS];  // the magic bits, less the offset times the sum
    float sum[2][MAX_UNITS];
    int8_t q[MAX_UNITS][PE_BLOCK] __attribute__((aligned(64)));
} column;

/* Exact sums over the first and the second 16 weights of eight units at p. x: [unit][32]. Units
 * past n_valid repeat the last valid one. */
INLINE void dot_units(__m256i *first, __m256i *second, const uint8_t *p, const int8_t *x,
                      size_t n_valid, pe_dtype dtype);

/* Where dot_units wants half h of unit u. */
INLINE size_t place_of(size_t u, size_t h, pe_dtype dtype);

/* Whether dot_units leaves the offset in; else it gives the sums of the signed weights. */
INLINE bool subtracts_offset(pe_dtype dtype);

/* dot_units from eight registers of eight partial sums, 0-3 of each those of the first
 * 16 weights. */
INLINE void add_partial(__m256i *first, __m256i *second, const __m256i *part) {
    const __m256i a =
        _mm256_hadd_epi32(_mm256_hadd_epi32(part[0], part[1]), _mm256_hadd_epi32(part[2], part[3]));
    const __m256i b =
        _mm256_hadd_epi32(_mm256_hadd_epi32(part[4], part[5]), _mm256_hadd_epi32(part[6], part[7]));
    *first = _mm256_permute2x128_si256(a, b, 0x20);
    *second = _mm256_permute2x128_si256(a, b, 0x31);
}

INLINE void read_column(column *out, const pe_act_block *x, size_t n_units, pe_dtype dtype) {
    const float offset = subtracts_offset(dtype) ? (float)offset_of(dtype) : 0.0f;
    for (size_t u = 0; u < n_units; u++) {
        out->d[u] = x[u].d;
        for (size_t h = 0; h < 2; h++) {
            memcpy(&out->q[0][0] + place_of(u, h, dtype), x[u].q + 16 * h, 16);
        }
        out->sum[0][u] = has_two_scales(dtype) ? x[u].half[0] : x[u].sum;
        out->sum[1][u] = x[u].half[1];
    }
    for (size_t u = 0; u < n_units; u++) {
        for (size_t h = 0; h < 2; h++) {
            const float start = PE_SUM_MAGIC - offset * out->sum[h][u];
            memcpy(&out->start[h][u], &start, sizeof start);
        }
    }
}

INLINE __m256 scaled_sum(__m256i magic_sum, __m256 d) {
    const __m256 f = _mm256_castsi256_ps(magic_sum);
    return _mm256_fmsub_ps(f, d, _mm256_mul_ps(d, _mm256_set1_ps(PE_SUM_MAGIC)));
}

/* Even and odd elements of 16 floats. */
INLINE __m256 every_other(const float *p, size_t odd) {
    const __m256 a = _mm256_loadu_ps(p);
    const __m256 b = _mm256_loadu_ps(p + 8);
    const __m256 v = odd == 0 ? _mm256_shuffle_ps(a, b, 0x88) : _mm256_shuffle_ps(a, b, 0xdd);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
}

INLINE __m256i load_i32(const int32_t *p) {
    return _mm256_loadu_si256((const void *)p);
}

/* Scales and minimums of eight units: of the units, or of their first and second halves. */
typedef struct scales {
    __m256 d[2];
    __m256 m[2];
} scales;

INLINE scales load_scales(const uint8_t *p, size_t n_valid, pe_dtype dtype) {
    scales out;
    if (has_f16_blocks(dtype)) {
        out.d[0] = eight_f16(p, block_bytes(dtype), n_valid);
        if (has_min(dtype)) {
            out.m[0] = eight_f16(p + offsetof(pe_block_q4_1, m), block_bytes(dtype), n_valid);
        }
        return out;
    }
    float d[2 * UNITS];
    float m[2 * UNITS];
    unpack_scales(d, m, p, n_valid, dtype);
    if (has_two_scales(dtype)) {
        for (size_t h = 0; h < 2; h++) {
            out.d[h] = every_other(d, h);
            if (has_min(dtype)) {
                out.m[h] = every_other(m, h);
            }
        }
    } else {
        out.d[0] = _mm256_loadu_ps(d);
        if (has_min(dtype)) {
            out.m[0] = _mm256_loadu_ps(m);
        }
    }
    return out;
}

/* s of eight units, u on. */
INLINE __m256 eight_units(const uint8_t *p, const column *col, size_t u, size_t n_valid,
                          pe_dtype dtype) {
    __m256i first;
    __m256i second;
    const scales w = load_scales(p, n_valid, dtype);
    dot_units(&first, &second, p, col->q[u], n_valid, dtype);
    if (has_two_scales(dtype)) {
        __m256 s = _mm256_add_ps(
            scaled_sum(_mm256_add_epi32(first, load_i32(col->start[0] + u)), w.d[0]),
            scaled_sum(_mm256_add_epi32(second, load_i32(col->start[1] + u)), w.d[1]));
        if (has_min(dtype)) {
            s = _mm256_fmadd_ps(_mm256_loadu_ps(col->sum[0] + u), w.m[0], s);
            s = _mm256_fmadd_ps(_mm256_loadu_ps(col->sum[1] + u), w.m[1], s);
        }
        return s;
    }
    const __m256i both = _mm256_add_epi32(first, second);
    __m256 s = scaled_sum(_mm256_add_epi32(both, load_i32(col->start[0] + u)), w.d[0]);
    if (has_min(dtype)) {
        s = _mm256_fmadd_ps(_mm256_loadu_ps(col->sum[0] + u), w.m[0], s);
    }
    return s;
}

/* acc[row] = fma(s[row][i], d[i], acc[row]) for i below n. */
INLINE __m256 add_units(__m256 acc, float (*s)[MAX_UNITS], size_t u, const float *d, size_t n) {
    __m256 pair[8];
    __m256 quad[8];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {  // rows i and i + 4 side by side, columns 0-3 and 4-7
        const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(s[i] + u)),
                                                _mm_loadu_ps(s[i + 4] + u), 1);
        const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(s[i] + u + 4)),
                                                 _mm_loadu_ps(s[i + 4] + u + 4), 1);
        pair[i] = low;
        pair[4 + i] = high;
    }
#pragma GCC unroll 2
    for (size_t h = 0; h < 8; h += 4) {
        const __m256 a = _mm256_unpacklo_ps(pair[h], pair[h + 1]);
        const __m256 b = _mm256_unpackhi_ps(pair[h], pair[h + 1]);
        const __m256 c = _mm256_unpacklo_ps(pair[h + 2], pair[h + 3]);
        const __m256 e = _mm256_unpackhi_ps(pair[h + 2], pair[h + 3]);
        quad[h] = _mm256_shuffle_ps(a, c, 0x44);
        quad[h + 1] = _mm256_shuffle_ps(a, c, 0xee);
        quad[h + 2] = _mm256_shuffle_ps(b, e, 0x44);
        quad[h + 3] = _mm256_shuffle_ps(b, e, 0xee);
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < UNITS; i++) {
        if (i < n) {
            acc = _mm256_fmadd_ps(quad[i], _mm256_set1_ps(d[i]), acc);
        }
    }
    return acc;
}

/* A core that computes between its loads has too few of them under way for the memory's
 * rate, so it asks ahead: rows follow each other. Far ahead into the second-level cache,
 * of which many requests fit, and from there near ahead into the first. */
#define FAR_BYTES 16384
#define NEAR_BYTES 1024

INLINE void prefetch_ahead(const uint8_t *p, size_t n_bytes) {
    // An address behind the mapping is no fault for a prefetch; as an integer it is no
    // undefined pointer either.
    const uintptr_t at = (uintptr_t)p;
    for (size_t i = 0; i < n_bytes; i += PE_CACHE_LINE) {
        _mm_prefetch((const char *)(at + FAR_BYTES + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(at + NEAR_BYTES + i), _MM_HINT_T0);
    }
}

/* One row's units, s, written to out. */
INLINE void row_units(float *out, const uint8_t *row, const column *col, size_t n_units,
                      pe_dtype dtype) {
    for (size_t u = 0; u < n_units; u += UNITS, row += units_bytes(dtype)) {
        prefetch_ahead(row, units_bytes(dtype));
        // Two calls, for the first of which the number of units is a constant.
        const __m256 s = n_units - u >= UNITS ? eight_units(row, col, u, UNITS, dtype)
                                              : eight_units(row, col, u, n_units - u, dtype);
        _mm256_storeu_ps(out + u, s);
    }
}

INLINE void matvec_rows(float *out, const void *weights, size_t row_bytes, size_t n_rows,
                        const pe_act_block *x, size_t n_k, pe_dtype dtype) {
    column col;
    float s[ROW_GROUP][MAX_UNITS];
    const size_t n_units = n_k / PE_BLOCK;
    for (size_t first = 0; first < n_units; first += MAX_UNITS) {
        const size_t n = PE_MIN(n_units - first, (size_t)MAX_UNITS);
        const size_t at = first / UNITS * units_bytes(dtype);
        read_column(&col, x + first, n, dtype);
        for (size_t r = 0; r < n_rows; r += ROW_GROUP) {
            const size_t n_valid = PE_MIN(n_rows - r, (size_t)ROW_GROUP);
            for (size_t i = 0; i < n_valid; i++) {
                const uint8_t *row = (const uint8_t *)weights + (r + i) * row_bytes + at;
                row_units(s[i], row, &col, n, dtype);
            }
            float sums[ROW_GROUP] = {0};
            if (first > 0) {
                memcpy(sums, out + r, n_valid * sizeof *sums);
            }
            __m256 acc = _mm256_loadu_ps(sums);
            size_t u = 0;
            for (; u + UNITS <= n; u += UNITS) {
                acc = add_units(acc, s, u, col.d + u, UNITS);
            }
            if (u < n) {
                acc = add_units(acc, s, u, col.d + u, n - u);
            }
            _mm256_storeu_ps(sums, acc);
            memcpy(out + r, sums, n_valid * sizeof *sums);
        }
    }
}

#endif
