/* What products of one matrix and of stacked ones have in common: activations quantized
 * once, rows cut into chunks, a chunk computed.
 */
#ifndef PE_PRODUCT_H
#define PE_PRODUCT_H

#include "pe_ops.h"

#define PE_MAX_PRODUCTS 4

/* The rows of some products, one matrix of each, in chunks. */
typedef struct pe_cut {
    uint64_t chunk_rows;
    uint32_t first_chunk[PE_MAX_PRODUCTS + 1];  // of each product
    uint32_t n_chunks;
} pe_cut;

/* Cuts up to PE_MAX_PRODUCTS products, n_matrices of each of which are to be computed: into many
 * small chunks, which even out slow cores. */
void pe_product_cut(pe_cut *out, const pe_ops *ops, const pe_product *products, size_t n_products,
                    uint64_t n_matrices);

/* Makes the 8-bit form of acts, unless it is there or no weight asks for it. */
void pe_product_quantize(const pe_ops *ops, const pe_product *products, size_t n_products,
                         pe_acts *acts);

/* Columns of the activations, from first on. */
typedef struct pe_columns {
    size_t first;
    size_t n;
} pe_columns;

/* A chunk of the rows of matrix i_matrix of a stack, 0 where there is but one, times some of the
 * columns, with the bias.
 * threads  re-entrant */
void pe_product_run_chunk(const pe_ops *ops, const pe_product *products, const pe_cut *cut,
                          uint32_t i_chunk, uint64_t i_matrix, const pe_acts *acts,
                          pe_columns columns);

#endif
