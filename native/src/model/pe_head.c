#include <inttypes.h>

#include "pe_pass.h"

static pe_status check_logits(const pe_pass *p, const float *logits, uint64_t n_rows,
                              pe_error *err) {
    const uint64_t n_vocab = p->model->hparams.n_vocab;
    for (uint64_t i = 0; i < n_rows * n_vocab; i++) {
        if (!pe_f32_is_finite(logits[i])) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "logits: expected finite numbers, found %g for token %" PRIu64
                           ": the weights hold or produce NaN or infinity",
                           (double)logits[i], i % n_vocab);
        }
    }
    return PE_OK;
}

typedef struct logits_job {
    const pe_pass *p;
    float *logits;
    uint64_t n;
} logits_job;

#define LOGITS_PER_CHUNK 4096u

static void scale_logits(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const logits_job *job = arg;
    const pe_hparams *hp = &job->p->model->hparams;
    float *logits = job->logits + (uint64_t)i_chunk * LOGITS_PER_CHUNK;
    const uint64_t n = PE_MIN(job->n - (uint64_t)i_chunk * LOGITS_PER_CHUNK, LOGITS_PER_CHUNK);
    for (uint64_t i = 0; i < n; i++) {
        logits[i] /= hp->logit_divisor;
    }
    if (hp->logit_softcap > 0.0f) {
        job->p->ops->kernels.softcap(logits, n, hp->logit_softcap);
    }
}

/* What some families do to all logits. */
static void finish_logits(const pe_pass *p, float *logits, uint64_t n_rows) {
    const pe_hparams *hp = &p->model->hparams;
    logits_job job = {.p = p, .logits = logits, .n = n_rows * hp->n_vocab};
    if (hp->logit_divisor != 1.0f || hp->logit_softcap > 0.0f) {
        pe_pool_run(p->ops->pool, scale_logits, &job,
                    (uint32_t)pe_ceil_div(job.n, LOGITS_PER_CHUNK));
    }
}

/* Hidden states behind the last norm, if there is one. Few numbers for all that was computed: one
 * thread hands them out. */
static void give_hidden(pe_pass *p) {
    const pe_scratch *s = p->s;
    const uint64_t d_model = p->model->hparams.d_model;
    const float *norm = p->model->shared[PE_W_OUTPUT_NORM].data;
    const float *rows = s->x;
    bool any = false;
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        any |= s->tokens[i].hidden != NULL;
    }
    if (any && norm != NULL) {
        pe_step_norm_rows(p, norm, s->x, s->h, s->n_tokens);
        rows = s->h;
    }
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        float *out = s->tokens[i].hidden;
        const float *row = rows + i * d_model;
        if (out != NULL && !s->tokens[i].adds) {
            memcpy(out, row, d_model * sizeof *out);
        }
        for (uint64_t d = 0; out != NULL && s->tokens[i].adds && d < d_model; d++) {
            out[d] += row[d];
        }
    }
}

/* Computes the wanted logits in runs whose rows lie one behind the other. */
pe_status pe_head_run(pe_pass *p, pe_error *err) {
    give_hidden(p);
    const pe_hparams *hp = &p->model->hparams;
    pe_scratch *s = p->s;
    uint32_t i = 0;
    while (i < s->n_tokens) {
        float *out = s->tokens[i].logits;
        uint32_t n_rows = 0;
        for (; i < s->n_tokens; i++) {
            const float *wanted = s->tokens[i].logits;
            if (wanted == NULL) {
                continue;
            }
            if (out == NULL) {
                out = s->tokens[i].logits;
            } else if (wanted != out + (uint64_t)n_rows * hp->n_vocab) {
                break;
            }
            memcpy(s->up + (uint64_t)n_rows++ * hp->d_model, s->x + (uint64_t)i * hp->d_model,
                   hp->d_model * sizeof *s->x);
        }
        if (n_rows == 0) {
            break;
        }
        pe_step_norm_rows(p, p->model->shared[PE_W_OUTPUT_NORM].data, s->up, s->h, n_rows);
        pe_pass_set_h(p, s->h, n_rows, hp->d_model);
        const pe_product product = {
            .out = out, .out_stride = hp->n_vocab, .weight = &p->model->shared[PE_W_OUTPUT]};
        pe_matmul(p->ops, &product, 1, &p->h);
        finish_logits(p, out, n_rows);
        PE_TRY(check_logits(p, out, n_rows, err));
    }
    return PE_OK;
}
