/* What a session of a recurrent model keeps beside its pages: its newest state, some older
 * ones, and its tokens.
 *
 * A checkpoint is the state at a page border. Of m borders behind a session border i stays
 * while i is a multiple of the largest power of two up to m - i: the newest two, then one
 * for each doubling of the distance, O(log m) of them. A session that is put back takes the
 * nearest checkpoint in front; the tokens from there on are replayed when it is fed again,
 * which takes fewer than 2 d + 64 of them where d were dropped, and gives the same bits. A
 * checkpoint is a convenience: where memory or budget is spent there is none.
 *
 * A feed goes: pe_history_begin, pe_history_plan until all tokens are planned, with a pass
 * over each batch of spans, then pe_history_commit, or pe_history_abort if anything failed.
 * No state that a span names is freed or changed by others in between.
 *
 * The caller serialises all calls on one pool.
 */
#ifndef PE_HISTORY_H
#define PE_HISTORY_H

#include "pe_state.h"

/* Fewer than 26 borders of 2^28 positions are kept, and as many may be new in a feed. */
#define PE_MAX_CHECKPOINTS 56

typedef struct pe_checkpoint {
    pe_state *state;
    uint32_t position;  // tokens that the state has seen; a multiple of PE_PAGE_TOKENS, not 0
} pe_checkpoint;

typedef struct pe_history {
    uint32_t *tokens;  // those held, then those of the running feed
    uint32_t n_tokens;
    uint32_t capacity;
    uint32_t position;  // tokens that `state` has seen; those behind it are replayed
    pe_state *state;    // NULL: zeros, at position 0
    pe_checkpoint checkpoints[PE_MAX_CHECKPOINTS];  // positions rise
    uint32_t n_checkpoints;
    // of the running feed
    uint32_t planned;  // position that plans have come to
    uint32_t end;      // and where they end
    pe_state *spare;   // goes on where `state` must stay as it is
    pe_state *origin;  // what `state` was, while it is read, if it is not written in place
    bool kept_origin;
} pe_history;

/* Prepares a feed of n_tokens tokens; changes nothing that can be seen.
 * errors   PE_ERR_NOMEM; pe_history_abort is not needed, but harmless */
pe_status pe_history_begin(pe_history *history, const pe_state_pool *pool, const uint32_t *tokens,
                           uint32_t n_tokens, pe_error *err);

/* Plans up to max_tokens tokens from history->planned on, and gives how many; fills the states
 * and n_tokens of the span. */
uint32_t pe_history_plan(pe_history *history, const pe_state_pool *pool, pe_span *out_span,
                         uint32_t max_tokens);

void pe_history_commit(pe_history *history, const pe_state_pool *pool);

/* The session holds what it held; if its state was written, tokens will be replayed. */
void pe_history_abort(pe_history *history, const pe_state_pool *pool);

/* Forgets all tokens behind the first n_tokens. */
void pe_history_rewind(pe_history *history, const pe_state_pool *pool, uint32_t n_tokens);

/* Makes an empty history share all of another's.
 * errors   PE_ERR_NOMEM, it stays empty */
pe_status pe_history_share(pe_history *history, const pe_history *from, pe_error *err);

/* Releases all checkpoints, for others need the memory more. Gives whether there were any. */
bool pe_history_drop_checkpoints(pe_history *history, const pe_state_pool *pool);

/* Releases everything and leaves an empty history. */
void pe_history_clear(pe_history *history, const pe_state_pool *pool);

#endif
