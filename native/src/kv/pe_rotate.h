/* The rotation of heads whose keys and values are quantized. */
#ifndef PE_ROTATE_H
#define PE_ROTATE_H

#include "pe_base.h"

/* The length of runs for heads of width d, or whose parts are of several widths, which
 * are given or-ed together: the largest power of two that divides them all. */
static inline size_t pe_rotate_run(size_t d) {
    return d & (~d + 1);  // the lowest bit that is set
}

/* Multiplies x by the orthonormal Hadamard matrix, which spreads what one dimension
 * holds over all; doing it twice gives x back.
 *
 * shape    d floats, in runs of n_run; a head where that is below 32 stays as it is
 * numeric  stages of step 1, 2, 4, ...: x[i] + x[i + step] and x[i] - x[i + step];
 *          then each times (float)(1 / sqrt(length of a run))
 * formula  Sylvester's construction; for caches arXiv:2404.00456 */
void pe_rotate(float *x, size_t d, size_t n_run);

#endif
