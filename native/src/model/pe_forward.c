#include "pe_forward.h"

#include <inttypes.h>
#include <math.h>

#include "pe_mem.h"
#include "pe_quant.h"
#include "pe_rope.h"

/* ---- scratch ---------------------------------------------------------- */

/* Takes one array of the scratch and counts its bytes; NULL once anything failed. */
static void *take(pe_scratch *s, uint64_t n_items, uint64_t item_bytes, bool *ok) {
    uint64_t n_bytes;
    void *block = NULL;
    if (*ok && pe_mul_u64(&n_bytes, n_items, item_bytes) &&
        pe_add_u64(&s->n_bytes, s->n_bytes, n_bytes)) {
        block = pe_mem_zalloc(n_items, item_bytes);
    }
    *ok = block != NULL;
    return block;
}

pe_status pe_scratch_init(pe_scratch *out_scratch, const pe_model *model, uint32_t n_batch,
                          uint32_t n_threads, pe_error *err) {
    const pe_hparams *hp = &model->hparams;
    const uint64_t d_heads = (uint64_t)hp->n_heads * hp->d_v;
    const uint64_t d_widest = PE_MAX(PE_MAX(hp->d_model, hp->d_ff), d_heads);
    const uint64_t n_pairs = hp->d_rot / 2;
    const uint64_t n = n_batch;
    *out_scratch = (pe_scratch){.n_batch = n_batch};
    pe_scratch *s = out_scratch;
    bool ok = true;
    s->tokens = take(s, n, sizeof *s->tokens, &ok);
    s->places = take(s, n, sizeof *s->places, &ok);
    s->rope_freqs = take(s, n_pairs, sizeof(float), &ok);
    s->angles = take(s, n * n_pairs * 2, sizeof(float), &ok);
    s->x = take(s, n * hp->d_model, sizeof(float), &ok);
    s->h = take(s, n * PE_MAX(hp->d_model, d_heads), sizeof(float), &ok);
    s->q = take(s, n * hp->n_heads * hp->d_k, sizeof(float), &ok);
    s->k = take(s, n * hp->n_kv_heads * hp->d_k, sizeof(float), &ok);
    s->v = take(s, n * hp->n_kv_heads * hp->d_v, sizeof(float), &ok);
    s->gate = take(s, n * hp->d_ff, sizeof(float), &ok);
    s->up = take(s, n * PE_MAX(hp->d_ff, hp->d_model), sizeof(float), &ok);
    s->q8 = take(s, n * pe_ceil_div(d_widest, PE_BLOCK), sizeof(pe_act_block), &ok);
    s->attend.n_floats = pe_attend_room_floats(hp->d_k, hp->d_v);
    s->attend.floats = take(s, n_threads, s->attend.n_floats * sizeof(float), &ok);
    s->attend.tiles = take(s, n, sizeof *s->attend.tiles, &ok);
    if (!ok) {
        const uint64_t n_bytes = s->n_bytes;
        pe_scratch_free(s);
        return pe_fail(err, PE_ERR_NOMEM,
                       "scratch for batches of %u tokens: expected %" PRIu64
                       " bytes or more, found no memory for them",
                       n_batch, n_bytes);
    }
    pe_rope_freqs(s->rope_freqs, (uint32_t)n_pairs, hp->rope_base, hp->rope_factor,
                  model->shared[PE_W_ROPE_FREQS].data);
    return PE_OK;
}

void pe_scratch_free(pe_scratch *scratch) {
    void *const blocks[] = {scratch->tokens,
                            scratch->places,
                            scratch->rope_freqs,
                            scratch->angles,
                            scratch->x,
                            scratch->h,
                            scratch->q,
                            scratch->k,
                            scratch->v,
                            scratch->gate,
                            scratch->up,
                            scratch->q8,
                            scratch->attend.floats,
                            scratch->attend.tiles};
    for (size_t i = 0; i < PE_LEN(blocks); i++) {
        pe_mem_free(blocks[i]);
    }
    *scratch = (pe_scratch){0};
}

/* ---- work on single tokens -------------------------------------------- */

typedef struct pass {
    const pe_model *model;
    const pe_ops *ops;
    const pe_kv_pool *kv;
    pe_scratch *s;
    uint32_t layer;
    pe_acts h;            // the current value and its width
    const float *weight;  // of the running norm
    const float *norm_in;
} pass;

/* Points h at n_cols columns of n_k fresh values. */
static void set_h(pass *p, const float *f32, size_t n_cols, size_t n_k) {
    p->h = (pe_acts){.f32 = f32, .q8 = p->s->q8, .n_cols = n_cols, .n_k = n_k};
}

static void embed_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_weight *embd = &p->model->shared[PE_W_TOKEN_EMBD];
    const uint64_t id = p->s->tokens[i_token].id;
    const uint64_t n_pairs = hp->d_rot / 2;
    pe_quant_unpack(p->s->x + (uint64_t)i_token * hp->d_model, embd->dtype,
                    (const uint8_t *)embd->data + id * embd->row_bytes, hp->d_model);
    pe_rope_angles(p->s->angles + i_token * n_pairs * 2, p->s->rope_freqs, (uint32_t)n_pairs,
                   p->s->places[i_token].position);
}

static void norm_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    p->ops->kernels.rms_norm(p->s->h + i_token * d_model, p->norm_in + i_token * d_model, p->weight,
                             d_model, p->model->hparams.norm_eps);
}

static void rope_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint32_t n_pairs = hp->d_rot / 2;
    const float *angles = p->s->angles + (uint64_t)i_token * n_pairs * 2;
    float *q = p->s->q + (uint64_t)i_token * hp->n_heads * hp->d_k;
    float *k = p->s->k + (uint64_t)i_token * hp->n_kv_heads * hp->d_k;
    for (uint32_t i = 0; i < hp->n_heads; i++) {
        pe_rope_rotate_pairs(q + (uint64_t)i * hp->d_k, angles, n_pairs);
    }
    for (uint32_t i = 0; i < hp->n_kv_heads; i++) {
        pe_rope_rotate_pairs(k + (uint64_t)i * hp->d_k, angles, n_pairs);
    }
}

static void store_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_place *place = &p->s->places[i_token];
    pe_kv_store(p->kv, place->table, p->layer, place->position,
                p->s->k + (uint64_t)i_token * hp->n_kv_heads * hp->d_k,
                p->s->v + (uint64_t)i_token * hp->n_kv_heads * hp->d_v);
}

static void silu_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const uint64_t d_ff = p->model->hparams.d_ff;
    float *gate = p->s->gate + i_token * d_ff;
    p->ops->kernels.silu_mul(gate, gate, p->s->up + i_token * d_ff, d_ff);
}

static void add_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    float *x = p->s->x + i_token * d_model;
    const float *y = p->s->up + i_token * d_model;
    for (uint64_t i = 0; i < d_model; i++) {
        x[i] += y[i];
    }
}

/* ---- steps ------------------------------------------------------------ */

static void for_tokens(pass *p, pe_pool_fn fn) {
    pe_pool_run(p->ops->pool, fn, p, p->s->n_tokens);
}

static const pe_weight *weight_of(const pass *p, pe_slot slot) {
    return &p->model->layers[p->layer][slot];
}

static pe_product product_of(const pass *p, float *out, pe_slot weight, pe_slot bias) {
    return (pe_product){.out = out,
                        .out_stride = weight_of(p, weight)->n_rows,
                        .weight = weight_of(p, weight),
                        .bias = weight_of(p, bias)};
}

static void step_rms_norm(pass *p, const pe_step *step) {
    p->weight = weight_of(p, step->weight)->data;
    p->norm_in = p->s->x;
    for_tokens(p, norm_token);
    set_h(p, p->s->h, p->s->n_tokens, p->model->hparams.d_model);
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

static void step_attend(pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    for_tokens(p, store_token);
    if (p->layer + 1 == hp->n_layers) {
        drop_unwanted(p);
    }
    const pe_queries queries = {.q = p->s->q,
                                .places = p->s->places,
                                .n_tokens = p->s->n_tokens,
                                .n_heads = hp->n_heads,
                                .scale = 1.0f / sqrtf((float)hp->d_k)};
    pe_attend(p->ops, p->kv, p->layer, p->s->h, &queries, &p->s->attend);
    set_h(p, p->s->h, p->s->n_tokens, (size_t)hp->n_heads * hp->d_v);
}

static void step_swiglu(pass *p) {
    const pe_product products[] = {
        product_of(p, p->s->up, PE_W_FFN_UP, PE_W_FFN_UP_BIAS),
        product_of(p, p->s->gate, PE_W_FFN_GATE, PE_W_FFN_GATE_BIAS),
    };
    pe_matmul(p->ops, products, PE_LEN(products), &p->h);
    for_tokens(p, silu_token);
    set_h(p, p->s->gate, p->s->n_tokens, p->model->hparams.d_ff);
}

static void step_project_add(pass *p, const pe_step *step) {
    const pe_product product = product_of(p, p->s->up, step->weight, step->bias);
    pe_matmul(p->ops, &product, 1, &p->h);
    for_tokens(p, add_token);
}

static void run_layer(pass *p) {
    const pe_arch *arch = p->model->arch;
    for (size_t i = 0; i < arch->n_steps && p->s->n_tokens > 0; i++) {
        const pe_step *step = &arch->steps[i];
        switch (step->kind) {
        case PE_STEP_RMS_NORM: step_rms_norm(p, step); break;
        case PE_STEP_QKV: step_qkv(p); break;
        case PE_STEP_ROPE_PAIRS: for_tokens(p, rope_token); break;
        case PE_STEP_ATTEND: step_attend(p); break;
        case PE_STEP_SWIGLU: step_swiglu(p); break;
        case PE_STEP_PROJECT_ADD: step_project_add(p, step); break;
        }
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

/* Computes the wanted logits in runs whose rows lie one behind the other. */
static pe_status run_head(pass *p, pe_error *err) {
    const pe_hparams *hp = &p->model->hparams;
    pe_scratch *s = p->s;
    p->weight = p->model->shared[PE_W_OUTPUT_NORM].data;
    p->norm_in = s->up;
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
