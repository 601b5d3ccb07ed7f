#include "pe_history.h"

#include <inttypes.h>

#include "pe_mem.h"

/* ---- checkpoints ------------------------------------------------------ */

/* Whether border i is kept by a session that has passed m of them. */
static bool is_wanted(uint32_t i, uint32_t m) {
    uint32_t step = 1;
    while (step <= (m - i) / 2) {
        step *= 2;
    }
    return i % step == 0;
}

/* The first border behind `planned` whose state is to be kept; UINT32_MAX: none. */
static uint32_t next_border(const pe_history *history) {
    const uint32_t m = history->end / PE_PAGE_TOKENS;
    for (uint32_t i = history->planned / PE_PAGE_TOKENS + 1; i <= m; i++) {
        if (is_wanted(i, m)) {
            return i * PE_PAGE_TOKENS;
        }
    }
    return UINT32_MAX;
}

/* Keeps the state at `planned`, if there is memory for going on with another. */
static void keep(pe_history *history, const pe_state_pool *pool) {
    const bool goes_on = history->planned < history->end;
    if (history->n_checkpoints == PE_MAX_CHECKPOINTS ||
        (goes_on && pe_state_new(&history->spare, pool, NULL) != PE_OK)) {
        return;
    }
    history->checkpoints[history->n_checkpoints++] =
        (pe_checkpoint){.state = pe_state_share(history->state), .position = history->planned};
}

/* Drops checkpoints behind a position. */
static void cut(pe_history *history, const pe_state_pool *pool, uint32_t position) {
    while (history->n_checkpoints > 0 &&
           history->checkpoints[history->n_checkpoints - 1].position > position) {
        pe_state_release(pool, history->checkpoints[--history->n_checkpoints].state);
    }
}

/* Takes the newest checkpoint for the state, or zeros. */
static void go_back(pe_history *history, const pe_state_pool *pool) {
    pe_state_release(pool, history->state);
    history->state = NULL;
    history->position = 0;
    if (history->n_checkpoints > 0) {
        const pe_checkpoint *newest = &history->checkpoints[history->n_checkpoints - 1];
        history->state = pe_state_share(newest->state);
        history->position = newest->position;
    }
    history->planned = history->position;
}

static void thin(pe_history *history, const pe_state_pool *pool) {
    const uint32_t m = history->n_tokens / PE_PAGE_TOKENS;
    uint32_t n = 0;
    for (uint32_t i = 0; i < history->n_checkpoints; i++) {
        const pe_checkpoint checkpoint = history->checkpoints[i];
        if (is_wanted(checkpoint.position / PE_PAGE_TOKENS, m)) {
            history->checkpoints[n++] = checkpoint;
        } else {
            pe_state_release(pool, checkpoint.state);
        }
    }
    history->n_checkpoints = n;
}

/* ---- a feed ----------------------------------------------------------- */

static pe_status grow(pe_history *history, uint32_t n_tokens, pe_error *err) {
    if (n_tokens <= history->capacity) {
        return PE_OK;
    }
    const uint32_t capacity = PE_MAX(n_tokens, 2 * history->capacity);
    uint32_t *tokens = pe_mem_alloc(capacity, sizeof *tokens);
    if (tokens == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "session: no memory for a list of %" PRIu32 " tokens",
                       capacity);
    }
    if (history->n_tokens > 0) {
        memcpy(tokens, history->tokens, history->n_tokens * sizeof *tokens);
    }
    pe_mem_free(history->tokens);
    history->tokens = tokens;
    history->capacity = capacity;
    return PE_OK;
}

pe_status pe_history_begin(pe_history *history, const pe_state_pool *pool, const uint32_t *tokens,
                           uint32_t n_tokens, pe_error *err) {
    PE_TRY(grow(history, history->n_tokens + n_tokens, err));
    pe_state_release(pool, history->spare);  // of an attempt that found no memory
    history->spare = NULL;
    const bool writable = history->state != NULL && history->state->n_references == 1;
    if (!writable) {
        PE_TRY(pe_state_new(&history->spare, pool, err));
    }
    memcpy(history->tokens + history->n_tokens, tokens, n_tokens * sizeof *tokens);
    history->planned = history->position;
    history->end = history->n_tokens + n_tokens;
    return PE_OK;
}

uint32_t pe_history_plan(pe_history *history, const pe_state_pool *pool, pe_span *out_span,
                         uint32_t max_tokens) {
    const uint32_t border = next_border(history);
    const uint32_t stop = PE_MIN(history->end, border);
    const uint32_t n = PE_MIN(stop - history->planned, max_tokens);
    out_span->n_tokens = n;
    out_span->from = history->state != NULL ? history->state->data : NULL;
    if (history->spare != NULL) {
        if (history->planned == history->position) {
            // Forks may let go of it too while this feed still reads it.
            history->origin = history->state;
            history->kept_origin = true;
        } else {
            pe_state_release(pool, history->state);  // a checkpoint has it
        }
        history->state = history->spare;
        history->spare = NULL;
    }
    out_span->to = history->state->data;
    history->planned += n;
    if (history->planned == border) {
        keep(history, pool);
    }
    return n;
}

static void end_feed(pe_history *history, const pe_state_pool *pool) {
    pe_state_release(pool, history->origin);
    pe_state_release(pool, history->spare);
    history->origin = NULL;
    history->spare = NULL;
    history->kept_origin = false;
    history->planned = history->position;
    history->end = history->n_tokens;
}

void pe_history_commit(pe_history *history, const pe_state_pool *pool) {
    history->n_tokens = history->end;
    history->position = history->end;
    end_feed(history, pool);
    thin(history, pool);
}

void pe_history_abort(pe_history *history, const pe_state_pool *pool) {
    cut(history, pool, history->position);
    if (history->kept_origin) {
        pe_state_release(pool, history->state);
        history->state = history->origin;
        history->origin = NULL;
    } else if (history->planned != history->position) {
        go_back(history, pool);
    }
    end_feed(history, pool);
}

/* ---- the past --------------------------------------------------------- */

void pe_history_rewind(pe_history *history, const pe_state_pool *pool, uint32_t n_tokens) {
    cut(history, pool, n_tokens);
    history->n_tokens = n_tokens;
    if (history->position > n_tokens) {
        go_back(history, pool);
    }
}

pe_status pe_history_share(pe_history *history, const pe_history *from, pe_error *err) {
    PE_TRY(grow(history, from->n_tokens, err));
    if (from->n_tokens > 0) {
        memcpy(history->tokens, from->tokens, from->n_tokens * sizeof *from->tokens);
    }
    history->n_tokens = from->n_tokens;
    history->position = from->position;
    history->planned = from->position;
    history->state = pe_state_share(from->state);
    for (uint32_t i = 0; i < from->n_checkpoints; i++) {
        history->checkpoints[i] = from->checkpoints[i];
        pe_state_share(from->checkpoints[i].state);
    }
    history->n_checkpoints = from->n_checkpoints;
    return PE_OK;
}

bool pe_history_drop_checkpoints(pe_history *history, const pe_state_pool *pool) {
    const bool had_any = history->n_checkpoints > 0;
    cut(history, pool, 0);
    return had_any;
}

void pe_history_clear(pe_history *history, const pe_state_pool *pool) {
    cut(history, pool, 0);
    pe_state_release(pool, history->state);
    pe_mem_free(history->tokens);
    *history = (pe_history){0};
}
