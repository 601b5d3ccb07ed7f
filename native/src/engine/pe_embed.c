/* Texts into vectors: whole texts side by side in a batch, each with pages of its own that go when
 * it is done.
 */
#include <inttypes.h>
#include <math.h>

#include "pe_engine.h"
#include "pe_mem.h"

/* One call. Texts before n_done are finished; those up to n_laid have tokens in the batch, and
 * perhaps the one at n_laid, of which more tokens follow. */
typedef struct embedding {
    pe_engine *engine;
    const pe_text *texts;
    uint32_t n_texts;
    pe_pooling pooling;
    const pe_embed_params *params;
    const int32_t *cancel;
    pe_kv_table *tables;  // [n_batch], that of text i at i - n_done
    uint32_t n_done;
    uint32_t n_laid;
} embedding;

/* ---- checks ----------------------------------------------------------- */

static pe_status check_text(const pe_engine *engine, const pe_text *text, uint64_t name,
                            pe_error *err) {
    const uint32_t n_vocab = engine->model.hparams.n_vocab;
    if (text->n_tokens == 0 || text->tokens == NULL || text->vectors == NULL) {
        return pe_fail(err, PE_ERR_ARG,
                       "text %" PRIu64 ": expected 1 token or more and room, found none", name);
    }
    if (text->n_tokens > engine->n_ctx) {
        return pe_fail(err, PE_ERR_CONTEXT,
                       "text %" PRIu64 ": expected at most %u tokens, found %u", name,
                       engine->n_ctx, text->n_tokens);
    }
    for (uint32_t i = 0; i < text->n_tokens; i++) {
        if (text->tokens[i] >= n_vocab) {
            return pe_fail(err, PE_ERR_ARG,
                           "text %" PRIu64 ": token %u: expected an id below %u, found %u", name, i,
                           n_vocab, text->tokens[i]);
        }
    }
    return PE_OK;
}

static pe_status check_call(embedding *e, pe_error *err) {
    const pe_embed_params *params = e->params;
    if (params->struct_bytes != sizeof *params) {
        return pe_fail(err, PE_ERR_ARG,
                       "pe_embed_params: expected %zu bytes, found %u: caller and library are of"
                       " different versions",
                       sizeof *params, params->struct_bytes);
    }
    const uint32_t said = e->engine->model.hparams.pooling;
    const uint32_t pooling = params->pooling == PE_POOLING_UNSAID ? said : params->pooling;
    if (pooling > PE_POOLING_LAST) {
        return pe_fail(err, PE_ERR_ARG, "pooling: expected none, mean, cls or last, found %s",
                       params->pooling == PE_POOLING_UNSAID ? "none given and none in the file"
                                                            : "another number");
    }
    e->pooling = (pe_pooling)pooling;
    if (e->engine->states.n_floats > 0) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "embedding: expected a model without recurrent layers, found %s",
                       e->engine->model.arch->name);
    }
    for (uint32_t i = 0; i < e->n_texts; i++) {
        PE_TRY(check_text(e->engine, &e->texts[i], params->first + i, err));
    }
    return PE_OK;
}

/* ---- vectors ---------------------------------------------------------- */

static uint32_t n_vectors(const embedding *e, const pe_text *text) {
    return e->pooling == PE_POOLING_NONE ? text->n_tokens : 1;
}

/* Sums in double precision, in order: the same bits from every compiler. */
static void normalize(float *vector, uint64_t n) {
    double sum = 0.0;
    for (uint64_t i = 0; i < n; i++) {
        sum += (double)vector[i] * (double)vector[i];
    }
    const double length = sqrt(sum);
    for (uint64_t i = 0; length > 0.0 && i < n; i++) {
        vector[i] = (float)((double)vector[i] / length);
    }
}

static pe_status finish_text(const embedding *e, uint32_t i_text, pe_error *err) {
    const pe_text *text = &e->texts[i_text];
    const uint64_t d_model = e->engine->model.hparams.d_model;
    const uint64_t n = n_vectors(e, text) * d_model;
    for (uint64_t i = 0; i < n; i++) {
        if (e->pooling == PE_POOLING_MEAN) {
            text->vectors[i] /= (float)text->n_tokens;
        }
        if (!pe_f32_is_finite(text->vectors[i])) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "text %" PRIu64
                           ": expected finite numbers, found %g in dimension %" PRIu64
                           ": the weights hold or produce NaN or infinity",
                           e->params->first + i_text, (double)text->vectors[i], i % d_model);
        }
    }
    for (uint64_t i = 0; e->params->normalize != 0 && i < n; i += d_model) {
        normalize(text->vectors + i, d_model);
    }
    return PE_OK;
}

/* ---- batches ---------------------------------------------------------- */

/* Runs the batch and finishes the texts that end in it; the table of one that goes on moves to
 * the front. */
static pe_status run(embedding *e, pe_error *err) {
    pe_kv_pool *kv = &e->engine->kv;
    PE_TRY(pe_engine_run_batch(e->engine, e->cancel, err));
    for (uint32_t i = e->n_done; i < e->n_laid; i++) {
        PE_TRY(finish_text(e, i, err));
        pe_kv_clear(kv, &e->tables[i - e->n_done]);
    }
    const uint32_t n_finished = e->n_laid - e->n_done;
    if (n_finished > 0 && n_finished < e->engine->scratch.n_batch) {
        e->tables[0] = e->tables[n_finished];
        e->tables[n_finished] = (pe_kv_table){0};
    }
    e->n_done = e->n_laid;
    return PE_OK;
}

/* Where token i of a text leaves its hidden state, or NULL. */
static float *room_of(const embedding *e, const pe_text *text, uint32_t i) {
    switch (e->pooling) {
    case PE_POOLING_NONE: return text->vectors + (uint64_t)i * e->engine->model.hparams.d_model;
    case PE_POOLING_CLS: return i == 0 ? text->vectors : NULL;
    case PE_POOLING_LAST: return i + 1 == text->n_tokens ? text->vectors : NULL;
    default: return text->vectors;
    }
}

static pe_status lay_text(embedding *e, const pe_text *text, pe_error *err) {
    const pe_hparams *hp = &e->engine->model.hparams;
    pe_scratch *s = &e->engine->scratch;
    const bool is_whole = hp->is_causal == 0;
    if (is_whole && text->n_tokens > s->n_batch - s->n_tokens) {
        PE_TRY(run(e, err));
    }
    if (e->pooling == PE_POOLING_MEAN) {
        memset(text->vectors, 0, hp->d_model * sizeof *text->vectors);
    }
    PE_TRY(
        pe_kv_reserve(&e->engine->kv, &e->tables[e->n_laid - e->n_done], 0, text->n_tokens, err));
    for (uint32_t i = 0; i < text->n_tokens; i++) {
        if (s->n_tokens == s->n_batch) {
            PE_TRY(run(e, err));
        }
        s->tokens[s->n_tokens] = (pe_token){.id = text->tokens[i],
                                            .hidden = room_of(e, text, i),
                                            .adds = e->pooling == PE_POOLING_MEAN};
        s->places[s->n_tokens] = (pe_place){.table = &e->tables[e->n_laid - e->n_done],
                                            .position = i,
                                            .end = is_whole ? text->n_tokens : i + 1};
        s->n_tokens++;
    }
    e->n_laid++;
    return s->n_tokens == s->n_batch ? run(e, err) : PE_OK;
}

static pe_status embed(embedding *e, pe_error *err) {
    const uint32_t n_tables = e->engine->scratch.n_batch;
    PE_TRY(check_call(e, err));
    e->tables = pe_mem_zalloc(n_tables, sizeof *e->tables);
    if (e->tables == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "embedding: no memory for %u texts", n_tables);
    }
    pe_status status = PE_OK;
    for (uint32_t i = 0; i < e->n_texts && status == PE_OK; i++) {
        status = lay_text(e, &e->texts[i], err);
    }
    if (status == PE_OK) {
        status = run(e, err);
    }
    e->engine->scratch.n_tokens = 0;
    for (uint32_t i = 0; i < n_tables; i++) {
        pe_kv_clear(&e->engine->kv, &e->tables[i]);
    }
    pe_mem_free(e->tables);
    return status;
}

pe_status pe_engine_embed(pe_engine *engine, const pe_text *texts, uint32_t n_texts,
                          const pe_embed_params *params, const int32_t *cancel, pe_error *err) {
    PE_TRY(pe_engine_check_owner(engine, err));
    embedding e = {
        .engine = engine, .texts = texts, .n_texts = n_texts, .params = params, .cancel = cancel};
    pthread_mutex_lock(&engine->mutex);
    const pe_status status = embed(&e, err);
    pthread_mutex_unlock(&engine->mutex);
    return status;
}
