/* A layer of the gated delta rule. Its state has, for groups of channels, the inputs in front of
 * the next token, each group [n_conv - 1][channels]; then, for groups of a value head's columns,
 * the matrix [d_delta_k][columns]. A thread takes a group through all tokens.
 */
#include <math.h>

#include "pe_delta.h"
#include "pe_hparams.h"
#include "pe_pass.h"

_Static_assert(PE_DELTA_MAX_TAPS == PE_MAX_CONV, "what pe_hparams.c checks");

/* How a token's projections lie in a row of mix: queries, keys and values; gates of the values;
 * two numbers for each value head. */
typedef struct row {
    uint64_t width;
    uint64_t keys;  // where they begin, and so on; queries come first
    uint64_t values;
    uint64_t gates;
    uint64_t numbers;
} row;

static row row_of(const pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t keys = (uint64_t)hp->n_delta_k_heads * hp->d_delta_k;
    return (row){.width = pe_hparams_mix_width(hp, PE_STATE_DELTA),
                 .keys = keys,
                 .values = 2 * keys,
                 .gates = 2 * keys + hp->d_delta_values,
                 .numbers = 2 * keys + 2 * (uint64_t)hp->d_delta_values};
}

/* Which of a row's numbers belong to a value head: how much it learns, and what of its state it
 * keeps. */
typedef struct pair {
    uint64_t share;
    uint64_t decay;
} pair;

static pair pair_of(const pe_pass *p, uint64_t head) {
    const pe_hparams *hp = &p->model->hparams;
    if (pe_pass_weight(p, PE_W_DELTA_BETA_ALPHA)->data == NULL) {
        return (pair){head, hp->n_delta_v_heads + head};
    }
    const uint64_t n_of_key = hp->n_delta_v_heads / hp->n_delta_k_heads;
    const uint64_t share = head / n_of_key * 2 * n_of_key + head % n_of_key;
    return (pair){share, share + n_of_key};
}

static uint64_t key_head_of(const pe_pass *p, uint64_t head) {
    const pe_hparams *hp = &p->model->hparams;
    return p->model->arch->delta_heads_alternate
               ? head % hp->n_delta_k_heads
               : head / (hp->n_delta_v_heads / hp->n_delta_k_heads);
}

static void project(pe_pass *p) {
    const row r = row_of(p);
    const bool apart = pe_pass_weight(p, PE_W_DELTA_BETA_ALPHA)->data == NULL;
    float *numbers = p->s->mix + r.numbers;
    pe_product products[] = {
        pe_pass_product(p, p->s->mix, PE_W_DELTA_QKV, PE_W_NONE),
        pe_pass_product(p, p->s->mix + r.gates, PE_W_DELTA_GATE, PE_W_NONE),
        pe_pass_product(p, numbers, apart ? PE_W_DELTA_BETA : PE_W_DELTA_BETA_ALPHA, PE_W_NONE),
        pe_pass_product(p, numbers + p->model->hparams.n_delta_v_heads, PE_W_DELTA_ALPHA,
                        PE_W_NONE),
    };
    for (size_t i = 0; i < PE_LEN(products); i++) {
        products[i].out_stride = r.width;
    }
    pe_matmul(p->ops, products, apart ? 4 : 3, &p->h);
}

static void convolve_group(void *arg, uint32_t i_group, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t width = row_of(p).width;
    const uint64_t first = (uint64_t)i_group * PE_DELTA_CHANNELS;
    const uint64_t n = PE_MIN(pe_hparams_delta_channels(hp) - first, PE_DELTA_CHANNELS);
    const uint64_t n_past = hp->n_conv - 1;
    const float *taps = (const float *)pe_pass_weight(p, PE_W_DELTA_CONV)->data;
    for (uint32_t s = 0; s < p->s->n_spans; s++) {
        const pe_span *span = &p->s->spans[s];
        float *past =
            pe_span_open(span, pe_pass_layer(p)->state_first + first * n_past, n * n_past);
        pe_delta_convolve(&p->ops->kernels, p->s->mix + span->first * width + first, width, past,
                          taps + first * hp->n_conv, hp->n_conv, n, span->n_tokens);
    }
}

/* Norms queries and keys, and makes factors of the numbers of each head. */
static void prepare_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const row r = row_of(p);
    float *mix = p->s->mix + i_token * r.width;
    const float scale = 1.0f / sqrtf((float)hp->d_delta_k);
    for (uint64_t i = 0; i < hp->n_delta_k_heads; i++) {
        pe_delta_norm(&p->ops->kernels, mix + i * hp->d_delta_k, hp->d_delta_k, scale);
        pe_delta_norm(&p->ops->kernels, mix + r.keys + i * hp->d_delta_k, hp->d_delta_k, 1.0f);
    }
    const float *bias = pe_pass_weight(p, PE_W_DELTA_STEP_BIAS)->data;
    const float *rate = pe_pass_weight(p, PE_W_DELTA_RATE)->data;
    float *numbers = mix + r.numbers;
    for (uint64_t i = 0; i < hp->n_delta_v_heads; i++) {
        const pair at = pair_of(p, i);
        numbers[at.share] = pe_delta_share(numbers[at.share]);
        numbers[at.decay] = pe_delta_decay(numbers[at.decay] + bias[i], rate[i]);
    }
}

static uint32_t groups_of_head(const pe_hparams *hp) {
    return (uint32_t)pe_ceil_div(pe_hparams_delta_v(hp), PE_DELTA_VALUES);
}

/* Answers take the place of values. */
static void recur_group(void *arg, uint32_t i_group, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const row r = row_of(p);
    const uint64_t d_k = hp->d_delta_k;
    const uint64_t d_v = pe_hparams_delta_v(hp);
    const uint64_t head = i_group / groups_of_head(hp);
    const uint64_t column = i_group % groups_of_head(hp) * PE_DELTA_VALUES;
    const uint64_t n = PE_MIN(d_v - column, PE_DELTA_VALUES);
    const uint64_t first = pe_pass_layer(p)->state_first +
                           (hp->n_conv - 1) * pe_hparams_delta_channels(hp) +
                           d_k * (head * d_v + column);
    const uint64_t q = key_head_of(p, head) * d_k;
    const pair at = pair_of(p, head);
    for (uint32_t s = 0; s < p->s->n_spans; s++) {
        const pe_span *span = &p->s->spans[s];
        float *state = pe_span_open(span, first, d_k * n);
        for (uint64_t t = span->first; t < (uint64_t)span->first + span->n_tokens; t++) {
            float *mix = p->s->mix + t * r.width;
            float *v = mix + r.values + head * d_v + column;
            p->ops->kernels.delta(state, v, mix + q, mix + r.keys + q, v, d_k, n,
                                  mix[r.numbers + at.decay], mix[r.numbers + at.share]);
        }
    }
}

/* h = rms_norm(answers of a head) * weight * silu(gates). */
static void gate_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const row r = row_of(p);
    const uint64_t d_v = pe_hparams_delta_v(hp);
    const float *mix = p->s->mix + i_token * r.width;
    const float *weight = pe_pass_weight(p, PE_W_DELTA_NORM)->data;
    float *h = p->s->h + (uint64_t)i_token * hp->d_delta_values;
    for (uint64_t i = 0; i < hp->d_delta_values; i += d_v) {
        p->ops->kernels.rms_norm(h + i, mix + r.values + i, weight, d_v, hp->norm_eps);
    }
    p->ops->kernels.silu_mul(h, mix + r.gates, h, hp->d_delta_values);
}

void pe_step_delta(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t n_channels = pe_hparams_delta_channels(hp);
    project(p);
    pe_pool_run(p->ops->pool, convolve_group, p,
                (uint32_t)pe_ceil_div(n_channels, PE_DELTA_CHANNELS));
    pe_pass_for_tokens(p, prepare_token);
    pe_pool_run(p->ops->pool, recur_group, p, hp->n_delta_v_heads * groups_of_head(hp));
    pe_step_drop_unwanted(p, p->s->mix, row_of(p).width);
    pe_pass_for_tokens(p, gate_token);
    pe_pass_set_h(p, p->s->h, p->s->n_tokens, hp->d_delta_values);
}
