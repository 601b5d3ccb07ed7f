/* Mixtures of experts: which experts each token goes through, and products in which
 * every expert's weights meet its own tokens.
 */
#ifndef PE_EXPERTS_H
#define PE_EXPERTS_H

#include "pe_ops.h"

/* A batch dealt to experts. A choice of a token is a row; rows are sorted by expert, and
 * within one by token. */
typedef struct pe_routes {
    uint32_t n_tokens;
    uint32_t n_used;  // choices of a token
    uint32_t n_experts;
    uint32_t *experts;  // [n_tokens][n_used], the best first
    float *weights;     // [n_tokens][n_used]
    uint32_t *rows;     // [n_tokens][n_used]
    uint32_t *tokens;   // [n_tokens * n_used], by row
    uint32_t *firsts;   // [n_experts + 1]: expert e has rows firsts[e] to firsts[e + 1] - 1
    uint32_t *groups;   // the experts that have rows, rising
    uint32_t n_groups;
} pe_routes;

/* Chooses the n_used experts of highest logit for one token, of equals the first, and
 * weighs them: exp(logit) divided by the sum over the chosen ones, or, unless is_normed,
 * over all.
 * shape    logits: [n_experts]
 * threads  may run in parallel for different tokens
 * numeric  exponentials and sums in double, rounded once to float */
void pe_routes_choose(pe_routes *routes, uint32_t token, const float *logits, bool is_normed);

/* Once all tokens have chosen: fills what is sorted by expert. */
void pe_routes_sort(pe_routes *routes);

/* Up to 4 products of stacked weights with the rows' activations: out[row] = the matrix
 * of the row's expert times acts[row], plus the expert's row of the bias. Only experts
 * that have rows are read.
 * shape    products[].weight: n_experts matrices one behind the other, n_rows being those
 *          of one; bias: [n_experts][n_rows]; acts->n_cols: the number of rows
 * numeric  as pe_matmul: each row by itself */
void pe_experts_matmul(const pe_ops *ops, const pe_product *products, size_t n_products,
                       const pe_routes *routes, pe_acts *acts);

#endif
