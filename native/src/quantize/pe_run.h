/* A run: the up to 32 weights that share a scale, and the search for the line
 *
 *     x ~ step * q + offset,  q in low..high or one of a table
 *
 * of least weighted error sum of h (x - value)^2. For given integers q the best line is
 * that of least squares, and for a given line the best integers are the nearest; the
 * searches differ in which (line, integers) pairs they visit.
 *
 * Weights come with |x| < 2 and 0 < h < 2 (pe_grid_fit.c scales them by powers of two),
 * so that no sum leaves float. Sums run over four lanes, whatever the machine; their order
 * is fixed. */
#ifndef PE_RUN_H
#define PE_RUN_H

#include "pe_base.h"

#define PE_RUN_LANES 4
#define PE_RUN_MAX 32

typedef struct pe_run {
    const float *x;
    const float *h;
    size_t n;  // a multiple of PE_RUN_LANES
    int low;
    int high;
    const int8_t *table;  // as in pe_grid, or NULL
    const float *bound;
} pe_run;

typedef struct pe_line {
    float step;
    float offset;
    float error;
} pe_line;

/* The error of a line with each weight at its nearest value. */
float pe_run_error(const pe_run *run, float step, float offset);

typedef struct pe_run_sums {
    float h;
    float hq;
    float hqq;
    float hx;
    float hqx;
} pe_run_sums;

/* Sums over the run with each integer the nearest by this line. */
void pe_run_sum(pe_run_sums *out, const pe_run *run, float step, float offset);

/* The scale of least error, offset 0, of integers low = -half..high = half - 1: exact, over
 * every set of integers that rounding by some scale of either sign gives.
 *
 * With s = 1 / |step| growing from 0, the magnitude of integer i steps up at
 * s = (k + 1/2) / |x[i]|; between two such events the integers are constant, and their best
 * scale leaves A - B^2 / C, where A = sum h x^2, B = sum h |x| |q|, C = sum h q^2. Which
 * weights may reach half, and which stop at half - 1, is all that the sign of the scale
 * says. Only the events between two bounds are visited: weights below half a step are lost
 * whole, so that a step is too large where their sum h x^2 is the best error so far; and
 * with |x| beyond half steps what lies there is lost, so that a step is too small where
 * sum h (|x| - half step)^2 is. Both sums only grow in their direction.
 *
 * Returns the step; 0 for a run of zeros. */
float pe_run_scale(const pe_run *run);

/* The best of the scales that map the extreme weight to first, first + by, ..., n of them,
 * with both signs if both, each moved to its least squares; offset 0. */
float pe_run_scan(const pe_run *run, float first, float by, int n, bool both);

/* Lines of small error, the best first: up to n_out, different. Least squares by turns
 * (integers, line, integers, ...) from starts that cut or stretch each end of the range of
 * the weights by fractions of a step. With is_down, offset <= 0.
 * Returns how many were found: 0 for a run of one value, where out[0] is set to step 0. */
size_t pe_run_lines(pe_line *out, size_t n_out, const pe_run *run, bool is_down);

#endif
