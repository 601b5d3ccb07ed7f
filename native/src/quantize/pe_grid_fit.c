/* Blocks of 32 take the best line of their run and the fp16 numbers around it; for
 * super-blocks see pe_grid_super.c. */
#include <math.h>

#include "pe_problem.h"

/* ---- blocks of 32 ----------------------------------------------------- */

/* The best scale among fp16 and the errors of its neighbours; false when it is too large. */
static bool set_scale(const pe_problem *p, float step) {
    const pe_run run = pe_problem_run(p, 0);
    const pe_f16 centre = pe_problem_to_f16(p, step);
    float least = INFINITY;
    for (int by = -1; by <= 1; by++) {
        const pe_f16 d = pe_problem_beside(centre, by);
        if (!pe_problem_is_infinite(d)) {
            const float error = pe_run_error(&run, pe_problem_from_f16(p, d), -0.0f);
            if (error < least) {
                least = error;
                p->grid->d = d;
            }
        }
    }
    return !pe_problem_is_infinite(centre);
}

static bool fit_line(const pe_problem *p) {
    const pe_run run = pe_problem_run(p, 0);
    pe_line lines[3];
    const size_t n = pe_run_lines(lines, PE_LEN(lines), &run, false);
    float least = INFINITY;
    for (size_t k = 0; k < PE_MAX(n, 1); k++) {
        const pe_f16 d0 = pe_problem_to_f16(p, lines[k].step);
        const pe_f16 m0 = pe_problem_to_f16(p, lines[k].offset);
        if (pe_problem_is_infinite(d0) || pe_problem_is_infinite(m0)) {
            continue;
        }
        for (int by = 0; by < 9; by++) {
            const pe_f16 d = pe_problem_beside(d0, by / 3 - 1);
            const pe_f16 m = pe_problem_beside(m0, by % 3 - 1);
            if (pe_problem_is_infinite(d) || pe_problem_is_infinite(m)) {
                continue;
            }
            const float error =
                pe_run_error(&run, pe_problem_from_f16(p, d), pe_problem_from_f16(p, m));
            if (error < least) {
                least = error;
                p->grid->d = d;
                p->grid->m = m;
            }
        }
    }
    return least < INFINITY;
}

static bool fit_exponent(const pe_problem *p) {
    const pe_run run = pe_problem_run(p, 0);
    float least = INFINITY;
    // The largest weight is in 1..2 times 2^exponent, the largest value 12 half scales.
    for (int e = p->exponent - 6; e <= p->exponent + 1; e++) {
        const int code = e + 128;
        if (code >= 2 && code <= 254) {
            const float error = pe_run_error(&run, pe_problem_power(e - p->exponent), -0.0f);
            if (error < least) {
                least = error;
                p->grid->e = (uint8_t)code;
            }
        }
    }
    return true;
}

static bool solve_block(const pe_problem *p) {
    const pe_run run = pe_problem_run(p, 0);
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
    pe_problem p;
    if (!pe_problem_pose(&p, out, w, h) ||
        !(out->n_weights == PE_BLOCK ? solve_block(&p) : pe_problem_solve_super(&p))) {
        return false;
    }
    pe_grid_derive(out);
    take_plain(out, w, h);
    return true;
}
