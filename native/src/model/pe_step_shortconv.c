#include "pe_pass.h"

void pe_step_read_taps(float *out, const float *weights, uint64_t first, uint64_t n,
                       uint64_t n_taps) {
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t k = 0; k < n_taps; k++) {
            out[k * PE_CONV_GROUP + i] = weights[(first + i) * n_taps + k];
        }
    }
}

void pe_step_convolve(float *out, float *state, const float *taps, const float *newest, uint64_t n,
                      uint64_t n_past) {
    float sum[PE_CONV_GROUP] = {0};
    for (uint64_t k = 0; k < n_past; k++) {
        for (uint64_t i = 0; i < n; i++) {
            sum[i] += taps[k * PE_CONV_GROUP + i] * state[k * n + i];
        }
    }
    for (uint64_t i = 0; i < n; i++) {
        sum[i] += taps[n_past * PE_CONV_GROUP + i] * newest[i];
    }
    if (n_past > 0) {
        memmove(state, state + n, (n_past - 1) * n * sizeof *state);
        memcpy(state + (n_past - 1) * n, newest, n * sizeof *state);
    }
    memcpy(out, sum, n * sizeof *out);
}

/* Channels of one token: h = c * convolution of b * u. */
static void gate_token(float *h, float *state, const float *taps, const float *b, uint64_t d_model,
                       uint64_t n, uint64_t n_past) {
    const float *c = b + d_model;
    const float *u = c + d_model;
    float sum[PE_CONV_GROUP];
    for (uint64_t i = 0; i < n; i++) {
        sum[i] = b[i] * u[i];
    }
    pe_step_convolve(sum, state, taps, sum, n, n_past);
    for (uint64_t i = 0; i < n; i++) {
        h[i] = c[i] * sum[i];
    }
}

static void convolve_group(void *arg, uint32_t i_group, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    const uint64_t n_past = p->model->hparams.n_conv - 1;
    const uint64_t first = (uint64_t)i_group * PE_CONV_GROUP;
    const uint64_t n = PE_MIN(d_model - first, PE_CONV_GROUP);
    float taps[PE_MAX_CONV * PE_CONV_GROUP];
    pe_step_read_taps(taps, pe_pass_weight(p, PE_W_SHORTCONV_CONV)->data, first, n, n_past + 1);
    for (uint32_t s = 0; s < p->s->n_spans; s++) {
        const pe_span *span = &p->s->spans[s];
        float *state =
            pe_span_open(span, pe_pass_layer(p)->state_first + first * n_past, n * n_past);
        for (uint64_t t = span->first; t < (uint64_t)span->first + span->n_tokens; t++) {
            gate_token(p->s->h + t * d_model + first, state, taps,
                       p->s->mix + t * 3 * d_model + first, d_model, n, n_past);
        }
    }
}

void pe_step_shortconv(pe_pass *p) {
    const uint64_t d_model = p->model->hparams.d_model;
    const pe_product product = pe_pass_product(p, p->s->mix, PE_W_SHORTCONV_IN, PE_W_NONE);
    pe_matmul(p->ops, &product, 1, &p->h);
    pe_pool_run(p->ops->pool, convolve_group, p, (uint32_t)pe_ceil_div(d_model, PE_CONV_GROUP));
    pe_step_drop_unwanted(p, p->s->h, d_model);
    pe_pass_set_h(p, p->s->h, p->s->n_tokens, d_model);
}
