#include "pe_scratch.h"

#include <inttypes.h>

#include "pe_angles.h"
#include "pe_hparams.h"
#include "pe_mem.h"

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

static void take_experts(pe_scratch *s, const pe_hparams *hp, bool *ok) {
    const uint64_t n_rows = (uint64_t)s->n_batch * hp->n_experts_used;
    pe_routes *routes = &s->routes;
    routes->n_used = hp->n_experts_used;
    routes->n_experts = hp->n_experts;
    routes->experts = take(s, n_rows, sizeof(uint32_t), ok);
    routes->weights = take(s, n_rows, sizeof(float), ok);
    routes->rows = take(s, n_rows, sizeof(uint32_t), ok);
    routes->tokens = take(s, n_rows, sizeof(uint32_t), ok);
    routes->firsts = take(s, hp->n_experts + 1, sizeof(uint32_t), ok);
    routes->groups = take(s, hp->n_experts, sizeof(uint32_t), ok);
    routes->scores = take(s, (uint64_t)s->n_batch * hp->n_experts, sizeof(float), ok);
    s->router_logits = take(s, (uint64_t)s->n_batch * hp->n_experts, sizeof(float), ok);
    s->switches = take(s, s->n_batch, sizeof(float), ok);
    s->expert_h = take(s, n_rows * hp->d_model, sizeof(float), ok);
    s->expert_gate = take(s, n_rows * hp->d_expert, sizeof(float), ok);
    s->expert_up = take(s, n_rows * hp->d_expert, sizeof(float), ok);
    s->expert_q8 = take(s, n_rows * pe_ceil_div(PE_MAX(hp->d_model, hp->d_expert), PE_BLOCK),
                        sizeof(pe_act_block), ok);
}

/* The largest sizes of any layer. */
typedef struct widths {
    uint64_t k;  // of all KV heads
    uint64_t v;
    uint32_t d_k;
    uint32_t d_v;
    uint32_t d_ff;
} widths;

static widths widest(const pe_model *model) {
    widths w = {0};
    for (uint32_t i = 0; i < model->hparams.n_layers; i++) {
        const pe_layer_hparams *layer = &model->layer_hparams[i];
        w.k = PE_MAX(w.k, (uint64_t)layer->n_kv_heads * layer->d_k);
        w.v = PE_MAX(w.v, (uint64_t)layer->n_kv_heads * layer->d_v);
        w.d_k = PE_MAX(w.d_k, layer->d_k);
        w.d_v = PE_MAX(w.d_v, layer->d_v);
        w.d_ff = PE_MAX(w.d_ff, layer->d_ff);
    }
    return w;
}

static void take_angles(pe_scratch *s, const pe_hparams *hp, bool *ok) {
    s->n_rotations = hp->window > 0 ? PE_ROPE_NONE : PE_ROPE_LOCAL;
    s->n_pairs[PE_ROPE_GLOBAL] = hp->d_rot / 2;
    s->n_pairs[PE_ROPE_LOCAL] = hp->d_rot_local / 2;
    s->d_angles = PE_MAX(hp->d_rot, hp->d_rot_local);
    s->rope_freqs = take(s, s->n_rotations * s->d_angles / 2, sizeof(float), ok);
    s->angles = take(s, s->n_rotations * s->d_angles * s->n_batch, sizeof(float), ok);
}

static void take_latent(pe_scratch *s, const pe_hparams *hp, bool *ok) {
    const uint64_t n = s->n_batch;
    const uint64_t d_in = PE_MAX(hp->d_head_k - hp->d_rot, hp->d_latent);
    s->raw_heads = take(s, n * hp->n_heads * PE_MAX(hp->d_head_k, hp->d_head_v), sizeof(float), ok);
    s->query = take(s, n * PE_MAX(hp->d_query, 1u), sizeof(float), ok);
    s->latent = take(s, n * hp->d_k, sizeof(float), ok);
    s->heads_q8 = take(s, n * hp->n_heads * pe_ceil_div(d_in, PE_BLOCK), sizeof(pe_act_block), ok);
}

pe_status pe_scratch_init(pe_scratch *out_scratch, const pe_model *model, uint32_t n_batch,
                          uint32_t n_ctx, uint32_t n_threads, pe_error *err) {
    const pe_hparams *hp = &model->hparams;
    const widths w = widest(model);
    const uint64_t d_heads = PE_MAX((uint64_t)hp->n_heads * w.d_v, hp->d_delta_values);
    const uint64_t d_inner = PE_MAX(PE_MAX(w.d_ff, hp->d_shared), hp->d_ple);
    const uint64_t d_outs = PE_MAX((uint64_t)hp->n_heads * hp->d_head_v, hp->d_query);
    const uint64_t d_mixed = PE_MAX(d_heads, hp->d_inner);  // by heads of either kind
    const uint64_t d_widest = PE_MAX(PE_MAX(PE_MAX(hp->d_model, d_inner), d_mixed), d_outs);
    const uint64_t n = n_batch;
    *out_scratch = (pe_scratch){.n_batch = n_batch};
    pe_scratch *s = out_scratch;
    bool ok = true;
    s->tokens = take(s, n, sizeof *s->tokens, &ok);
    s->places = take(s, n, sizeof *s->places, &ok);
    take_angles(s, hp, &ok);
    s->x = take(s, n * hp->d_model, sizeof(float), &ok);
    s->h = take(s, n * PE_MAX(hp->d_model, d_mixed), sizeof(float), &ok);
    s->q = take(s, n * hp->n_heads * w.d_k, sizeof(float), &ok);
    s->k = take(s, n * w.k, sizeof(float), &ok);
    s->v = take(s, n * w.v, sizeof(float), &ok);
    s->ones = take(s, PE_MAX(hp->d_model, w.d_v), sizeof(float), &ok);
    s->gate = take(s, n * d_inner, sizeof(float), &ok);
    s->up = take(s, n * PE_MAX(d_inner, hp->d_model), sizeof(float), &ok);
    s->q8 = take(s, n * pe_ceil_div(d_widest, PE_BLOCK), sizeof(pe_act_block), &ok);
    s->attend.n_floats = pe_attend_room_floats(w.d_k, w.d_v);
    s->attend.floats = take(s, n_threads, s->attend.n_floats * sizeof(float), &ok);
    s->attend.tiles = take(s, n, sizeof *s->attend.tiles, &ok);
    if (model->state_floats > 0) {
        s->spans = take(s, n, sizeof *s->spans, &ok);
        s->mix = take(s, n * pe_hparams_mix_width(hp, model->arch->state), sizeof(float), &ok);
    }
    if (model->arch->queries_are_gated) {
        s->q_gates = take(s, n * 2 * hp->n_heads * w.d_k, sizeof(float), &ok);
    }
    if (hp->n_experts > 0) {
        take_experts(s, hp, &ok);
    }
    if (hp->d_ple > 0) {
        s->ple = take(s, n * hp->n_layers * hp->d_ple, sizeof(float), &ok);
    }
    if (hp->d_latent > 0) {
        take_latent(s, hp, &ok);
    }
    if (!ok) {
        const uint64_t n_bytes = s->n_bytes;
        pe_scratch_free(s);
        return pe_fail(err, PE_ERR_NOMEM,
                       "scratch for batches of %u tokens: expected %" PRIu64
                       " bytes or more, found no memory for them",
                       n_batch, n_bytes);
    }
    for (uint32_t kind = 0; kind < s->n_rotations; kind++) {
        pe_rope_rule rule;
        pe_angles_rule(&rule, &s->rope_magnitudes[kind], model, (pe_rope_angles_kind)kind, n_ctx);
        pe_rope_freqs(s->rope_freqs + kind * s->d_angles / 2, s->n_pairs[kind], &rule);
    }
    for (uint64_t i = 0; i < PE_MAX(hp->d_model, w.d_v); i++) {
        s->ones[i] = 1.0f;
    }
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
                            scratch->ones,
                            scratch->ple,
                            scratch->gate,
                            scratch->up,
                            scratch->q8,
                            scratch->attend.floats,
                            scratch->attend.tiles,
                            scratch->spans,
                            scratch->mix,
                            scratch->q_gates,
                            scratch->routes.experts,
                            scratch->routes.weights,
                            scratch->routes.rows,
                            scratch->routes.tokens,
                            scratch->routes.firsts,
                            scratch->routes.groups,
                            scratch->router_logits,
                            scratch->switches,
                            scratch->expert_h,
                            scratch->expert_gate,
                            scratch->expert_up,
                            scratch->expert_q8,
                            scratch->raw_heads,
                            scratch->query,
                            scratch->latent,
                            scratch->heads_q8,
                            scratch->routes.scores};
    for (size_t i = 0; i < PE_LEN(blocks); i++) {
        pe_mem_free(blocks[i]);
    }
    *scratch = (pe_scratch){0};
}
