/* Several columns: runs of rows are unpacked once into an int8 panel, which one
 * micro-kernel multiplies, whatever type the weights had.
 *
 * In a panel four neighbouring weights of one row lie side by side and rows follow each
 * other, so that one instruction multiplies a register of rows by the same four
 * activations:
 *
 *     q[unit][four of k][row][4]          unsigned bytes, the type's offset added
 *     d[unit][half][row], m[...]          scales and minimums
 *
 * The including file says what a register is: ROWS (rows of a panel), vec and vecf with
 * the operations used below; how many registers hold rows for few columns, FEW_VECS, up
 * to which number of them, FEW_COLS; how many sums fit beside what else a tile needs,
 * TILE_SUMS and, when the sums of two halves are kept, TILE_SUMS_TWO; up to how many columns
 * strips meet in registers, FUSED_COLS; and how products are summed, sum_fours and dot_fours.
 */
#ifndef PE_X86_PANELS_H
#define PE_X86_PANELS_H

#include "formats.h"

#define FOURS 8  // runs of four weights in a unit
#define LANES ((int)(sizeof(vecf) / sizeof(float)))
#define VECS (ROWS / LANES)
#define MAX_COLS 252  // columns that share an unpacked panel: sums of 64 KB or less

typedef struct panel {
    uint8_t q[UNITS][FOURS][ROWS][4];
    float d[UNITS][2][ROWS];
    float m[UNITS][2][ROWS];
} __attribute__((aligned(64))) panel;

/* What the micro-kernel has to know of a type; constants but for the offset. */
typedef struct panel_kind {
    float offset;
    int limit;  // of the unsigned integers
    bool two_scales;
    bool min;
} panel_kind;

INLINE panel_kind kind_of(pe_dtype dtype) {
    return (panel_kind){(float)offset_of(dtype), limit_of(dtype), has_two_scales(dtype),
                        has_min(dtype)};
}

/* Four neighbouring activations in each 32-bit lane. */
INLINE vec broadcast_four(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vec_set1_32(four);
}

/* isum[column][register]: start plus the exact sums of n_fours fours from four f on. */
INLINE void sum_fours(vec (*isum)[VECS], const vec *start, const panel *w, size_t u, size_t f,
                      size_t n_fours, const pe_act_block *const *x, size_t n_tile_cols,
                      size_t n_vecs, panel_kind kind);

/* Whether sum_fours and dot_fours want the offset taken off through start. */
INLINE bool offset_in_start(panel_kind kind);

/* ---- asking ahead ----------------------------------------------------- */

/* The rows behind a panel's: they are next, and they follow each other in memory, where the
 * rows of one panel are many short streams. As integers: an address behind the mapping
 * is no fault for a prefetch, nor an undefined pointer. */
typedef struct ahead {
    uintptr_t at;
    size_t step;  // bytes to ask for at each of the places that ask; 0: none
} ahead;

INLINE void prefetch_next(ahead *next) {
    const uintptr_t end = next->at + next->step;
    for (; next->at < end; next->at += PE_CACHE_LINE) {
        _mm_prefetch((const char *)next->at, _MM_HINT_T1);
    }
}

/* ---- filling ---------------------------------------------------------- */

/* LANES rows of eight 4-byte runs each become eight runs of LANES rows, ROWS rows apart. */
INLINE void transpose_rows(void *out, const __m256i *rows);

/* The same of four runs each, from 16 bytes of each row, left in registers. */
INLINE void transpose_16(vec *out, const uint8_t *const *rows, size_t at);

INLINE bool has_nibbles(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q4_0 || dtype == PE_DTYPE_Q4_1 || dtype == PE_DTYPE_Q4_K ||
           dtype == PE_DTYPE_IQ4_NL || dtype == PE_DTYPE_IQ4_XS || dtype == PE_DTYPE_MXFP4;
}

INLINE bool has_table(pe_dtype dtype) {
    return dtype == PE_DTYPE_IQ4_NL || dtype == PE_DTYPE_IQ4_XS || dtype == PE_DTYPE_MXFP4;
}

/* Where the nibbles of a unit begin among eight; of Q4_K, a quarter super-block's. */
INLINE size_t nibbles_at(size_t u, pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_K: return offsetof(pe_block_q4_k, q) + 16 * u;
    case PE_DTYPE_IQ4_XS: return offsetof(pe_block_iq4_xs, q) + 16 * u;
    default: return (u + 1) * block_bytes(dtype) - PE_BLOCK / 2;  // they end the block
    }
}

/* Transposed as they are, unpacked after that: half the shuffles. */
INLINE void fill_nibbles(panel *out, const uint8_t *const *rows, size_t first_row, size_t n_units,
                         ahead *next, pe_dtype dtype) {
    const vec mask = vec_set1_8(15);
    for (size_t u = 0; u < n_units; u++) {
        prefetch_next(next);
        vec packed[4];
        transpose_16(packed, rows + first_row, nibbles_at(u, dtype));
        // Q4_K keeps unit 2 i in the low nibbles of 32 bytes, 2 i + 1 in the high ones.
        const bool pairs = dtype == PE_DTYPE_Q4_K;
        const size_t low_unit = pairs ? u / 2 * 2 : u;
        const size_t high_unit = pairs ? low_unit + 1 : u;
        const size_t low_four = pairs ? u % 2 * 4 : 0;
        const size_t high_four = pairs ? low_four : 4;
#pragma GCC unroll 4
        for (size_t f = 0; f < 4; f++) {
            vec low = vec_and(packed[f], mask);
            vec high = vec_and(vec_srl16(packed[f], 4), mask);
            if (has_table(dtype)) {
                const vec table = vec_set1_128(table_of(dtype));
                low = vec_shuffle8(table, low);
                high = vec_shuffle8(table, high);
            }
            vec_store(out->q[low_unit][low_four + f][first_row], low);
            vec_store(out->q[high_unit][high_four + f][first_row], high);
        }
    }
}

INLINE void fill_bytes(panel *out, const uint8_t *const *rows, size_t first_row, size_t n_units,
                       ahead *next, pe_dtype dtype) {
#pragma GCC unroll 8
    for (size_t u = 0; u < UNITS; u++) {
        if (u < n_units) {
            prefetch_next(next);
            __m256i v[LANES];
            for (size_t r = 0; r < (size_t)LANES; r++) {
                v[r] = expand(rows[first_row + r], u, dtype);
            }
            transpose_rows(out->q[u][0][first_row], v);
        }
    }
}

/* d and m, as rows have them, [half of units][row][8], to [unit][row]. */
INLINE void fill_scales(panel *out, const uint8_t *const *rows, size_t first_row, size_t n_units,
                        pe_dtype dtype) {
    float d[MAX_LANES][2 * UNITS];
    float m[MAX_LANES][2 * UNITS];
    for (size_t r = 0; r < (size_t)LANES; r++) {
        const uint8_t *p = rows[first_row + r];
        if (has_f16_blocks(dtype)) {
            _mm256_storeu_ps(d[r], eight_f16(p, block_bytes(dtype), n_units));
            if (has_min(dtype)) {
                p += offsetof(pe_block_q4_1, m);
                _mm256_storeu_ps(m[r], eight_f16(p, block_bytes(dtype), n_units));
            }
        } else {
            unpack_scales(d[r], m[r], p, n_units, dtype);
        }
    }
    const size_t n_halves = has_two_scales(dtype) ? 2 : 1;
    for (size_t part = 0; part < n_halves; part++) {
        __m256i v[LANES];
        float run[UNITS][ROWS] __attribute__((aligned(64)));
        for (size_t kind = 0; kind < (has_min(dtype) ? 2u : 1u); kind++) {
            for (size_t r = 0; r < (size_t)LANES; r++) {
                v[r] = load_32((const void *)((kind == 0 ? d : m)[r] + UNITS * part));
            }
            transpose_rows(run[0], v);
            for (size_t i = 0; i < UNITS; i++) {
                const size_t at = UNITS * part + i;
                float(*to)[2][ROWS] = kind == 0 ? out->d : out->m;
                float *row = n_halves == 2 ? to[at / 2][at % 2] : to[at][0];
                memcpy(row + first_row, run[i], sizeof(vec));
            }
        }
    }
}

INLINE void fill_panel(panel *out, const uint8_t *const *rows, size_t n_rows, size_t n_units,
                       ahead *next, pe_dtype dtype) {
    for (size_t r = 0; r < n_rows; r += (size_t)LANES) {
        if (has_nibbles(dtype)) {
            fill_nibbles(out, rows, r, n_units, next, dtype);
        } else {
            fill_bytes(out, rows, r, n_units, next, dtype);
        }
        fill_scales(out, rows, r, n_units, dtype);
    }
}

#include "strips.h"

/* ---- the micro-kernel ------------------------------------------------- */

/* Adds n_units of the panel's first n_vecs registers of rows times n_tile_cols columns
 * (both constant) to the sums, [column][ROWS]. */
INLINE void tile(float (*sums)[ROWS], const panel *w, const uint8_t *acts, size_t act_bytes,
                 size_t n_units, size_t n_tile_cols, size_t n_vecs, panel_kind kind) {
    const vecf magic = vecf_set1(PE_SUM_MAGIC);
    const size_t n_halves = kind.two_scales ? 2 : 1;
    for (size_t u = 0; u < n_units; u++) {
        const pe_act_block *x[MAX_TILE_COLS];
        vecf s[MAX_TILE_COLS][VECS];
#pragma GCC unroll 12
        for (size_t c = 0; c < n_tile_cols; c++) {
            x[c] = (const pe_act_block *)(acts + c * act_bytes) + u;
        }
#pragma GCC unroll 2
        for (size_t h = 0; h < n_halves; h++) {
            vec start[MAX_TILE_COLS];
            vec isum[MAX_TILE_COLS][VECS];
#pragma GCC unroll 12
            for (size_t c = 0; c < n_tile_cols; c++) {
                // 1.5 * 2^23 less the offset times the sum: exact, and its bits too.
                const vecf sum = vecf_set1(kind.two_scales ? x[c]->half[h] : x[c]->sum);
                start[c] = vec_as_int(offset_in_start(kind)
                                          ? vecf_fnmadd(vecf_set1(kind.offset), sum, magic)
                                          : magic);
            }
            sum_fours(isum, start, w, u, 4 * h, FOURS / n_halves, x, n_tile_cols, n_vecs, kind);
#pragma GCC unroll 4
            for (size_t v = 0; v < n_vecs; v++) {
                const vecf d = vecf_load(w->d[u][h] + v * (size_t)LANES);
                const vecf product = vecf_mul(d, magic);
#pragma GCC unroll 12
                for (size_t c = 0; c < n_tile_cols; c++) {
                    const vecf part = vecf_fmsub(vec_as_float(isum[c][v]), d, product);
                    s[c][v] = h == 0 ? part : vecf_add(s[c][v], part);
                }
            }
        }
#pragma GCC unroll 12
        for (size_t c = 0; c < n_tile_cols; c++) {
#pragma GCC unroll 4
            for (size_t v = 0; v < n_vecs; v++) {
                float *sum = sums[c] + v * (size_t)LANES;
                if (kind.min && kind.two_scales) {
                    s[c][v] = vecf_fmadd(vecf_set1(x[c]->half[0]),
                                         vecf_load(w->m[u][0] + v * (size_t)LANES), s[c][v]);
                    s[c][v] = vecf_fmadd(vecf_set1(x[c]->half[1]),
                                         vecf_load(w->m[u][1] + v * (size_t)LANES), s[c][v]);
                } else if (kind.min) {
                    s[c][v] = vecf_fmadd(vecf_set1(x[c]->sum),
                                         vecf_load(w->m[u][0] + v * (size_t)LANES), s[c][v]);
                }
                vecf_store(sum, vecf_fmadd(s[c][v], vecf_set1(x[c]->d), vecf_load(sum)));
            }
        }
        // Sums stay in memory between units: registers are for the integers.
        __asm__ volatile("" : : : "memory");
    }
}

/* All columns against one panel, in tiles as wide as registers allow. */
INLINE void multiply_panel(float (*sums)[ROWS], const panel *w, const uint8_t *acts,
                           size_t act_bytes, size_t n_units, size_t n_cols, size_t n_vecs,
                           panel_kind kind) {
    const size_t n_sums = kind.two_scales ? TILE_SUMS_TWO : TILE_SUMS;
    const size_t widest = n_sums / n_vecs;
    size_t c = 0;
#define TILES(width)                                                                               \
    for (; (width) <= widest && c + (width) <= n_cols; c += (width)) {                             \
        tile(sums + c, w, acts + c * act_bytes, act_bytes, n_units, (width), n_vecs, kind);        \
    }
    TILES(12)
    TILES(8)
    TILES(6)
    TILES(4)
    TILES(3)
    TILES(2)
    TILES(1)
#undef TILES
}

/* One function for each kind of panel, not for each type. */
#define MULTIPLY(name, limit, two_scales, min)                                                     \
    static __attribute__((noinline)) void multiply_##name(                                         \
        float(*sums)[ROWS], const panel *w, const uint8_t *acts, size_t act_bytes, size_t n_units, \
        size_t n_cols, size_t n_vecs, float offset) {                                              \
        const panel_kind kind = {offset, limit, two_scales, min};                                  \
        if (VECS == FEW_VECS || n_vecs == VECS) {                                                  \
            multiply_panel(sums, w, acts, act_bytes, n_units, n_cols, VECS, kind);                 \
        } else {                                                                                   \
            multiply_panel(sums, w, acts, act_bytes, n_units, n_cols, FEW_VECS, kind);             \
        }                                                                                          \
    }

MULTIPLY(nibbles, 15, false, false)
MULTIPLY(nibbles_min, 15, false, true)
MULTIPLY(fives, 31, false, false)
MULTIPLY(fives_min, 31, false, true)
MULTIPLY(bytes, 255, false, false)
MULTIPLY(two, 7, true, false)
MULTIPLY(two_min, 7, true, true)
MULTIPLY(two_sixes, 63, true, false)
#undef MULTIPLY

typedef void (*multiply_fn)(float (*sums)[ROWS], const panel *w, const uint8_t *acts,
                            size_t act_bytes, size_t n_units, size_t n_cols, size_t n_vecs,
                            float offset);

INLINE multiply_fn multiply_of(pe_dtype dtype) {
    const int limit = limit_of(dtype);
    if (has_two_scales(dtype)) {
        return has_min(dtype) ? multiply_two_min : limit > 7 ? multiply_two_sixes : multiply_two;
    }
    if (limit > 31) {
        return multiply_bytes;
    }
    if (limit > 15) {
        return has_min(dtype) ? multiply_fives_min : multiply_fives;
    }
    return has_min(dtype) ? multiply_nibbles_min : multiply_nibbles;
}

INLINE void fill_from_rows(panel *out, const uint8_t *weights, size_t row_bytes, size_t n_rows,
                           size_t first_row, size_t n_panel_rows, size_t slice, size_t n_units,
                           ahead *next, pe_dtype dtype) {
    const uint8_t *rows[ROWS];
    for (size_t i = 0; i < n_panel_rows; i++) {  // past the last: the last again
        rows[i] =
            weights + PE_MIN(first_row + i, n_rows - 1) * row_bytes + slice * units_bytes(dtype);
    }
    fill_panel(out, rows, n_panel_rows, n_units, next, dtype);
}

/* from_strips (a constant): weights are strips, else rows. */
INLINE void matmul_any(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                       size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols, size_t n_k,
                       pe_dtype dtype, bool from_strips) {
    const size_t n_units = n_k / PE_BLOCK;
    const size_t n_slices = (n_units + UNITS - 1) / UNITS;
    // Few columns: what counts is how fast panels are filled, and small ones are.
    const size_t n_vecs = n_cols <= FEW_COLS ? FEW_VECS : VECS;
    const size_t n_panel_rows = n_vecs * (size_t)LANES;
    panel w;
    float sums[MAX_COLS][ROWS] __attribute__((aligned(64)));
    for (size_t r = 0; r < n_rows; r += n_panel_rows) {
        const size_t n_valid = PE_MIN(n_rows - r, n_panel_rows);
        // Asked for evenly: many requests at once wait for each other.
        ahead next = {(uintptr_t)weights + (r + n_panel_rows) * row_bytes,
                      n_cols <= PREFETCH_COLS ? (size_t)LANES * row_bytes / n_units : 0};
        for (size_t c = 0; c < n_cols; c += MAX_COLS) {
            const size_t n_shared = PE_MIN(n_cols - c, (size_t)MAX_COLS);
            memset(sums, 0, n_shared * sizeof *sums);
            for (size_t slice = 0; slice < n_slices; slice++) {
                const size_t u = slice * UNITS;
                const size_t n = PE_MIN(n_units - u, (size_t)UNITS);
                if (from_strips) {
                    fill_from_strips(&w, weights, row_bytes, n_rows, r, n_panel_rows, slice, n,
                                     dtype);
                } else {
                    fill_from_rows(&w, weights, row_bytes, n_rows, r, n_panel_rows, slice, n, &next,
                                   dtype);
                }
                const uint8_t *x = (const uint8_t *)acts + c * act_bytes + u * sizeof(pe_act_block);
                multiply_of(dtype)(sums, &w, x, act_bytes, n, n_shared, n_vecs,
                                   (float)offset_of(dtype));
            }
            for (size_t i = 0; i < n_shared; i++) {
                memcpy(out + (c + i) * out_stride + r, sums[i], n_valid * sizeof **sums);
            }
        }
    }
}

INLINE void matmul_panels(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                          size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                          size_t n_k, pe_dtype dtype) {
    matmul_any(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k, dtype,
               false);
}

INLINE void matmul_strips(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                          size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                          size_t n_k, pe_dtype dtype) {
    if (n_cols <= FUSED_COLS) {
        matmul_few(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k,
                   dtype);
    } else {
        matmul_any(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k, dtype,
                   true);
    }
}

#endif
