/* What recurrent layers remember of all tokens so far: n_floats numbers of one session,
 * whose layout is the model's (pe_layer_hparams.state_first).
 *
 * Keys and values can be cut back to any position, a state cannot: it is a sum over the
 * past. So a session keeps some older ones, pe_history.h. States are counted references;
 * one that is shared is never written. They come out of the budget of pages.
 */
#ifndef PE_STATE_H
#define PE_STATE_H

#include "pe_budget.h"

typedef struct pe_state {
    uint64_t n_references;
    float *data;  // [n_floats], on a cache line
} pe_state;

typedef struct pe_state_pool {
    pe_budget *budget;
    uint64_t n_floats;  // 0: the model has no recurrent layers, and nothing is taken
} pe_state_pool;

/* A zeroed state with one reference.
 * errors   PE_ERR_NOMEM */
pe_status pe_state_new(pe_state **out_state, const pe_state_pool *pool, pe_error *err);

/* One more reference; NULL is allowed and given back. */
pe_state *pe_state_share(pe_state *state);

/* Frees the state with its last reference; NULL is allowed. */
void pe_state_release(const pe_state_pool *pool, pe_state *state);

/* Neighbouring tokens of a batch through which one state goes, in order. */
typedef struct pe_span {
    uint32_t first;  // token of the batch
    uint32_t n_tokens;
    const float *from;  // the state before the first; NULL: zeros
    float *to;          // behind the last; may be `from`
} pe_span;

/* n floats of the state, from `first` on, as they are before the span: to be changed in
 * place, token by token, into what they are behind it.
 * threads  different floats may be opened in parallel; spans one after the other, for a later
 *          one may begin with what an earlier one leaves */
static inline float *pe_span_open(const pe_span *span, uint64_t first, uint64_t n) {
    float *state = span->to + first;
    if (span->from == NULL) {
        memset(state, 0, n * sizeof *state);
    } else if (span->from != span->to) {
        memcpy(state, span->from + first, n * sizeof *state);
    }
    return state;
}

#endif
