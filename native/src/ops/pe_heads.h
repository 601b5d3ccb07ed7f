/* Products in which every head has a matrix of its own, for heads side by side in a row. */
#ifndef PE_HEADS_H
#define PE_HEADS_H

#include "pe_ops.h"

/* Rows of heads: head h of token t begins at data + (t * n_heads + h) * stride. */
typedef struct pe_heads {
    float *data;
    uint64_t stride;  // in floats
} pe_heads;

typedef void (*pe_unpack_fn)(float *out, pe_dtype dtype, const void *blocks, size_t n);

/* out of head h = matrix h of the weight, or n_rows rows of it from first_row on, times in of
 * head h.
 * shape    weight: n_stacked matrices, one a head; in: n_cols of each head are read, out:
 *          n_rows of each are written
 *          q8: room for [n_tokens][n_heads][n_cols / PE_BLOCK]
 * alias    out does not overlap in
 * numeric  as pe_matmul: each number by itself */
void pe_heads_matmul(const pe_ops *ops, const pe_heads *out, const pe_weight *weight,
                     uint64_t first_row, uint64_t n_rows, const pe_heads *in, pe_act_block *q8,
                     uint32_t n_tokens);

/* out of head h = the first n_rows rows of matrix h, transposed, times in of head h: n_rows
 * are read of each head and n_cols written.
 * unpack   pe_quant_unpack, which lies in another layer
 * numeric  sum = sum + in[r] * weight[r], for each r in order, from +0; weights as unpack has
 *          them, each operation rounded by itself */
void pe_heads_matmul_transposed(const pe_ops *ops, const pe_heads *out, const pe_weight *weight,
                                pe_unpack_fn unpack, uint64_t n_rows, const pe_heads *in,
                                uint32_t n_tokens);

#endif
