/* Threads and kernels for choosing how weights are stored, and the linear algebra of it.
 *
 * Inputs of a matrix are rows x of n numbers. Their second moments H = sum of x^T x say what an
 * error e of a row of weights costs: e H e^T, summed over rows, is by how much outputs change.
 *
 * All results are the same for any number of threads and any instruction set: products run
 * through pe_kernels, whose order is defined, and every other number is computed by one thread
 * in one order.
 */
#ifndef PE_QUANTIZER_H
#define PE_QUANTIZER_H

#include "pe_kernels.h"
#include "pe_pool.h"

struct pe_quantizer {
    pe_kernels kernels;
    pe_pool *pool;
};

/* Columns that are solved for together, and the rows of a chunk. */
#define PE_SOLVE_COLUMNS 32u
#define PE_SOLVE_ROWS 64u

/* out[c][r] = dot of row r of a and row c of b, of n numbers each; strides in floats. */
static inline void pe_dot_rows(const pe_quantizer *q, float *out, size_t out_stride, const float *a,
                               size_t a_stride, size_t n_a, const float *b, size_t b_stride,
                               size_t n_b, size_t n) {
    q->kernels.matmul[PE_DTYPE_F32](out, out_stride, a, a_stride * sizeof *a, n_a, b,
                                    b_stride * sizeof *b, n_b, n);
}

#endif
