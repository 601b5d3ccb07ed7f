#include "pe_pass.h"

/* Channels that a thread takes through all tokens. The layer's state has them in such groups,
 * each [n_conv - 1][channels of the group], the oldest token's first. */
#define GROUP 64u

/* h[i] = c[i] * (the sum over k, in order, of taps[k][i] * (b * u of token k - n_past)[i]), of
 * n channels of one token; the state moves on by it.
 * shape    taps: [n_past + 1][GROUP], state: [n_past][n] */
static void convolve(float *h, float *state, const float *taps, const float *b, const float *c,
                     const float *u, uint64_t n, uint64_t n_past) {
    float sum[GROUP] = {0};
    float newest[GROUP];
    for (uint64_t k = 0; k < n_past; k++) {
        for (uint64_t i = 0; i < n; i++) {
            sum[i] += taps[k * GROUP + i] * state[k * n + i];
        }
    }
    for (uint64_t i = 0; i < n; i++) {
        newest[i] = b[i] * u[i];
        sum[i] += taps[n_past * GROUP + i] * newest[i];
        h[i] = c[i] * sum[i];
    }
    if (n_past > 0) {
        memmove(state, state + n, (n_past - 1) * n * sizeof *state);
        memcpy(state + (n_past - 1) * n, newest, n * sizeof *state);
    }
}

static void convolve_group(void *arg, uint32_t i_group, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t d_model = hp->d_model;
    const uint64_t n_past = hp->n_conv - 1;
    const uint64_t first = (uint64_t)i_group * GROUP;
    const uint64_t n = PE_MIN(d_model - first, GROUP);
    const pe_weight *weight = pe_pass_weight(p, PE_W_SHORTCONV_CONV);
    float taps[PE_MAX_CONV * GROUP];
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t k = 0; k <= n_past; k++) {
            taps[k * GROUP + i] = ((const float *)weight->data)[(first + i) * (n_past + 1) + k];
        }
    }
    for (uint32_t s = 0; s < p->s->n_spans; s++) {
        const pe_span *span = &p->s->spans[s];
        float *state =
            pe_span_open(span, pe_pass_layer(p)->state_first + first * n_past, n * n_past);
        for (uint64_t t = span->first; t < (uint64_t)span->first + span->n_tokens; t++) {
            const float *b = p->s->mix + t * 3 * d_model + first;
            convolve(p->s->h + t * d_model + first, state, taps, b, b + d_model, b + 2 * d_model, n,
                     n_past);
        }
    }
}

void pe_step_shortconv(pe_pass *p) {
    const uint64_t d_model = p->model->hparams.d_model;
    const pe_product product = pe_pass_product(p, p->s->mix, PE_W_SHORTCONV_IN, PE_W_NONE);
    pe_matmul(p->ops, &product, 1, &p->h);
    pe_pool_run(p->ops->pool, convolve_group, p, (uint32_t)pe_ceil_div(d_model, GROUP));
    pe_step_drop_unwanted(p, p->s->h, d_model);
    pe_pass_set_h(p, p->s->h, p->s->n_tokens, d_model);
}
