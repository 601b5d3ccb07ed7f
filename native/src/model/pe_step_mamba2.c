/* Mamba-2 (arXiv:2405.21060), token by token. A token's projection is, one behind the other, the
 * gate z [d_inner], x [d_inner], B and C [groups][d_state], and a time step for each head. x, B
 * and C go through a causal convolution and silu; then each head's state decays and takes up
 * x and B, and C reads it.
 */
#include "pe_hparams.h"
#include "pe_math.h"
#include "pe_pass.h"

static const float *weights_of(const pe_pass *p, pe_slot slot) {
    return pe_pass_weight(p, slot)->data;
}

/* A token's projection. */
static float *mix_of(const pe_pass *p, uint64_t token) {
    return p->s->mix + token * pe_hparams_mix_width(&p->model->hparams, PE_STATE_MAMBA2);
}

static void convolve_group(void *arg, uint32_t i_group, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t n_past = hp->n_conv - 1;
    const uint64_t first = (uint64_t)i_group * PE_CONV_GROUP;
    const uint64_t n = PE_MIN(pe_hparams_ssm_conv(hp) - first, PE_CONV_GROUP);
    const float *bias = weights_of(p, PE_W_SSM_CONV_BIAS);
    float taps[PE_MAX_CONV * PE_CONV_GROUP];
    float ones[PE_CONV_GROUP];
    pe_step_read_taps(taps, weights_of(p, PE_W_SSM_CONV), first, n, n_past + 1);
    for (uint64_t i = 0; i < n; i++) {
        ones[i] = 1.0f;
    }
    for (uint32_t s = 0; s < p->s->n_spans; s++) {
        const pe_span *span = &p->s->spans[s];
        float *state =
            pe_span_open(span, pe_pass_layer(p)->state_first + first * n_past, n * n_past);
        for (uint64_t t = span->first; t < (uint64_t)span->first + span->n_tokens; t++) {
            float *x = mix_of(p, t) + hp->d_inner + first;
            pe_step_convolve(x, state, taps, x, n, n_past);
            for (uint64_t i = 0; bias != NULL && i < n; i++) {
                x[i] += bias[first + i];
            }
            p->ops->kernels.silu_mul(x, x, ones, n);
        }
    }
}

/* ln(1 + e^x); beyond 20 the difference to x is below half an ulp of a float. NaN stays. */
static float softplus(float x) {
    return x <= 20.0f ? (float)pe_log(1.0 + pe_exp((double)x)) : x;
}

/* One token's y of a head: the state's output and d times x. */
static void scan_token(const pe_pass *p, float *state, uint64_t token, uint32_t head) {
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t width = hp->d_inner / hp->n_ssm_heads;
    const uint64_t group = head / (hp->n_ssm_heads / hp->n_ssm_groups);
    const float *mix = mix_of(p, token);
    const float *x = mix + hp->d_inner + head * width;
    const float *b = mix + 2 * (uint64_t)hp->d_inner + group * hp->d_state;
    const float *c = b + (uint64_t)hp->n_ssm_groups * hp->d_state;
    const float step = mix[hp->d_inner + pe_hparams_ssm_conv(hp) + head];
    const float dt = softplus(step + weights_of(p, PE_W_SSM_DT_BIAS)[head]);
    const float decay = (float)pe_exp((double)(dt * weights_of(p, PE_W_SSM_A)[head]));
    const float d = weights_of(p, PE_W_SSM_D)[head];
    float *y = p->s->h + token * hp->d_inner + head * width;
    for (uint64_t first = 0; first < width; first += PE_CONV_GROUP) {
        const uint64_t n = PE_MIN(width - first, PE_CONV_GROUP);
        float scaled[PE_CONV_GROUP];
        for (uint64_t i = 0; i < n; i++) {
            scaled[i] = x[first + i] * dt;
        }
        p->ops->kernels.ssm_scan(y + first, state + first * hp->d_state, scaled, b, c, decay, n,
                                 hp->d_state);
        for (uint64_t i = 0; i < n; i++) {
            y[first + i] += d * x[first + i];
        }
    }
}

static void scan_head(void *arg, uint32_t i_head, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t n_floats = (uint64_t)(hp->d_inner / hp->n_ssm_heads) * hp->d_state;
    const uint64_t first =
        pe_pass_layer(p)->state_first + pe_hparams_ssm_first(hp) + i_head * n_floats;
    for (uint32_t s = 0; s < p->s->n_spans; s++) {
        const pe_span *span = &p->s->spans[s];
        float *state = pe_span_open(span, first, n_floats);
        for (uint64_t t = span->first; t < (uint64_t)span->first + span->n_tokens; t++) {
            scan_token(p, state, t, i_head);
        }
    }
}

/* y = rms_norm(y * silu(z)) * weight, by groups. */
static void gate_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t n = hp->d_inner / hp->n_ssm_groups;
    float *y = p->s->h + (uint64_t)i_token * hp->d_inner;
    p->ops->kernels.silu_mul(y, mix_of(p, i_token), y, hp->d_inner);
    for (uint64_t i = 0; i < hp->d_inner; i += n) {
        p->ops->kernels.rms_norm(y + i, y + i, weights_of(p, PE_W_SSM_NORM) + i, n, hp->norm_eps);
    }
}

void pe_step_mamba2(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    const pe_product product = pe_pass_product(p, p->s->mix, PE_W_SSM_IN, PE_W_NONE);
    pe_matmul(p->ops, &product, 1, &p->h);
    pe_pool_run(p->ops->pool, convolve_group, p,
                (uint32_t)pe_ceil_div(pe_hparams_ssm_conv(hp), PE_CONV_GROUP));
    pe_pool_run(p->ops->pool, scan_head, p, hp->n_ssm_heads);
    pe_pass_for_tokens(p, gate_token);
    pe_step_drop_unwanted(p, p->s->h, hp->d_inner);
    pe_pass_set_h(p, p->s->h, p->s->n_tokens, hp->d_inner);
}
