/* Searches for grids. Blocks of 32 take the best line of their run and the fp16 numbers
 * around it. Super-blocks start from the best line of every sub-block, and then turn by
 * turn fit the sub-blocks' integers to the two halves that all share, and these to the
 * integers, from several starts. */
#include <math.h>

#include "pe_grid.h"
#include "pe_run.h"

/* The block's weights, scaled by powers of two so that all sums are near 1. */
typedef struct problem {
    float x[PE_SUPER_BLOCK];  // w * 2^-exponent, the largest in 1..2
    float h[PE_SUPER_BLOCK];  // the largest in 1..2
    int exponent;
    size_t n;
    pe_grid *grid;
} problem;

static float power_of_two(int e) {
    if (e < -126) {
        return pe_f32_from_bits(e < -149 ? 0 : 1u << (e + 149));
    }
    return pe_f32_from_bits((uint32_t)(e + 127) << 23);
}

/* floor(log2 x) for 0 < x < infinity, -126 at least. */
static int exponent_of(float x) {
    const int e = (int)(pe_f32_bits(x) >> 23 & 255) - 127;
    return PE_MAX(e, -126);
}

/* x * 2^e for |e| <= 252; one rounding, unless half way it is subnormal. */
static float scaled(float x, int e) {
    const int first = e / 2;
    return x * power_of_two(first) * power_of_two(e - first);
}

/* Weights of error this small beside the largest decide only ties. */
#define LEAST_RATIO 0x1p-30f

/* False for numbers that are none. */
static bool pose(problem *out, const float *w, const float *h) {
    float widest = 0.0f;
    float heaviest = 0.0f;
    for (size_t i = 0; i < out->n; i++) {
        const float hi = h == NULL ? 1.0f : h[i];
        if (!pe_f32_is_finite(w[i]) || !pe_f32_is_finite(hi) || hi < 0.0f) {
            return false;
        }
        widest = PE_MAX(widest, fabsf(w[i]));
        heaviest = PE_MAX(heaviest, hi);
    }
    out->exponent = widest > 0.0f ? exponent_of(widest) : 0;
    const int h_exponent = heaviest > 0.0f ? exponent_of(heaviest) : 0;
    for (size_t i = 0; i < out->n; i++) {
        out->x[i] = scaled(w[i], -out->exponent);
        const float ratio = h == NULL || heaviest == 0.0f ? 1.0f : scaled(h[i], -h_exponent);
        out->h[i] = PE_MAX(ratio, LEAST_RATIO);
    }
    return true;
}

static pe_run run_of(const problem *p, size_t s) {
    const pe_grid *grid = p->grid;
    const size_t first = s * grid->sub;
    return (pe_run){p->x + first, p->h + first, grid->sub,  grid->low,
                    grid->high,   grid->table,  grid->bound};
}

static bool is_infinite(pe_f16 x) {
    return (x & 0x7c00u) == 0x7c00u;
}

/* A number of the scaled problem as fp16, and fp16 in the scaled problem. */
static pe_f16 to_f16(const problem *p, float x) {
    return pe_f16_from_f32(scaled(x, p->exponent));
}

static float from_f16(const problem *p, pe_f16 x) {
    return scaled(pe_f16_to_f32(x), -p->exponent);
}

/* The fp16 number `by` places from zero (by > 0) or towards it; a 0 stays. */
static pe_f16 beside(pe_f16 x, int by) {
    const int magnitude = (x & 0x7fff) + by;
    return (pe_f16)(magnitude < 0 || (x & 0x7fff) == 0 ? x : (x & 0x8000) | magnitude);
}

/* ---- blocks of 32 ----------------------------------------------------- */

/* The best scale among fp16 and the errors of its neighbours; false when it is too large. */
static bool set_scale(const problem *p, float step) {
    const pe_run run = run_of(p, 0);
    const pe_f16 centre = to_f16(p, step);
    float least = INFINITY;
    for (int by = -1; by <= 1; by++) {
        const pe_f16 d = beside(centre, by);
        if (!is_infinite(d)) {
            const float error = pe_run_error(&run, from_f16(p, d), -0.0f);
            if (error < least) {
                least = error;
                p->grid->d = d;
            }
        }
    }
    return !is_infinite(centre);
}

static bool fit_line(const problem *p) {
    const pe_run run = run_of(p, 0);
    pe_line lines[3];
    const size_t n = pe_run_lines(lines, PE_LEN(lines), &run, false);
    float least = INFINITY;
    for (size_t k = 0; k < PE_MAX(n, 1); k++) {
        const pe_f16 d0 = to_f16(p, lines[k].step);
        const pe_f16 m0 = to_f16(p, lines[k].offset);
        for (int by = 0; by < 9; by++) {
            const pe_f16 d = beside(d0, by / 3 - 1);
            const pe_f16 m = beside(m0, by % 3 - 1);
            if (is_infinite(d) || is_infinite(m)) {
                continue;
            }
            const float error = pe_run_error(&run, from_f16(p, d), from_f16(p, m));
            if (error < least) {
                least = error;
                p->grid->d = d;
                p->grid->m = m;
            }
        }
    }
    return least < INFINITY;
}

static bool fit_exponent(const problem *p) {
    const pe_run run = run_of(p, 0);
    float least = INFINITY;
    // The largest weight is in 1..2 times 2^exponent, the largest value 12 half scales.
    for (int e = p->exponent - 6; e <= p->exponent + 1; e++) {
        const int code = e + 128;
        if (code >= 2 && code <= 254) {
            const float error = pe_run_error(&run, power_of_two(e - p->exponent), -0.0f);
            if (error < least) {
                least = error;
                p->grid->e = (uint8_t)code;
            }
        }
    }
    return true;
}

static bool fit_32(const problem *p) {
    const pe_run run = run_of(p, 0);
    switch (p->grid->dtype) {
    case PE_DTYPE_Q4_1:
    case PE_DTYPE_Q5_1: return fit_line(p);
    case PE_DTYPE_MXFP4: return fit_exponent(p);
    // The values are -127..113: all that maps the extreme between 80 and 150.
    case PE_DTYPE_IQ4_NL: return set_scale(p, pe_run_scan(&run, 80.0f, 3.0f, 24, true));
    case PE_DTYPE_Q8_0: return set_scale(p, pe_run_scan(&run, 123.0f, 0.25f, 24, false));
    default: return set_scale(p, pe_run_scale(&run));
    }
}

/* The plain encoder's grid instead where that is better: no block comes out worse. */
static void take_plain(pe_grid *grid, const float *w, const float *h) {
    uint16_t block[sizeof(pe_block_q6_k) / 2];  // the largest, and aligned as blocks are
    int8_t levels[PE_SUPER_BLOCK];
    pe_grid plain;
    if (pe_dtype_find(grid->dtype)->pack_block(block, w) &&
        pe_grid_decode(&plain, levels, grid->dtype, block) &&
        pe_grid_error(&plain, w, h) < pe_grid_error(grid, w, h)) {
        *grid = plain;
    }
}

bool pe_grid_fit(pe_grid *out, uint32_t dtype, const float *w, const float *h) {
    if (!pe_grid_init(out, dtype)) {
        return false;
    }
    problem p = {.grid = out, .n = out->n_weights};
    if (!pose(&p, w, h)) {
        return false;
    }
    if (!(out->n_weights == PE_BLOCK && fit_32(&p))) {
        return false;
    }
    pe_grid_derive(out);
    take_plain(out, w, h);
    return true;
}
