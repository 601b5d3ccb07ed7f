/* The grid of a block: the values that its weights may take, as its scales and minimums
 * say, before any weight has taken one.
 *
 *     value = step[s] * level + offset[s],  s = i / sub for weight i
 *
 * A level is the signed integer that pe_unit has in q: one of low..high, or, where a type
 * has a table (IQ4_NL, IQ4_XS, MXFP4), one of the table's numbers. Each operation of the
 * formula is rounded to float, as in dequantizing, so that a grid's values are those of
 * its block bit for bit. Types without minimums have offset -0, which changes no float.
 *
 * What is searched for is the grid of least weighted error
 *
 *     E = sum over i of h[i] * (w[i] - nearest value to w[i])^2
 *
 * All functions are re-entrant and allocate nothing; results depend on no machine. */
#ifndef PE_GRID_H
#define PE_GRID_H

#include "pe_dtype.h"

#define PE_GRID_MAX_SUBS 16

typedef struct pe_grid {
    // What the block stores.
    pe_f16 d;                        // 0 for MXFP4
    pe_f16 m;                        // m of Q4_1 and Q5_1, dmin of K-quants, else 0
    uint8_t e;                       // exponent of MXFP4, else 0
    int8_t scale[PE_GRID_MAX_SUBS];  // of super-blocks: by what d is multiplied
    uint8_t min[PE_GRID_MAX_SUBS];   // of K-quants with minimums: by what dmin is
    // What follows from it; pe_grid_derive.
    float step[PE_GRID_MAX_SUBS];
    float offset[PE_GRID_MAX_SUBS];
    float inverse[PE_GRID_MAX_SUBS];  // 1 / step, 0 where that is no number
    // What the type says; pe_grid_init.
    pe_dtype dtype;
    uint16_t n_weights;  // of the block: 32 or 256
    uint8_t n_subs;
    uint8_t sub;        // weights per sub-block: 16 or 32
    uint8_t sub_shift;  // i / sub = i >> sub_shift
    bool has_min;
    int8_t low;
    int8_t high;
    const int8_t *table;  // 16 levels, rising, and
    const float *bound;   // 15 midpoints between them; or NULL
} pe_grid;

/* Sets what the type says; all scales 0. False for a type that has no grid (F32, F16,
 * BF16, or one that is not computed with). */
bool pe_grid_init(pe_grid *out, uint32_t dtype);

/* Sets steps, offsets and inverses from d, m, e, scale and min. */
void pe_grid_derive(pe_grid *grid);

/* The grid of least error that the search for its type finds, for n_weights weights w and
 * their error weights h >= 0 (NULL: all 1). What is searched is said in pe_grid_fit.c.
 * aliasing  w and h are only read
 * numeric   h may be of any size: only ratios count, and ratios below 2^-100 count as 0.
 *           Where every h is 0 all weights count the same. Zeros give steps of 0
 * errors    false for a type without a grid, for NaN or infinity in w, for NaN, infinity
 *           or a negative number in h, and where a scale leaves fp16; *out is then
 *           undefined */
bool pe_grid_fit(pe_grid *out, uint32_t dtype, const float *w, const float *h);

/* The value of a level for weight i; what pe_dequantize gives, bit for bit. */
static inline float pe_grid_value(const pe_grid *grid, size_t i, int level) {
    const size_t s = i >> grid->sub_shift;
    return grid->step[s] * (float)level + grid->offset[s];
}

/* The level nearest to w for weight i, up to the rounding of (w - offset) * (1 / step).
 * NaN gives some level. */
static inline int pe_grid_level(const pe_grid *grid, size_t i, float w) {
    const size_t s = i >> grid->sub_shift;
    float x = (w - grid->offset[s]) * grid->inverse[s];
    if (grid->table != NULL) {
        int k = 0;
        for (size_t b = 0; b < 15; b++) {
            k += x >= grid->bound[b];
        }
        return grid->table[k];
    }
    x = x < (float)grid->high ? x : (float)grid->high;  // NaN as well
    x = x > (float)grid->low ? x : (float)grid->low;
    // Adding 1.5 * 2^23 rounds to an integer, ties to even, in the low bits.
    return (int)(pe_f32_bits(x + 0x1.8p23f) & 0x7fffffu) - 0x400000;
}

/* The nearest value to w for weight i, and its level. */
static inline float pe_grid_round(const pe_grid *grid, size_t i, float w, int *out_level) {
    *out_level = pe_grid_level(grid, i, w);
    return pe_grid_value(grid, i, *out_level);
}

/* E for these weights, h NULL for all 1; summed in double, in order. */
double pe_grid_error(const pe_grid *grid, const float *w, const float *h);

/* Writes the block. levels are n_weights numbers that the grid has (of Q8_0 also -128);
 * others give some level. Cannot fail. */
void pe_grid_encode(void *out_block, const pe_grid *grid, const int8_t *levels);

/* The grid and levels of a block: encoding them gives its bytes (of MXFP4 -0 becomes 0).
 * errors   false for a type without a grid, and for a scale that is no number */
bool pe_grid_decode(pe_grid *out, int8_t *levels, uint32_t dtype, const void *block);

#endif
