#include "pe_forward.h"

#include <inttypes.h>

#include "pe_math.h"
#include "pe_quant.h"
#include "pe_rope.h"

/* ---- work on single tokens -------------------------------------------- */

typedef struct pass {
    const pe_model *model;
    const pe_ops *ops;
    const pe_kv_pool *kv;
    pe_scratch *s;
    uint32_t layer;
    pe_acts h;  // the current value and its width
    // of the running step
    const float *weight;
    const float *norm_in;
    float *norm_out;
    float *gate;  // [tokens or rows][d_gate], which up multiplies
    const float *up;
    uint64_t d_gate;
    void (*rotate)(float *head, const float *angles, uint32_t n_pairs);
} pass;

/* Points h at n_cols columns of n_k fresh values. */
static void set_h(pass *p, const float *f32, size_t n_cols, size_t n_k) {
    p->h = (pe_acts){.f32 = f32, .q8 = p->s->q8, .n_cols = n_cols, .n_k = n_k};
}

static const pe_layer_hparams *layer_of(const pass *p) {
    return &p->model->layer_hparams[p->layer];
}

static const pe_weight *weight_of(const pass *p, pe_slot slot) {
    return &p->model->layers[p->layer][slot];
}

/* The angles of a kind of all tokens. */
static float *angles_of(const pass *p, pe_rope_angles_kind kind) {
    return p->s->angles + (uint64_t)kind * p->s->n_batch * p->model->hparams.d_rot;
}

static void embed_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_weight *embd = &p->model->shared[PE_W_TOKEN_EMBD];
    const uint64_t id = p->s->tokens[i_token].id;
    const uint32_t n_pairs = hp->d_rot / 2;
    float *x = p->s->x + (uint64_t)i_token * hp->d_model;
    pe_quant_unpack(x, embd->dtype, (const uint8_t *)embd->data + id * embd->row_bytes,
                    hp->d_model);
    for (uint64_t i = 0; i < hp->d_model; i++) {
        x[i] *= hp->embd_scale;
    }
    for (uint32_t kind = 0; kind < p->s->n_rotations; kind++) {
        pe_rope_angles(angles_of(p, (pe_rope_angles_kind)kind) + (uint64_t)i_token * hp->d_rot,
                       p->s->rope_freqs + (uint64_t)kind * n_pairs, n_pairs,
                       p->s->places[i_token].position, p->s->rope_magnitudes[kind]);
    }
}

static void norm_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    p->ops->kernels.rms_norm(p->norm_out + i_token * d_model, p->norm_in + i_token * d_model,
                             p->weight, d_model, p->model->hparams.norm_eps);
}

/* Norms x in runs as long as the weight. */
static void norm_runs(const pass *p, float *x, uint64_t n, const pe_weight *weight) {
    for (uint64_t i = 0; i < n; i += weight->n_cols) {
        p->ops->kernels.rms_norm(x + i, x + i, weight->data, weight->n_cols,
                                 p->model->hparams.norm_eps);
    }
}

static float *q_of(const pass *p, uint32_t i_token) {
    return p->s->q + (uint64_t)i_token * p->model->hparams.n_heads * p->model->hparams.d_k;
}

static float *k_of(const pass *p, uint32_t i_token) {
    return p->s->k + (uint64_t)i_token * p->model->hparams.n_kv_heads * p->model->hparams.d_k;
}

static void norm_qk_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    norm_runs(p, q_of(p, i_token), (uint64_t)hp->n_heads * hp->d_k, weight_of(p, PE_W_ATTN_Q_NORM));
    norm_runs(p, k_of(p, i_token), (uint64_t)hp->n_kv_heads * hp->d_k,
              weight_of(p, PE_W_ATTN_K_NORM));
}

static void rope_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint32_t n_pairs = hp->d_rot / 2;
    const float *angles = angles_of(p, layer_of(p)->rope) + (uint64_t)i_token * hp->d_rot;
    for (uint32_t i = 0; i < hp->n_heads; i++) {
        p->rotate(q_of(p, i_token) + (uint64_t)i * hp->d_k, angles, n_pairs);
    }
    for (uint32_t i = 0; i < hp->n_kv_heads; i++) {
        p->rotate(k_of(p, i_token) + (uint64_t)i * hp->d_k, angles, n_pairs);
    }
}

static void temper_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint32_t n_full = p->s->places[i_token].position / hp->n_ctx_rope;
    const float scale = 1.0f + hp->temper_scale * (float)pe_log(1.0 + n_full);
    float *q = q_of(p, i_token);
    for (uint64_t i = 0; i < (uint64_t)hp->n_heads * hp->d_k; i++) {
        q[i] *= scale;
    }
}

static void store_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_place *place = &p->s->places[i_token];
    pe_kv_store(p->kv, place->table, p->layer, place->position, k_of(p, i_token),
                p->s->v + (uint64_t)i_token * hp->n_kv_heads * hp->d_v);
}

/* One token's gate, or one row's of the experts. */
static void silu_gate(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *gate = p->gate + i * p->d_gate;
    p->ops->kernels.silu_mul(gate, gate, p->up + i * p->d_gate, p->d_gate);
}

static void gelu_gate(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *gate = p->gate + i * p->d_gate;
    p->ops->kernels.gelu_mul(gate, gate, p->up + i * p->d_gate, p->d_gate);
}

/* gpt-oss's bound of gates. */
#define CLAMP_LIMIT 7.0f

static void clamped_gate(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    float *gate = p->gate + i * p->d_gate;
    p->ops->kernels.clamped_mul(gate, gate, p->up + i * p->d_gate, p->d_gate, CLAMP_LIMIT);
}

static void add_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    const float scale = p->model->hparams.residual_scale;
    float *x = p->s->x + i_token * d_model;
    const float *h = p->h.f32 + i_token * d_model;
    for (uint64_t i = 0; i < d_model; i++) {
        x[i] += scale * h[i];
    }
}

/* ---- steps ------------------------------------------------------------ */

static void for_tokens(pass *p, pe_pool_fn fn) {
    pe_pool_run(p->ops->pool, fn, p, p->s->n_tokens);
}

static pe_product product_of(const pass *p, float *out, pe_slot weight, pe_slot bias) {
    return (pe_product){.out = out,
                        .out_stride = weight_of(p, weight)->n_rows,
                        .weight = weight_of(p, weight),
                        .bias = weight_of(p, bias)};
}

static void step_residual(pass *p) {
    set_h(p, p->s->x, p->s->n_tokens, p->model->hparams.d_model);
}

static void step_norm(pass *p, const pe_step *step, const float *in, float *out) {
    p->weight = weight_of(p, step->weight)->data;
    p->norm_in = in;
    p->norm_out = out;
    for_tokens(p, norm_token);
    set_h(p, out, p->s->n_tokens, p->model->hparams.d_model);
}

static void step_qkv(pass *p) {
    const pe_product products[] = {
        product_of(p, p->s->q, PE_W_ATTN_Q, PE_W_ATTN_Q_BIAS),
        product_of(p, p->s->k, PE_W_ATTN_K, PE_W_ATTN_K_BIAS),
        product_of(p, p->s->v, PE_W_ATTN_V, PE_W_ATTN_V_BIAS),
    };
    pe_matmul(p->ops, products, PE_LEN(products), &p->h);
}

/* In the last layer, once keys and values are stored, tokens whose logits nobody wants are
 * done: the others move together. Each is computed by itself, so this changes no bit. */
static void drop_unwanted(pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t q_width = (uint64_t)hp->n_heads * hp->d_k;
    pe_scratch *s = p->s;
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        if (s->tokens[i].logits == NULL) {
            continue;
        }
        if (n_kept < i) {
            s->tokens[n_kept] = s->tokens[i];
            s->places[n_kept] = s->places[i];
            memcpy(s->q + n_kept * q_width, s->q + i * q_width, q_width * sizeof *s->q);
            memcpy(s->x + (uint64_t)n_kept * hp->d_model, s->x + (uint64_t)i * hp->d_model,
                   hp->d_model * sizeof *s->x);
        }
        n_kept++;
    }
    s->n_tokens = n_kept;
}

static void step_rope(pass *p, void (*rotate)(float *, const float *, uint32_t)) {
    p->rotate = rotate;
    if (layer_of(p)->rope != PE_ROPE_NONE) {
        for_tokens(p, rope_token);
    }
}

static void step_temper(pass *p) {
    if (p->model->hparams.temper_scale > 0.0f) {
        for_tokens(p, temper_token);
    }
}

static void step_attend(pass *p, const pe_step *step) {
    const pe_hparams *hp = &p->model->hparams;
    for_tokens(p, store_token);
    if (p->layer + 1 == hp->n_layers) {
        drop_unwanted(p);
    }
    const pe_queries queries = {.q = p->s->q,
                                .places = p->s->places,
                                .n_tokens = p->s->n_tokens,
                                .n_heads = hp->n_heads,
                                .window = layer_of(p)->window,
                                .scale = hp->attn_scale,
                                .softcap = hp->attn_softcap,
                                .sinks = weight_of(p, step->weight)->data};
    pe_attend(p->ops, p->kv, p->layer, p->s->h, &queries, &p->s->attend);
    set_h(p, p->s->h, p->s->n_tokens, (size_t)hp->n_heads * hp->d_v);
}

/* h = gate(products[1]) * products[0], of width d_gate. */
static void run_gated(pass *p, const pe_product *products, uint64_t d_gate, pe_pool_fn gate) {
    pe_matmul(p->ops, products, 2, &p->h);
    p->gate = p->s->gate;
    p->up = p->s->up;
    p->d_gate = d_gate;
    for_tokens(p, gate);
    set_h(p, p->s->gate, p->s->n_tokens, d_gate);
}

static void step_gated(pass *p, pe_pool_fn gate) {
    const pe_product products[] = {
        product_of(p, p->s->up, PE_W_FFN_UP, PE_W_FFN_UP_BIAS),
        product_of(p, p->s->gate, PE_W_FFN_GATE, PE_W_FFN_GATE_BIAS),
    };
    run_gated(p, products, p->model->hparams.d_ff, gate);
}

static void step_project(pass *p, const pe_step *step) {
    const pe_product product = product_of(p, p->s->up, step->weight, step->bias);
    pe_matmul(p->ops, &product, 1, &p->h);
    set_h(p, p->s->up, p->s->n_tokens, product.weight->n_rows);
}

/* The expert that every token goes through. */
static void step_shared(pass *p) {
    if (p->model->hparams.d_shared == 0) {
        return;
    }
    const pe_product products[] = {
        product_of(p, p->s->up, PE_W_SHARED_UP, PE_W_NONE),
        product_of(p, p->s->gate, PE_W_SHARED_GATE, PE_W_NONE),
    };
    run_gated(p, products, p->model->hparams.d_shared, silu_gate);
    step_project(p, &(const pe_step){.weight = PE_W_SHARED_DOWN, .bias = PE_W_NONE});
    for_tokens(p, add_token);
}

/* ---- experts ---------------------------------------------------------- */

static void choose_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    pe_routes_choose(&p->s->routes, i_token,
                     p->s->router_logits + (uint64_t)i_token * hp->n_experts,
                     hp->experts_are_normed != 0);
}

static void gather_row(void *arg, uint32_t i_row, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    memcpy(p->s->expert_h + i_row * d_model, p->h.f32 + p->s->routes.tokens[i_row] * d_model,
           d_model * sizeof(float));
}

/* Choices are added up from the best on, so that the batch does not show. */
static void mix_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_routes *routes = &p->s->routes;
    const uint32_t *rows = routes->rows + i_token * routes->n_used;
    const float *weights = routes->weights + i_token * routes->n_used;
    float *x = p->s->x + (uint64_t)i_token * hp->d_model;
    for (uint64_t d = 0; d < hp->d_model; d++) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < routes->n_used; i++) {
            sum += weights[i] * p->s->expert_h[(uint64_t)rows[i] * hp->d_model + d];
        }
        x[d] += hp->residual_scale * sum;
    }
}

static void step_experts(pass *p, pe_pool_fn gate) {
    const pe_hparams *hp = &p->model->hparams;
    pe_scratch *s = p->s;
    pe_routes *routes = &s->routes;
    const pe_product router = product_of(p, s->router_logits, PE_W_ROUTER, PE_W_ROUTER_BIAS);
    pe_matmul(p->ops, &router, 1, &p->h);
    routes->n_tokens = s->n_tokens;
    for_tokens(p, choose_token);
    pe_routes_sort(routes);
    const uint32_t n_rows = s->n_tokens * routes->n_used;
    pe_pool_run(p->ops->pool, gather_row, p, n_rows);
    pe_acts acts = {.f32 = s->expert_h, .q8 = s->expert_q8, .n_cols = n_rows, .n_k = hp->d_model};
    const pe_product inner[] = {
        product_of(p, s->expert_up, PE_W_EXPERTS_UP, PE_W_EXPERTS_UP_BIAS),
        product_of(p, s->expert_gate, PE_W_EXPERTS_GATE, PE_W_EXPERTS_GATE_BIAS),
    };
    pe_experts_matmul(p->ops, inner, PE_LEN(inner), routes, &acts);
    p->gate = s->expert_gate;
    p->up = s->expert_up;
    p->d_gate = hp->d_expert;
    pe_pool_run(p->ops->pool, gate, p, n_rows);
    acts =
        (pe_acts){.f32 = s->expert_gate, .q8 = s->expert_q8, .n_cols = n_rows, .n_k = hp->d_expert};
    const pe_product down = product_of(p, s->expert_h, PE_W_EXPERTS_DOWN, PE_W_EXPERTS_DOWN_BIAS);
    pe_experts_matmul(p->ops, &down, 1, routes, &acts);
    for_tokens(p, mix_token);
}

/* ---- a layer ---------------------------------------------------------- */

static void run_step(pass *p, const pe_step *step) {
    switch (step->kind) {
    case PE_STEP_RESIDUAL: step_residual(p); break;
    case PE_STEP_RMS_NORM: step_norm(p, step, p->s->x, p->s->h); break;
    case PE_STEP_POST_NORM: step_norm(p, step, p->h.f32, p->s->up); break;
    case PE_STEP_QKV: step_qkv(p); break;
    case PE_STEP_NORM_QK: for_tokens(p, norm_qk_token); break;
    case PE_STEP_ROPE_PAIRS: step_rope(p, pe_rope_rotate_pairs); break;
    case PE_STEP_ROPE_HALVES: step_rope(p, pe_rope_rotate_halves); break;
    case PE_STEP_TEMPER: step_temper(p); break;
    case PE_STEP_ATTEND: step_attend(p, step); break;
    case PE_STEP_SWIGLU: step_gated(p, silu_gate); break;
    case PE_STEP_GEGLU: step_gated(p, gelu_gate); break;
    case PE_STEP_PROJECT: step_project(p, step); break;
    case PE_STEP_ADD: for_tokens(p, add_token); break;
    case PE_STEP_EXPERTS: step_experts(p, silu_gate); break;
    case PE_STEP_EXPERTS_CLAMPED: step_experts(p, clamped_gate); break;
    case PE_STEP_SHARED: step_shared(p); break;
    }
}

static void run_layer(pass *p) {
    const pe_step_list *list = &p->model->arch->layers[layer_of(p)->kind];
    for (size_t i = 0; i < list->n_steps && p->s->n_tokens > 0; i++) {
        run_step(p, &list->steps[i]);
    }
}

/* ---- logits ----------------------------------------------------------- */

static pe_status check_logits(const pass *p, const float *logits, uint64_t n_rows, pe_error *err) {
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
    const pass *p;
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
static void finish_logits(const pass *p, float *logits, uint64_t n_rows) {
    const pe_hparams *hp = &p->model->hparams;
    logits_job job = {.p = p, .logits = logits, .n = n_rows * hp->n_vocab};
    if (hp->logit_divisor != 1.0f || hp->logit_softcap > 0.0f) {
        pe_pool_run(p->ops->pool, scale_logits, &job,
                    (uint32_t)pe_ceil_div(job.n, LOGITS_PER_CHUNK));
    }
}

/* Computes the wanted logits in runs whose rows lie one behind the other. */
static pe_status run_head(pass *p, pe_error *err) {
    const pe_hparams *hp = &p->model->hparams;
    pe_scratch *s = p->s;
    p->weight = p->model->shared[PE_W_OUTPUT_NORM].data;
    p->norm_in = s->up;
    p->norm_out = s->h;
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
        pe_pool_run(p->ops->pool, norm_token, p, n_rows);
        set_h(p, s->h, n_rows, hp->d_model);
        const pe_product product = {
            .out = out, .out_stride = hp->n_vocab, .weight = &p->model->shared[PE_W_OUTPUT]};
        pe_matmul(p->ops, &product, 1, &p->h);
        finish_logits(p, out, n_rows);
        PE_TRY(check_logits(p, out, n_rows, err));
    }
    return PE_OK;
}

pe_status pe_forward(const pe_model *model, const pe_ops *ops, const pe_kv_pool *kv,
                     pe_scratch *scratch, const int32_t *cancel, pe_error *err) {
    pass p = {.model = model, .ops = ops, .kv = kv, .s = scratch};
    for_tokens(&p, embed_token);
    for (p.layer = 0; p.layer < model->hparams.n_layers; p.layer++) {
        // Another thread writes it; a stale read only costs one more layer.
        if (cancel != NULL && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0) {
            return pe_fail(err, PE_ERR_CANCELLED, "cancelled before layer %u of %u", p.layer,
                           model->hparams.n_layers);
        }
        run_layer(&p);
    }
    return run_head(&p, err);
}
