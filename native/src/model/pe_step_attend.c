#include "pe_math.h"
#include "pe_pass.h"

/* Norms x in runs as long as the weight. */
static void norm_runs(const pe_pass *p, float *x, uint64_t n, const pe_weight *weight) {
    for (uint64_t i = 0; i < n; i += weight->n_cols) {
        p->ops->kernels.rms_norm(x + i, x + i, weight->data, weight->n_cols,
                                 p->model->hparams.norm_eps);
    }
}

static float *q_of(const pe_pass *p, uint32_t i_token) {
    return p->s->q + (uint64_t)i_token * p->model->hparams.n_heads * pe_pass_layer(p)->d_k;
}

static float *k_of(const pe_pass *p, uint32_t i_token) {
    const pe_layer_hparams *layer = pe_pass_layer(p);
    return p->s->k + (uint64_t)i_token * layer->n_kv_heads * layer->d_k;
}

static float *v_of(const pe_pass *p, uint32_t i_token) {
    const pe_layer_hparams *layer = pe_pass_layer(p);
    return p->s->v + (uint64_t)i_token * layer->n_kv_heads * layer->d_v;
}

static void norm_qk_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_layer_hparams *layer = pe_pass_layer(p);
    norm_runs(p, q_of(p, i_token), (uint64_t)p->model->hparams.n_heads * layer->d_k,
              pe_pass_weight(p, PE_W_ATTN_Q_NORM));
    if (layer->has_kv) {
        norm_runs(p, k_of(p, i_token), (uint64_t)layer->n_kv_heads * layer->d_k,
                  pe_pass_weight(p, PE_W_ATTN_K_NORM));
    }
}

static void norm_v_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_layer_hparams *layer = pe_pass_layer(p);
    const pe_weight ones = {.data = p->s->ones, .n_cols = layer->d_v};
    norm_runs(p, v_of(p, i_token), (uint64_t)layer->n_kv_heads * layer->d_v, &ones);
}

static void rope_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_layer_hparams *layer = pe_pass_layer(p);
    const uint32_t n_pairs = layer->d_rot / 2;
    const float *angles = pe_pass_angles(p, layer->rope, i_token);
    for (uint32_t i = 0; i < p->model->hparams.n_heads; i++) {
        p->rotate(q_of(p, i_token) + (uint64_t)i * layer->d_k, angles, n_pairs);
    }
    for (uint32_t i = 0; layer->has_kv && i < layer->n_kv_heads; i++) {
        p->rotate(k_of(p, i_token) + (uint64_t)i * layer->d_k, angles, n_pairs);
    }
}

static void temper_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint32_t n_full = p->s->places[i_token].position / hp->n_ctx_rope;
    const float scale = 1.0f + hp->temper_scale * (float)pe_log(1.0 + n_full);
    float *q = q_of(p, i_token);
    for (uint64_t i = 0; i < (uint64_t)hp->n_heads * pe_pass_layer(p)->d_k; i++) {
        q[i] *= scale;
    }
}

static void store_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_place *place = &p->s->places[i_token];
    pe_kv_store(p->kv, place->table, pe_pass_layer(p)->kv_layer, place->position, k_of(p, i_token),
                v_of(p, i_token));
}

void pe_step_qkv(pe_pass *p) {
    const pe_product products[] = {
        pe_pass_product(p, p->s->q, PE_W_ATTN_Q, PE_W_ATTN_Q_BIAS),
        pe_pass_product(p, p->s->k, PE_W_ATTN_K, PE_W_ATTN_K_BIAS),
        pe_pass_product(p, p->s->v, PE_W_ATTN_V, PE_W_ATTN_V_BIAS),
    };
    const bool has_kv = pe_pass_layer(p)->has_kv;
    // Without a weight for values, keys as they are now become them.
    const bool has_v = pe_pass_weight(p, PE_W_ATTN_V)->data != NULL;
    pe_matmul(p->ops, products, has_kv ? (has_v ? 3 : 2) : 1, &p->h);
    if (has_kv && !has_v) {
        memcpy(p->s->v, p->s->k, p->s->n_tokens * products[1].out_stride * sizeof *p->s->v);
    }
}

/* The queries of a token, which have gates between them. */
static void split_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t n_heads = p->model->hparams.n_heads;
    const uint64_t d_k = pe_pass_layer(p)->d_k;
    const float *both = p->s->q_gates + i_token * 2 * n_heads * d_k;
    for (uint64_t i = 0; i < n_heads; i++) {
        memcpy(q_of(p, i_token) + i * d_k, both + 2 * i * d_k, d_k * sizeof *both);
    }
}

void pe_step_qkv_gated(pe_pass *p) {
    const pe_product products[] = {
        pe_pass_product(p, p->s->q_gates, PE_W_ATTN_Q, PE_W_NONE),
        pe_pass_product(p, p->s->k, PE_W_ATTN_K, PE_W_NONE),
        pe_pass_product(p, p->s->v, PE_W_ATTN_V, PE_W_NONE),
    };
    pe_matmul(p->ops, products, PE_LEN(products), &p->h);
    pe_pass_for_tokens(p, split_token);
}

static void gate_heads_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t n_heads = p->model->hparams.n_heads;
    const pe_layer_hparams *layer = pe_pass_layer(p);
    const float *both = p->s->q_gates + i_token * 2 * n_heads * layer->d_k;
    float *h = p->s->h + i_token * n_heads * layer->d_v;
    for (uint64_t i = 0; i < n_heads; i++) {
        float *head = h + i * layer->d_v;
        p->ops->kernels.sigmoid_mul(head, both + (2 * i + 1) * layer->d_k, head, layer->d_v);
    }
}

void pe_step_gate_heads(pe_pass *p) {
    pe_pass_for_tokens(p, gate_heads_token);
}

void pe_step_norm_qk(pe_pass *p) {
    pe_pass_for_tokens(p, norm_qk_token);
}

void pe_step_norm_v(pe_pass *p) {
    if (pe_pass_layer(p)->has_kv) {
        pe_pass_for_tokens(p, norm_v_token);
    }
}

void pe_step_rope(pe_pass *p, void (*rotate)(float *, const float *, uint32_t)) {
    p->rotate = rotate;
    if (pe_pass_layer(p)->rope != PE_ROPE_NONE) {
        pe_pass_for_tokens(p, rope_token);
    }
}

void pe_step_temper(pe_pass *p) {
    if (p->model->hparams.temper_scale > 0.0f) {
        pe_pass_for_tokens(p, temper_token);
    }
}

void pe_step_attend(pe_pass *p, const pe_step *step) {
    const pe_hparams *hp = &p->model->hparams;
    const pe_layer_hparams *layer = pe_pass_layer(p);
    if (layer->has_kv) {
        pe_pass_for_tokens(p, store_token);
    }
    const uint64_t q_width = (uint64_t)hp->n_heads * layer->d_k;
    if (p->s->q_gates != NULL) {
        pe_step_move_wanted(p, p->s->q_gates, 2 * q_width);
    }
    pe_step_drop_unwanted(p, p->s->q, q_width);
    uint32_t window = layer->window;
    uint32_t n_ahead = UINT32_MAX;
    if (window > 0 && hp->is_causal == 0) {
        n_ahead = window / 2;
        window = n_ahead + 1;
    }
    const pe_queries queries = {.q = p->s->q,
                                .places = p->s->places,
                                .n_tokens = p->s->n_tokens,
                                .n_heads = hp->n_heads,
                                .window = window,
                                .n_ahead = n_ahead,
                                .scale = hp->attn_scale,
                                .softcap = hp->attn_softcap,
                                .sinks = pe_pass_weight(p, step->weight)->data};
    pe_attend(p->ops, p->kv, layer->kv_layer, p->s->h, &queries, &p->s->attend);
    pe_pass_set_h(p, p->s->h, p->s->n_tokens, (size_t)hp->n_heads * layer->d_v);
}
