#include "pe_pass.h"

static void norm_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    p->ops->kernels.rms_norm(p->norm_out + i_token * d_model, p->norm_in + i_token * d_model,
                             p->weight, d_model, p->model->hparams.norm_eps);
}

void pe_step_norm_rows(pe_pass *p, const float *weight, const float *in, float *out,
                       uint32_t n_rows) {
    p->weight = weight;
    p->norm_in = in;
    p->norm_out = out;
    pe_pool_run(p->ops->pool, norm_token, p, n_rows);
}

void pe_step_residual(pe_pass *p) {
    pe_pass_set_h(p, p->s->x, p->s->n_tokens, p->model->hparams.d_model);
}

void pe_step_norm(pe_pass *p, const pe_step *step, const float *in, float *out) {
    pe_step_norm_rows(p, pe_pass_weight(p, step->weight)->data, in, out, p->s->n_tokens);
    pe_pass_set_h(p, out, p->s->n_tokens, p->model->hparams.d_model);
}

static void layer_norm_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    float *x = p->s->x + i_token * d_model;
    p->ops->kernels.layer_norm(x, x, p->weight, p->bias, d_model, p->model->hparams.norm_eps);
}

void pe_step_layer_norm(pe_pass *p, const pe_step *step) {
    p->weight = pe_pass_weight(p, step->weight)->data;
    p->bias = pe_pass_weight(p, step->bias)->data;
    pe_pass_for_tokens(p, layer_norm_token);
    pe_step_residual(p);
}

void pe_step_project(pe_pass *p, const pe_step *step) {
    const pe_product product = pe_pass_product(p, p->s->up, step->weight, step->bias);
    pe_matmul(p->ops, &product, 1, &p->h);
    pe_pass_set_h(p, p->s->up, p->s->n_tokens, product.weight->n_rows);
}

static void add_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    const float scale = p->model->hparams.residual_scale;
    float *x = p->s->x + i_token * d_model;
    const float *h = p->h.f32 + i_token * d_model;
    for (uint64_t i = 0; i < d_model; i++) {
        x[i] += scale * h[i];
    }
}

static void scale_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    float *x = p->s->x + i_token * d_model;
    for (uint64_t i = 0; i < d_model; i++) {
        x[i] *= p->weight[0];
    }
}

void pe_step_scale(pe_pass *p, const pe_step *step) {
    p->weight = pe_pass_weight(p, step->weight)->data;
    if (p->weight != NULL) {
        pe_pass_for_tokens(p, scale_token);
    }
}

void pe_step_add(pe_pass *p) {
    pe_pass_for_tokens(p, add_token);
}

static bool is_last_with_memory(const pe_pass *p) {
    return p->layer + 1 == p->model->hparams.n_layers - p->model->hparams.n_shared_kv;
}

void pe_step_move_wanted(pe_pass *p, float *values, uint64_t n_k) {
    const pe_scratch *s = p->s;
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < s->n_tokens && n_k > 0 && is_last_with_memory(p); i++) {
        if (!pe_token_is_wanted(&s->tokens[i])) {
            continue;
        }
        if (n_kept < i) {
            memcpy(values + n_kept * n_k, values + i * n_k, n_k * sizeof *values);
        }
        n_kept++;
    }
}

void pe_step_drop_unwanted(pe_pass *p, float *values, uint64_t n_k) {
    const pe_hparams *hp = &p->model->hparams;
    pe_scratch *s = p->s;
    if (!is_last_with_memory(p)) {
        return;
    }
    pe_step_move_wanted(p, values, n_k);
    pe_step_move_wanted(p, s->x, hp->d_model);
    pe_step_move_wanted(p, s->ple, (uint64_t)hp->n_layers * hp->d_ple);
    for (uint32_t kind = 0; kind < s->n_rotations; kind++) {
        pe_step_move_wanted(p, pe_pass_angles(p, (pe_rope_angles_kind)kind, 0), s->d_angles);
    }
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        if (pe_token_is_wanted(&s->tokens[i])) {
            s->tokens[n_kept] = s->tokens[i];
            s->places[n_kept++] = s->places[i];
        }
    }
    s->n_tokens = n_kept;
}
