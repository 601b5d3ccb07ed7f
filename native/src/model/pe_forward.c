#include "pe_forward.h"

#include "pe_pass.h"
#include "pe_quant.h"
#include "pe_rope.h"
#include "pe_tap.h"

/* Adds row i of an embedding to x, if the model has it. */
static void add_row(float *x, float *room, const pe_weight *embd, uint64_t i) {
    if (embd->data == NULL) {
        return;
    }
    pe_quant_unpack(room, embd->dtype, (const uint8_t *)embd->data + i * embd->row_bytes,
                    embd->n_cols);
    for (uint64_t d = 0; d < embd->n_cols; d++) {
        x[d] += room[d];
    }
}

static void embed_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_weight *embd = &p->model->shared[PE_W_TOKEN_EMBD];
    const uint64_t id = p->s->tokens[i_token].id;
    float *x = p->s->x + (uint64_t)i_token * hp->d_model;
    pe_quant_unpack(x, embd->dtype, (const uint8_t *)embd->data + id * embd->row_bytes,
                    hp->d_model);
    for (uint64_t i = 0; i < hp->d_model; i++) {
        x[i] *= hp->embd_scale;
    }
    const pe_weight *shared = p->model->shared;
    float *room = p->s->h + (uint64_t)i_token * hp->d_model;
    add_row(x, room, &shared[PE_W_TYPE_EMBD], 0);
    add_row(x, room, &shared[PE_W_POSITION_EMBD], p->s->places[i_token].position);
    if (shared[PE_W_EMBD_NORM].data != NULL) {
        p->ops->kernels.layer_norm(x, x, shared[PE_W_EMBD_NORM].data,
                                   shared[PE_W_EMBD_NORM_BIAS].data, hp->d_model, hp->norm_eps);
    }
    for (uint32_t kind = 0; kind < p->s->n_rotations; kind++) {
        pe_rope_angles(pe_pass_angles(p, (pe_rope_angles_kind)kind, i_token),
                       p->s->rope_freqs + (uint64_t)kind * p->s->d_angles / 2, p->s->n_pairs[kind],
                       p->s->places[i_token].position, p->s->rope_magnitudes[kind]);
    }
}

static void run_step(pe_pass *p, const pe_step *step) {
    switch (step->kind) {
    case PE_STEP_RESIDUAL: pe_step_residual(p); break;
    case PE_STEP_RMS_NORM: pe_step_norm(p, step, p->s->x, p->s->h); break;
    case PE_STEP_POST_NORM: pe_step_norm(p, step, p->h.f32, p->s->up); break;
    case PE_STEP_QKV: pe_step_qkv(p); break;
    case PE_STEP_NORM_QK: pe_step_norm_qk(p); break;
    case PE_STEP_ROPE_PAIRS: pe_step_rope(p, pe_rope_rotate_pairs); break;
    case PE_STEP_ROPE_HALVES: pe_step_rope(p, pe_rope_rotate_halves); break;
    case PE_STEP_TEMPER: pe_step_temper(p); break;
    case PE_STEP_ATTEND: pe_step_attend(p, step); break;
    case PE_STEP_SWIGLU: pe_step_swiglu(p); break;
    case PE_STEP_GEGLU: pe_step_geglu(p); break;
    case PE_STEP_PROJECT: pe_step_project(p, step); break;
    case PE_STEP_ADD: pe_step_add(p); break;
    case PE_STEP_EXPERTS: pe_step_experts(p); break;
    case PE_STEP_EXPERTS_CLAMPED: pe_step_experts_clamped(p); break;
    case PE_STEP_SHARED: pe_step_shared(p); break;
    case PE_STEP_NORM_V: pe_step_norm_v(p); break;
    case PE_STEP_EXPERTS_BESIDE: pe_step_experts_beside(p); break;
    case PE_STEP_PLE: pe_step_ple(p); break;
    case PE_STEP_SCALE: pe_step_scale(p, step); break;
    case PE_STEP_SHORTCONV: pe_step_shortconv(p); break;
    case PE_STEP_LATENT_QK: pe_step_latent_qk(p); break;
    case PE_STEP_LATENT_OUT: pe_step_latent_out(p); break;
    case PE_STEP_QKV_GATED: pe_step_qkv_gated(p); break;
    case PE_STEP_GATE_HEADS: pe_step_gate_heads(p); break;
    case PE_STEP_DELTA: pe_step_delta(p); break;
    case PE_STEP_MAMBA2: pe_step_mamba2(p); break;
    case PE_STEP_LAYER_NORM: pe_step_layer_norm(p, step); break;
    case PE_STEP_GELU: pe_step_gelu(p); break;
    }
}

/* Whether a run that is for its taps alone has shown them all. */
static bool is_over(const pe_pass *p) {
    const pe_taps *taps = p->ops->taps;
    return taps != NULL && taps->end_run && taps->n_unseen == 0;
}

static void run_layer(pe_pass *p) {
    const pe_layer_hparams *layer = pe_pass_layer(p);
    const pe_arch *arch = p->model->arch;
    const pe_step_list *list =
        layer->is_recurrent ? &arch->recurrent[layer->kind] : &arch->layers[layer->kind];
    for (size_t i = 0; i < list->n_steps && p->s->n_tokens > 0 && !is_over(p); i++) {
        run_step(p, &list->steps[i]);
    }
}

/* Where only some layers run, tokens' hidden is their row of the residual stream, which goes in
 * and comes out there. */
static void load_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    memcpy(p->s->x + i_token * d_model, p->s->tokens[i_token].hidden, d_model * sizeof *p->s->x);
}

static void save_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    memcpy(p->s->tokens[i_token].hidden, p->s->x + i_token * d_model, d_model * sizeof *p->s->x);
}

pe_status pe_forward(const pe_model *model, const pe_ops *ops, const pe_kv_pool *kv,
                     pe_scratch *scratch, const int32_t *cancel, pe_error *err) {
    pe_pass p = {.model = model, .ops = ops, .kv = kv, .s = scratch};
    pe_pass_for_tokens(&p, embed_token);
    pe_ple_prepare(&p);
    const pe_layer_range range = scratch->range;
    if (range.rows != NULL && range.first > 0) {
        pe_pass_for_tokens(&p, load_token);
    }
    const uint32_t n_layers = model->hparams.n_layers;
    const uint32_t end = range.rows != NULL ? PE_MIN(range.end, n_layers) : n_layers;
    for (p.layer = range.rows != NULL ? range.first : 0; p.layer < end && !is_over(&p); p.layer++) {
        // Another thread writes it; a stale read only costs one more layer.
        if (cancel != NULL && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0) {
            return pe_fail(err, PE_ERR_CANCELLED, "cancelled before layer %u of %u", p.layer,
                           n_layers);
        }
        run_layer(&p);
    }
    if (range.rows != NULL && range.end <= n_layers) {
        pe_pass_for_tokens(&p, save_token);
        return PE_OK;
    }
    return pe_head_run(&p, err);
}
