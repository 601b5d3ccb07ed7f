/* Causal attention of a batch over KV pages. */
#ifndef PE_ATTEND_H
#define PE_ATTEND_H

#include "pe_kv.h"
#include "pe_ops.h"

/* Where one token of the batch stands. */
typedef struct pe_place {
    const pe_kv_table *table;
    uint32_t position;
} pe_place;

/* For every token and head: the softmax-weighted mean of the values at positions
 * 0 to the token's own, whose keys and values are stored already.
 * shape    q: [n_tokens][n_heads][d_k], out: [n_tokens][n_heads][d_v]; n_heads a
 *          multiple of the pool's n_kv_heads
 * numeric  pages in order by pe_attend_fn, then out = acc / sum */
void pe_attend(const pe_ops *ops, const pe_kv_pool *kv, uint32_t layer, float *out, const float *q,
               const pe_place *places, size_t n_tokens, uint32_t n_heads, float scale);

#endif
