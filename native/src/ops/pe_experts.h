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
    float *scores;      // [n_tokens][n_experts], what choosing goes by
    uint32_t *experts;  // [n_tokens][n_used], the best first
    float *weights;     // [n_tokens][n_used]
    uint32_t *rows;     // [n_tokens][n_used]
    uint32_t *tokens;   // [n_tokens * n_used], by row
    uint32_t *firsts;   // [n_experts + 1]: expert e has rows firsts[e] to firsts[e + 1] - 1
    uint32_t *groups;   // the experts that have rows, rising
    uint32_t n_groups;
} pe_routes;

/* How experts are chosen and weighed. */
typedef struct pe_routing {
    bool is_sigmoid;      // else softmax
    bool is_normed;       // weights of the chosen ones sum to scale
    float scale;          // weights are multiplied by it
    const float *choice;  // [n_experts], added to what chooses; NULL: nothing
    uint32_t n_groups;    // neighbours; up to 1: no groups
    uint32_t n_groups_used;
} pe_routing;

/* Chooses the n_used experts of highest score for one token, of equals the first, and
 * weighs them.
 * shape    logits: [n_experts]; in the groups used there are n_used experts at least
 * threads  may run in parallel for different tokens
 * formula  softmax: scores are logits, or with a choice exp(logit) / the sum over all, plus
 *          the choice; a weight is exp(logit) divided by the sum over the chosen ones, or,
 *          unless is_normed, over all
 *          sigmoid: a weight is s = 1 / (1 + exp(-logit)), if is_normed divided by the sum
 *          of the chosen ones'; scores are s plus the choice
 *          groups: a group's score is its best expert's, with sigmoid the sum of its best
 *          two; experts outside the best groups, of equals the first, are not chosen
 * numeric  exponentials and sums in double, rounded once to float, then times scale; sums
 *          of scores in float */
void pe_routes_choose(pe_routes *routes, uint32_t token, const float *logits,
                      const pe_routing *routing);

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
