/* A block's weights posed as a problem of its own size, for the searches for grids. */
#ifndef PE_PROBLEM_H
#define PE_PROBLEM_H

#include "pe_grid.h"
#include "pe_run.h"

/* Weights scaled by powers of two so that all sums are near 1. */
typedef struct pe_problem {
    float x[PE_SUPER_BLOCK];  // w * 2^-exponent, the largest in 1..2
    float h[PE_SUPER_BLOCK];  // the largest in 1..2, the least 2^-30
    int exponent;
    pe_grid *grid;
} pe_problem;

/* Poses the problem of finding a grid that pe_grid_init has begun; false for numbers that
 * are none and for h below 0. */
bool pe_problem_pose(pe_problem *out, pe_grid *grid, const float *w, const float *h);

/* Sub-block s. */
pe_run pe_problem_run(const pe_problem *p, size_t s);

/* 2^e for -149 <= e <= 127. */
float pe_problem_power(int e);

/* A number of the scaled problem as fp16, and fp16 in the scaled problem. */
pe_f16 pe_problem_to_f16(const pe_problem *p, float x);
float pe_problem_from_f16(const pe_problem *p, pe_f16 x);

/* The fp16 number one place from zero (by = 1) or towards it (by = -1). */
pe_f16 pe_problem_beside(pe_f16 x, int by);

static inline bool pe_problem_is_infinite(pe_f16 x) {
    return (x & 0x7c00u) == 0x7c00u;
}

/* Finds d, m, scale and min of super-blocks; false when d or m leaves fp16. */
bool pe_problem_solve_super(const pe_problem *p);

#endif
