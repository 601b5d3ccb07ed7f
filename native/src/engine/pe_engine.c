/* The engine and its sessions: parameters checked, references counted, calls
 * serialised, batches cut to the scratch memory's size.
 */
#include "pe_engine.h"

#include <inttypes.h>
#include <unistd.h>

#include "pe_cores.h"
#include "pe_cpu.h"
#include "pe_forward.h"
#include "pe_history.h"
#include "pe_mem.h"
#include "pe_ram.h"
#include "pe_tap.h"

/* Enough columns to amortise unpacking the weights; scratch stays below 100 MB for
 * 8B shapes (256 tokens * 4 bytes * (3 * 4096 + 2 * 14336 + ...)). */
#define DEFAULT_N_BATCH 256u
#define MAX_N_BATCH 4096u
/* Where a text must be in one batch, at most so many: 100 MB for a width of 768. */
#define DEFAULT_N_WHOLE 2048u
#define MAX_THREADS 1024u

/* After each pass a 32nd of the weights is interleaved: a few percent of what decoding a
 * token takes, for as many tokens. */
#define RESIDENT_SHARE 32u

struct pe_session {
    pe_engine *engine;
    pe_kv_table table;
    pe_history history;  // of recurrent models
    uint32_t n_tokens;
    bool in_call;  // named by a feed of the running call
};

/* ---- open and close --------------------------------------------------- */

pe_status pe_file_check(const pe_file *file, pe_error *err) {
    pe_model model;
    PE_TRY(pe_bind(&model, file, err));
    pe_bind_free(&model);
    return PE_OK;
}

static pe_status at_most(const char *what, uint64_t value, uint64_t max, pe_error *err) {
    if (value > max) {
        return pe_fail(err, PE_ERR_ARG, "%s: expected at most %" PRIu64 ", found %" PRIu64, what,
                       max, value);
    }
    return PE_OK;
}

static pe_status check_params(const pe_engine_params *params, pe_error *err) {
    if (params->struct_bytes != sizeof *params) {
        return pe_fail(err, PE_ERR_ARG,
                       "pe_engine_params: expected %zu bytes, found %u: caller and library are of"
                       " different versions",
                       sizeof *params, params->struct_bytes);
    }
    PE_TRY(at_most("n_threads", params->n_threads, MAX_THREADS, err));
    PE_TRY(at_most("n_batch", params->n_batch, MAX_N_BATCH, err));
    PE_TRY(at_most("kv_type", params->kv_type, PE_KV_END - 1, err));
    PE_TRY(at_most("resident", params->resident, PE_RESIDENT_ON, err));
    if (!pe_cpu_has_isa((pe_isa)params->isa)) {
        return pe_fail(
            err, PE_ERR_ARG, "isa: expected what this processor has, up to %s, found %u (%s)",
            pe_cpu_isa_name(pe_cpu_best_isa()), params->isa, pe_cpu_isa_name((pe_isa)params->isa));
    }
    return PE_OK;
}

/* Pages have room for the layers that have keys and values of their own. */
static pe_status open_kv(pe_engine *engine, pe_kv_type type, uint64_t max_bytes, pe_error *err) {
    const pe_model *model = &engine->model;
    pe_kv_layer *layers = pe_mem_zalloc(model->n_kv_layers, sizeof *layers);
    if (layers == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "KV cache: no memory for %u layers", model->n_kv_layers);
    }
    for (uint32_t i = 0; i < model->hparams.n_layers; i++) {
        const pe_layer_hparams *lp = &model->layer_hparams[i];
        if (lp->has_kv) {
            layers[lp->kv_layer] = (pe_kv_layer){.n_kv_heads = lp->n_kv_heads,
                                                 .d_k = lp->d_k,
                                                 .d_v = lp->d_v,
                                                 .values_are_keys = model->hparams.d_latent > 0};
        }
    }
    const pe_kv_shape shape = {.n_layers = model->n_kv_layers, .layers = layers, .type = type};
    const pe_status status = pe_kv_pool_init(&engine->kv, &shape, max_bytes, err);
    pe_mem_free(layers);
    return status;
}

/* How many tokens go through the layers together. Where every token sees the whole text a text
 * must be among them, so that the batch bounds the context. */
static uint32_t size_batch(pe_engine *engine, const pe_engine_params *params) {
    if (engine->model.hparams.is_causal != 0) {
        return PE_MIN(params->n_batch > 0 ? params->n_batch : DEFAULT_N_BATCH, engine->n_ctx);
    }
    uint32_t n_batch = params->n_batch;
    if (n_batch == 0) {
        n_batch = params->n_ctx > 0 ? params->n_ctx : PE_MIN(engine->n_ctx, DEFAULT_N_WHOLE);
    }
    engine->n_ctx = PE_MIN(engine->n_ctx, n_batch);
    return n_batch;
}

/* Little metadata can ask for a large state: one that no session could have is refused here. */
static pe_status check_state_fits(const pe_engine *engine, pe_error *err) {
    const uint64_t n_bytes = engine->states.n_floats * sizeof(float);
    const uint64_t available = n_bytes > 0 ? pe_ram_available("") : UINT64_MAX;
    if (n_bytes > available) {
        return pe_fail(err, PE_ERR_NOMEM,
                       "recurrent state: expected at most the %" PRIu64
                       " bytes of memory available, found %" PRIu64 " for one session",
                       available, n_bytes);
    }
    return PE_OK;
}

static pe_status open_engine(pe_engine *engine, const pe_engine_params *params, pe_error *err) {
    PE_TRY(check_params(params, err));
    PE_TRY(pe_bind(&engine->model, engine->file, err));
    const pe_hparams *hp = &engine->model.hparams;
    engine->n_ctx = params->n_ctx > 0 ? params->n_ctx : hp->n_ctx_train;
    if (engine->n_ctx > hp->n_ctx_train) {
        return pe_fail(err, PE_ERR_ARG,
                       "n_ctx: expected at most %u, the context the model was trained for, found"
                       " %u",
                       hp->n_ctx_train, engine->n_ctx);
    }
    pe_kv_type kv_type = (pe_kv_type)params->kv_type;
    if (kv_type == PE_KV_AUTO) {
        // What only lives for one layer costs next to nothing.
        kv_type = engine->model.all_f32 || hp->is_causal == 0 ? PE_KV_F32 : PE_KV_F16;
    }
    const uint64_t max_kv_bytes = params->max_kv_bytes > 0 ? params->max_kv_bytes : UINT64_MAX;
    PE_TRY(open_kv(engine, kv_type, max_kv_bytes, err));
    engine->states =
        (pe_state_pool){.budget = &engine->kv.budget, .n_floats = engine->model.state_floats};
    PE_TRY(check_state_fits(engine, err));
    pe_kernels_init(&engine->ops.kernels, (pe_isa)params->isa);
    const uint32_t n_batch = size_batch(engine, params);
    uint32_t n_threads = params->n_threads;
    if (n_threads == 0) {
        pe_cores cores;
        pe_cores_find(&cores, "", NULL);
        n_threads = PE_MIN(cores.n_threads, MAX_THREADS);
    }
    PE_TRY(
        pe_scratch_init(&engine->scratch, &engine->model, n_batch, engine->n_ctx, n_threads, err));
    PE_TRY(pe_pool_new(&engine->ops.pool, n_threads, err));
    const pe_resident_mode mode = (pe_resident_mode)params->resident;
    PE_TRY(pe_resident_init(&engine->resident, &engine->model, &engine->ops, mode, err));
    if (mode == PE_RESIDENT_ON) {
        pe_resident_make(&engine->resident, &engine->ops, 1);
    }
    return PE_OK;
}

pe_status pe_engine_open(pe_engine **out_engine, pe_file *file, const pe_engine_params *params,
                         pe_error *err) {
    *out_engine = NULL;
    pe_engine *engine = pe_mem_zalloc(1, sizeof *engine);
    if (engine == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "engine: no memory to open it");
    }
    atomic_init(&engine->n_references, 1);
    pthread_mutex_init(&engine->mutex, NULL);
    engine->owner = getpid();
    engine->file = pe_file_acquire(file);
    const pe_status status = open_engine(engine, params, err);
    if (status != PE_OK) {
        pe_engine_close(engine);
        return status;
    }
    *out_engine = engine;
    return PE_OK;
}

/* A child made by fork() has no worker threads, and its copy of the mutex may be held
 * by a thread that it does not have: there, objects are left as they are. */
static bool is_forked(const pe_engine *engine) {
    return engine->owner != getpid();
}

pe_status pe_engine_check_owner(const pe_engine *engine, pe_error *err) {
    if (is_forked(engine)) {
        return pe_fail(err, PE_ERR_ARG,
                       "engine: expected the process %ld that opened it, found its child %ld",
                       (long)engine->owner, (long)getpid());
    }
    return PE_OK;
}

void pe_engine_close(pe_engine *engine) {
    if (engine == NULL || is_forked(engine) || atomic_fetch_sub(&engine->n_references, 1) != 1) {
        return;
    }
    pe_pool_free(engine->ops.pool);
    pe_scratch_free(&engine->scratch);
    pe_resident_free(&engine->resident);
    pe_kv_pool_free(&engine->kv);
    pe_bind_free(&engine->model);
    pe_file_close(engine->file);
    pthread_mutex_destroy(&engine->mutex);
    pe_mem_free(engine);
}

void pe_engine_describe(pe_engine_info *out_info, pe_engine *engine) {
    const pe_hparams *hp = &engine->model.hparams;
    pthread_mutex_lock(&engine->mutex);
    *out_info = (pe_engine_info){
        .architecture = engine->model.arch->name,
        .isa = pe_cpu_isa_name(engine->ops.kernels.isa),
        .n_vocab = hp->n_vocab,
        .n_ctx = engine->n_ctx,
        .n_ctx_train = hp->n_ctx_train,
        .n_layers = hp->n_layers,
        .d_model = hp->d_model,
        .n_heads = hp->n_heads,
        .n_kv_heads = hp->n_kv_heads,
        .n_threads = pe_pool_n_threads(engine->ops.pool),
        .n_batch = engine->scratch.n_batch,
        .kv_type = engine->kv.type,
        .weight_bytes = engine->model.weight_bytes,
        .decode_bytes = engine->model.decode_bytes,
        .scratch_bytes = engine->scratch.n_bytes,
        .kv_page_bytes = engine->kv.page_bytes,
        .kv_bytes = engine->kv.budget.n_bytes,
        .kv_bytes_peak = engine->kv.budget.n_bytes_peak,
        .is_encoder = hp->is_causal == 0,
        .pooling = hp->pooling,
        .resident_bytes = engine->resident.n_used,
        .resident_bytes_goal = pe_resident_goal(&engine->resident),
        .resident_why = engine->resident.why,
        .state_bytes = engine->states.n_floats * sizeof(float),
    };
    pthread_mutex_unlock(&engine->mutex);
}

/* Whether sessions have a history. */
static bool is_recurrent(const pe_engine *engine) {
    return engine->states.n_floats > 0;
}

/* ---- sessions --------------------------------------------------------- */

pe_status pe_session_new(pe_session **out_session, pe_engine *engine, pe_error *err) {
    *out_session = NULL;
    PE_TRY(pe_engine_check_owner(engine, err));
    if (engine->model.hparams.is_causal == 0) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "session: expected a model that generates text, found %s, an encoder, which"
                       " only embeds texts",
                       engine->model.arch->name);
    }
    pe_session *session = pe_mem_zalloc(1, sizeof *session);
    if (session == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "session: no memory for another");
    }
    atomic_fetch_add(&engine->n_references, 1);
    session->engine = engine;
    *out_session = session;
    return PE_OK;
}

pe_status pe_session_fork(pe_session **out_session, pe_session *session, pe_error *err) {
    pe_engine *engine = session->engine;
    PE_TRY(pe_session_new(out_session, engine, err));
    pthread_mutex_lock(&engine->mutex);
    pe_status status = pe_kv_share(&(*out_session)->table, &session->table, err);
    if (status == PE_OK && is_recurrent(engine)) {
        status = pe_history_share(&(*out_session)->history, &session->history, err);
    }
    (*out_session)->n_tokens = session->n_tokens;
    pthread_mutex_unlock(&engine->mutex);
    if (status != PE_OK) {
        pe_session_free(*out_session);
        *out_session = NULL;
    }
    return status;
}

void pe_session_free(pe_session *session) {
    if (session == NULL || is_forked(session->engine)) {
        return;
    }
    pe_engine *engine = session->engine;
    pthread_mutex_lock(&engine->mutex);
    pe_kv_clear(&engine->kv, &session->table);
    pe_history_clear(&session->history, &engine->states);
    pthread_mutex_unlock(&engine->mutex);
    pe_mem_free(session);
    pe_engine_close(engine);
}

uint32_t pe_session_n_tokens(const pe_session *session) {
    return session->n_tokens;
}

pe_status pe_session_rewind(pe_session *session, uint32_t n_tokens, pe_error *err) {
    pe_engine *engine = session->engine;
    PE_TRY(pe_engine_check_owner(engine, err));
    pe_status status = PE_OK;
    pthread_mutex_lock(&engine->mutex);
    if (n_tokens > session->n_tokens) {
        status = pe_fail(err, PE_ERR_ARG, "rewind: expected at most the %u tokens held, found %u",
                         session->n_tokens, n_tokens);
    } else {
        pe_kv_truncate(&engine->kv, &session->table, n_tokens);
        if (is_recurrent(engine)) {
            pe_history_rewind(&session->history, &engine->states, n_tokens);
        }
        session->n_tokens = n_tokens;
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

/* ---- forward ---------------------------------------------------------- */

static pe_status check_feed(const pe_engine *engine, const pe_feed *feed, pe_error *err) {
    const uint32_t n_vocab = engine->model.hparams.n_vocab;
    const pe_session *session = feed->session;
    if (session == NULL || session->engine != engine) {
        return pe_fail(err, PE_ERR_ARG, "feed: expected a session of this engine, found another's");
    }
    if (session->in_call) {
        return pe_fail(err, PE_ERR_ARG, "feed: expected each session once, found one twice");
    }
    if (feed->n_tokens == 0 || feed->tokens == NULL) {
        return pe_fail(err, PE_ERR_ARG, "feed: expected 1 token or more, found none");
    }
    if (feed->n_logits > feed->n_tokens || (feed->n_logits > 0 && feed->logits == NULL)) {
        return pe_fail(err, PE_ERR_ARG,
                       "feed: expected room for at most %u rows of logits, found %u%s",
                       feed->n_tokens, feed->n_logits, feed->logits == NULL ? " and no room" : "");
    }
    for (uint32_t i = 0; i < feed->n_tokens; i++) {
        if (feed->tokens[i] >= n_vocab) {
            return pe_fail(err, PE_ERR_ARG, "token %u: expected an id below %u, found %u", i,
                           n_vocab, feed->tokens[i]);
        }
    }
    if (feed->n_tokens > engine->n_ctx - session->n_tokens) {
        return pe_fail(err, PE_ERR_CONTEXT,
                       "context: expected at most %u tokens, found %u held and %u more",
                       engine->n_ctx, session->n_tokens, feed->n_tokens);
    }
    return PE_OK;
}

pe_status pe_engine_run_batch(pe_engine *engine, const int32_t *cancel, pe_error *err) {
    if (engine->scratch.n_tokens == 0) {
        return PE_OK;
    }
    if (engine->ops.taps != NULL) {
        pe_taps_begin(engine->ops.taps, engine->scratch.places[0].position);
    }
    const pe_status status =
        pe_forward(&engine->model, &engine->ops, &engine->kv, &engine->scratch, cancel, err);
    engine->scratch.n_tokens = 0;
    engine->scratch.n_spans = 0;
    if (status == PE_OK && engine->scratch.range.rows == NULL) {
        pe_resident_make(&engine->resident, &engine->ops, RESIDENT_SHARE);
    }
    return status;
}

/* The position from which on a session's tokens go through the next pass: in front of what it
 * holds where a state was put back. */
static uint32_t first_fed(const pe_engine *engine, const pe_session *session) {
    return is_recurrent(engine) ? session->history.position : session->n_tokens;
}

/* Takes all memory that a feed cannot do without. */
static pe_status reserve(pe_engine *engine, const pe_feed *feed, pe_error *err) {
    pe_session *session = feed->session;
    PE_TRY(pe_kv_reserve(&engine->kv, &session->table, first_fed(engine, session),
                         (uint64_t)session->n_tokens + feed->n_tokens, err));
    if (!is_recurrent(engine)) {
        return PE_OK;
    }
    return pe_history_begin(&session->history, &engine->states, feed->tokens, feed->n_tokens, err);
}

/* The same for all of them. Checkpoints give way, since the engine does without. */
static pe_status reserve_all(pe_engine *engine, const pe_feed *feeds, uint32_t n_feeds,
                             pe_error *err) {
    for (bool again = true; again;) {
        pe_status status = PE_OK;
        for (uint32_t i = 0; i < n_feeds && status == PE_OK; i++) {
            status = reserve(engine, &feeds[i], err);
        }
        if (status != PE_ERR_NOMEM) {
            return status;
        }
        again = false;
        for (uint32_t i = 0; i < n_feeds; i++) {
            again |= pe_history_drop_checkpoints(&feeds[i].session->history, &engine->states);
        }
        if (!again) {
            return status;
        }
    }
    return PE_OK;
}

/* A token's row of the residual stream, where a range of layers runs from an empty session. */
static float *row_of(const pe_engine *engine, uint32_t position) {
    const pe_layer_range *range = &engine->scratch.range;
    return range->rows == NULL ? NULL
                               : range->rows + (uint64_t)position * engine->model.hparams.d_model;
}

/* Puts a feed's tokens into the scratch, from `first` on, as many as fit, up to a span; gives
 * how many. */
static uint32_t add_tokens(pe_engine *engine, const pe_feed *feed, uint32_t first) {
    pe_scratch *s = &engine->scratch;
    pe_session *session = feed->session;
    const uint32_t end = session->n_tokens + feed->n_tokens;
    const uint32_t first_logits = end - feed->n_logits;
    uint32_t n = PE_MIN(end - first, s->n_batch - s->n_tokens);
    const uint32_t *tokens = feed->tokens + (first - session->n_tokens);
    if (is_recurrent(engine)) {
        pe_span *span = &s->spans[s->n_spans++];
        n = pe_history_plan(&session->history, &engine->states, span, n);
        span->first = s->n_tokens;
        tokens = session->history.tokens + first;
    }
    for (uint32_t i = 0; i < n; i++, s->n_tokens++) {
        const uint32_t position = first + i;
        float *logits = NULL;
        if (position >= first_logits) {
            logits =
                feed->logits + (uint64_t)(position - first_logits) * engine->model.hparams.n_vocab;
        }
        s->tokens[s->n_tokens] =
            (pe_token){.id = tokens[i], .logits = logits, .hidden = row_of(engine, position)};
        s->places[s->n_tokens] =
            (pe_place){.table = &session->table, .position = position, .end = position + 1};
    }
    return n;
}

static pe_status run_feeds(pe_engine *engine, const pe_feed *feeds, uint32_t n_feeds,
                           const int32_t *cancel, pe_error *err) {
    pe_scratch *s = &engine->scratch;
    s->n_tokens = 0;
    s->n_spans = 0;
    PE_TRY(reserve_all(engine, feeds, n_feeds, err));
    for (uint32_t i = 0; i < n_feeds; i++) {
        const pe_session *session = feeds[i].session;
        const uint32_t end = session->n_tokens + feeds[i].n_tokens;
        for (uint32_t position = first_fed(engine, session); position < end;) {
            position += add_tokens(engine, &feeds[i], position);
            if (s->n_tokens == s->n_batch) {
                PE_TRY(pe_engine_run_batch(engine, cancel, err));
            }
        }
    }
    return pe_engine_run_batch(engine, cancel, err);
}

/* After success the session holds the feed's tokens too, after a failure what it held. */
static void end_feed(pe_engine *engine, const pe_feed *feed, bool ok) {
    pe_session *session = feed->session;
    session->in_call = false;
    if (ok) {
        session->n_tokens += feed->n_tokens;
    } else {
        pe_kv_truncate(&engine->kv, &session->table, session->n_tokens);
    }
    if (is_recurrent(engine) && ok) {
        pe_history_commit(&session->history, &engine->states);
    } else if (is_recurrent(engine)) {
        pe_history_abort(&session->history, &engine->states);
    }
}

/* Checks the feeds, runs them, and leaves the sessions as success or failure wants it.
 * threads  the caller holds the mutex */
static pe_status forward(pe_engine *engine, const pe_feed *feeds, uint32_t n_feeds,
                         const int32_t *cancel, pe_error *err) {
    pe_status status = PE_OK;
    uint32_t n_checked = 0;
    for (; n_checked < n_feeds && status == PE_OK; n_checked++) {
        status = check_feed(engine, &feeds[n_checked], err);
        if (status != PE_OK) {
            break;
        }
        feeds[n_checked].session->in_call = true;
    }
    if (status == PE_OK) {
        status = run_feeds(engine, feeds, n_feeds, cancel, err);
    }
    for (uint32_t i = 0; i < n_checked; i++) {
        end_feed(engine, &feeds[i], status == PE_OK);
    }
    return status;
}

pe_status pe_engine_forward(pe_engine *engine, const pe_feed *feeds, uint32_t n_feeds,
                            const int32_t *cancel, pe_error *err) {
    PE_TRY(pe_engine_check_owner(engine, err));
    pthread_mutex_lock(&engine->mutex);
    const pe_status status = forward(engine, feeds, n_feeds, cancel, err);
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

/* ---- layers by themselves ---------------------------------------------- */

static pe_status check_run(const pe_session *session, const pe_layer_run *run, pe_error *err) {
    const pe_hparams *hp = &session->engine->model.hparams;
    if (run->struct_bytes != sizeof *run) {
        return pe_fail(err, PE_ERR_ARG,
                       "pe_layer_run: expected %zu bytes, found %u: caller and library are of"
                       " different versions",
                       sizeof *run, run->struct_bytes);
    }
    if (run->end_layer > hp->n_layers + 1 || run->first_layer > run->end_layer) {
        return pe_fail(err, PE_ERR_ARG,
                       "layers: expected a range within 0 to %u, found %u to before %u",
                       hp->n_layers + 1, run->first_layer, run->end_layer);
    }
    if (run->x == NULL || (run->logits != NULL && run->end_layer != hp->n_layers + 1)) {
        return pe_fail(err, PE_ERR_ARG,
                       "layers: expected room for the residual stream, and for logits only behind"
                       " the head");
    }
    if (session->n_tokens > 0) {
        return pe_fail(err, PE_ERR_ARG, "layers: expected an empty session, found one of %u tokens",
                       session->n_tokens);
    }
    const bool is_whole = run->first_layer == 0 || run->end_layer == run->first_layer;
    if (!is_whole && (hp->n_shared_kv > 0 || hp->d_ple > 0)) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "layers: expected ones that need nothing of the layers before them, found"
                       " %s, whose layers share keys and values or have inputs of their own",
                       session->engine->model.arch->name);
    }
    return PE_OK;
}

/* Finds each tap's tensor; gives its memory and its width. */
static pe_status place_taps(pe_taps *out, const pe_engine *engine, const pe_layer_run *run,
                            pe_error *err) {
    for (uint32_t i = 0; i < run->n_taps; i++) {
        pe_tensor_info info;
        PE_TRY(pe_file_tensor(&info, engine->file, run->taps[i].tensor, err));
        const uint8_t *begin = info.data;
        run->taps[i].order = 0;
        out->places[i] = (pe_tap_place){.tap = &run->taps[i],
                                        .begin = begin,
                                        .end = begin + info.n_bytes,
                                        .n_cols = info.dims[0]};
    }
    return PE_OK;
}

static pe_status run_layers(pe_session *session, const pe_layer_run *run, const int32_t *cancel,
                            pe_error *err) {
    pe_engine *engine = session->engine;
    pe_taps taps = {.n_places = run->n_taps,
                    .x = engine->scratch.x,
                    .d_model = engine->model.hparams.d_model,
                    .end_run = run->ends_with_taps != 0};
    taps.places = pe_mem_zalloc(run->n_taps, sizeof *taps.places);
    if (taps.places == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "layers: no memory for %u taps", run->n_taps);
    }
    pe_status status = place_taps(&taps, engine, run, err);
    if (status == PE_OK) {
        const pe_feed feed = {.session = session,
                              .tokens = run->tokens,
                              .n_tokens = run->n_tokens,
                              .n_logits = run->logits != NULL ? run->n_tokens : 0,
                              .logits = run->logits};
        engine->ops.taps = run->n_taps > 0 ? &taps : NULL;
        engine->scratch.range = (pe_layer_range){run->x, run->first_layer, run->end_layer};
        status = forward(engine, &feed, 1, cancel, err);
        engine->ops.taps = NULL;
        engine->scratch.range = (pe_layer_range){0};
        pe_kv_truncate(&engine->kv, &session->table, 0);
        if (is_recurrent(engine)) {
            pe_history_rewind(&session->history, &engine->states, 0);
        }
        session->n_tokens = 0;
    }
    pe_mem_free(taps.places);
    return status;
}

pe_status pe_session_run_layers(pe_session *session, const pe_layer_run *run, const int32_t *cancel,
                                pe_error *err) {
    pe_engine *engine = session->engine;
    PE_TRY(pe_engine_check_owner(engine, err));
    pthread_mutex_lock(&engine->mutex);
    pe_status status = check_run(session, run, err);
    if (status == PE_OK) {
        status = run_layers(session, run, cancel, err);
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}
