/* What every operation over a batch needs: the kernels, the threads, and the
 * buffer of a layer input in both forms.
 */
#ifndef PE_OPS_H
#define PE_OPS_H

#include "pe_kernels.h"
#include "pe_pool.h"

typedef struct pe_ops {
    pe_kernels kernels;
    pe_pool *pool;
    struct pe_taps *taps;  // pe_tap.h; NULL: nobody looks at what is multiplied
} pe_ops;

/* A weight as the forward pass sees it: n_rows outputs of n_cols inputs each.
 * A vector (norm, bias) has one row. */
typedef struct pe_weight {
    const void *data;  // in the file's mapping; NULL when the model has no such weight
    uint64_t n_rows;
    uint64_t n_cols;
    uint64_t n_stacked;   // matrices of that shape: experts, heads; else 1
    uint64_t stack_rows;  // rows from one of them to the next
    uint64_t row_bytes;
    pe_dtype dtype;
    const void *strips;  // the same weights as pe_strip.h has them, or NULL
} pe_weight;

/* n_cols columns of n_k activations, and room for their 8-bit form, which is made
 * once and shared by all products that read it. */
typedef struct pe_acts {
    const float *f32;  // [n_cols][n_k]
    pe_act_block *q8;  // [n_cols][n_k / PE_BLOCK], valid when is_quantized
    size_t n_cols;
    size_t n_k;
    bool is_quantized;
} pe_acts;

/* One weight matrix times the activations. */
typedef struct pe_product {
    float *out;         // [acts.n_cols][out_stride], the first n_rows of each written
    size_t out_stride;  // in floats
    const pe_weight *weight;
    const pe_weight *bias;  // added to each column; data may be NULL
} pe_product;

/* Computes up to 4 products of the same activations in one parallel loop.
 * numeric  see pe_matmul_fn; the same bits for any number of threads
 * errors   cannot fail: shapes were checked when the model was bound */
void pe_matmul(const pe_ops *ops, const pe_product *products, size_t n_products, pe_acts *acts);

#endif
