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
        memcpy(out->q[u], x[u].q, sizeof out->q[u]);
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

/* s of eight units, u on. */
INLINE __m256 eight_units(const uint8_t *p, const column *col, size_t u, const float *d,
                          const float *m, size_t n_valid, pe_dtype dtype) {
    __m256i first;
    __m256i second;
    dot_units(&first, &second, p, col->q[u], n_valid, dtype);
    if (has_two_scales(dtype)) {
        __m256 s = _mm256_add_ps(scaled_sum(_mm256_add_epi32(first, load_i32(col->start[0] + u)),
                                            every_other(d + 2 * u, 0)),
                                 scaled_sum(_mm256_add_epi32(second, load_i32(col->start[1] + u)),
                                            every_other(d + 2 * u, 1)));
        if (has_min(dtype)) {
            s = _mm256_fmadd_ps(_mm256_loadu_ps(col->sum[0] + u), every_other(m + 2 * u, 0), s);
            s = _mm256_fmadd_ps(_mm256_loadu_ps(col->sum[1] + u), every_other(m + 2 * u, 1), s);
        }
        return s;
    }
    const __m256i both = _mm256_add_epi32(first, second);
    __m256 s =
        scaled_sum(_mm256_add_epi32(both, load_i32(col->start[0] + u)), _mm256_loadu_ps(d + u));
    if (has_min(dtype)) {
        s = _mm256_fmadd_ps(_mm256_loadu_ps(col->sum[0] + u), _mm256_loadu_ps(m + u), s);
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

/* Memory is asked for this far ahead: rows follow each other, and the hardware's own
 * prefetching stops at every page. All phases below ask, since a core has few requests
 * under way at a time and loses what it does not use. */
#define PREFETCH_BYTES 8192

/* Asks for n_bytes more, whole lines; *at is how far it has come, as an integer: an
 * address behind the mapping is no fault for a prefetch, nor an undefined pointer. */
INLINE void prefetch_more(uintptr_t *at, size_t n_bytes) {
    const uintptr_t end = *at + n_bytes;
    for (uintptr_t line = *at / PE_CACHE_LINE; line < end / PE_CACHE_LINE; line++) {
        _mm_prefetch((const char *)(line * PE_CACHE_LINE), _MM_HINT_T0);
    }
    *at = end;
}

/* One row's units, s, written to out. */
INLINE void row_units(float *out, const uint8_t *row, const column *col, size_t n_units,
                      uintptr_t *ahead, pe_dtype dtype) {
    float d[2 * MAX_UNITS];
    float m[2 * MAX_UNITS];
    prefetch_more(ahead, units_bytes(dtype) * (n_units / UNITS) / 8);
    if (has_f16_blocks(dtype)) {
        pe_f16 half[MAX_UNITS];
        copy_f16(half, row, block_bytes(dtype), n_units);
        widen_f16(d, half, n_units);
        if (has_min(dtype)) {
            copy_f16(half, row + offsetof(pe_block_q4_1, m), block_bytes(dtype), n_units);
            widen_f16(m, half, n_units);
        }
    } else {
        unpack_scales(d, m, row, n_units, dtype);
    }
    size_t u = 0;
    for (; u + UNITS <= n_units; u += UNITS) {
        prefetch_more(ahead, units_bytes(dtype) * 5 / 8);
        const __m256 s =
            eight_units(row + u / UNITS * units_bytes(dtype), col, u, d, m, UNITS, dtype);
        _mm256_storeu_ps(out + u, s);
    }
    if (u < n_units && !is_super(dtype)) {
        const __m256 s =
            eight_units(row + u / UNITS * units_bytes(dtype), col, u, d, m, n_units - u, dtype);
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
            uintptr_t ahead = (uintptr_t)weights + r * row_bytes + at + PREFETCH_BYTES;
            for (size_t i = 0; i < n_valid; i++) {
                const uint8_t *row = (const uint8_t *)weights + (r + i) * row_bytes + at;
                row_units(s[i], row, &col, n, &ahead, dtype);
            }
            float sums[ROW_GROUP] = {0};
            if (first > 0) {
                memcpy(sums, out + r, n_valid * sizeof *sums);
            }
            __m256 acc = _mm256_loadu_ps(sums);
            size_t u = 0;
            for (; u + UNITS <= n; u += UNITS) {
                prefetch_more(&ahead, ROW_GROUP * units_bytes(dtype) / 4);
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
