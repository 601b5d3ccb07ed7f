/* A pass of a batch through the layers, and the steps that it is made of. */
#ifndef PE_PASS_H
#define PE_PASS_H

#include "pe_scratch.h"

typedef struct pe_pass {
    const pe_model *model;
    const pe_ops *ops;
    const pe_kv_pool *kv;
    pe_scratch *s;
    uint32_t layer;
    pe_acts h;  // the current value and its width
    // of the running step
    const float *weight;
    const float *bias;
    const float *norm_in;
    float *norm_out;
    float *gate;  // [tokens or rows][d_gate], which up multiplies
    const float *up;
    uint64_t d_gate;
    void (*rotate)(float *head, const float *angles, uint32_t n_pairs);
} pe_pass;

/* Points h at n_cols columns of n_k fresh values. */
static inline void pe_pass_set_h(pe_pass *p, const float *f32, size_t n_cols, size_t n_k) {
    p->h = (pe_acts){.f32 = f32, .q8 = p->s->q8, .n_cols = n_cols, .n_k = n_k};
}

static inline const pe_layer_hparams *pe_pass_layer(const pe_pass *p) {
    return &p->model->layer_hparams[p->layer];
}

static inline const pe_weight *pe_pass_weight(const pe_pass *p, pe_slot slot) {
    return &p->model->layers[p->layer][slot];
}

/* The angles of a kind from a token on. */
static inline float *pe_pass_angles(const pe_pass *p, pe_rope_angles_kind kind, uint32_t i_token) {
    return p->s->angles + ((uint64_t)kind * p->s->n_batch + i_token) * p->s->d_angles;
}

static inline pe_product pe_pass_product(const pe_pass *p, float *out, pe_slot weight,
                                         pe_slot bias) {
    return (pe_product){.out = out,
                        .out_stride = pe_pass_weight(p, weight)->n_rows,
                        .weight = pe_pass_weight(p, weight),
                        .bias = pe_pass_weight(p, bias)};
}

/* Runs fn(pass, token, thread) for every token of the batch. */
static inline void pe_pass_for_tokens(pe_pass *p, pe_pool_fn fn) {
    pe_pool_run(p->ops->pool, fn, p, p->s->n_tokens);
}

/* ---- pe_step.c: what is done to tokens one by one ---- */

/* out = rms_norm(in) * weight for n_rows rows of d_model. */
void pe_step_norm_rows(pe_pass *p, const float *weight, const float *in, float *out,
                       uint32_t n_rows);
void pe_step_residual(pe_pass *p);
void pe_step_norm(pe_pass *p, const pe_step *step, const float *in, float *out);
void pe_step_layer_norm(pe_pass *p, const pe_step *step);
void pe_step_project(pe_pass *p, const pe_step *step);
void pe_step_add(pe_pass *p);
void pe_step_scale(pe_pass *p, const pe_step *step);

/* In the last layer with keys and values or a state of its own, once those have taken all
 * tokens, the ones whose logits nobody wants are done: the others move together with all that
 * they need further on, and so do their n_k values. Each is computed by itself, so this changes
 * no bit. */
void pe_step_drop_unwanted(pe_pass *p, float *values, uint64_t n_k);

/* Before that: moves together what else such tokens need in this layer. */
void pe_step_move_wanted(pe_pass *p, float *values, uint64_t n_k);

/* ---- pe_step_attend.c ---- */

void pe_step_qkv(pe_pass *p);
void pe_step_qkv_gated(pe_pass *p);
void pe_step_norm_qk(pe_pass *p);
void pe_step_norm_v(pe_pass *p);
void pe_step_rope(pe_pass *p, void (*rotate)(float *, const float *, uint32_t));
void pe_step_temper(pe_pass *p);
void pe_step_attend(pe_pass *p, const pe_step *step);
void pe_step_gate_heads(pe_pass *p);

/* ---- pe_step_gated.c: feed-forward and experts ---- */

void pe_step_swiglu(pe_pass *p);
void pe_step_geglu(pe_pass *p);
void pe_step_gelu(pe_pass *p);
void pe_step_shared(pe_pass *p);
void pe_step_experts(pe_pass *p);
void pe_step_experts_clamped(pe_pass *p);
void pe_step_experts_beside(pe_pass *p);

/* ---- pe_step_ple.c: inputs of a token's own to each layer ---- */

/* Fills the inputs of all tokens for all layers, from their embeddings in x. */
void pe_ple_prepare(pe_pass *p);
void pe_step_ple(pe_pass *p);

/* ---- pe_step_mamba2.c ---- */

void pe_step_mamba2(pe_pass *p);

/* ---- pe_step_shortconv.c ---- */

/* Channels that a thread takes through all tokens. A layer's state has those of a convolution
 * in such groups, each [n_conv - 1][channels of the group], the oldest token's first. */
#define PE_CONV_GROUP 64u

/* Weights of a group of n channels from first on: out[tap][PE_CONV_GROUP], of which there
 * are n_taps, from rows of n_taps. */
void pe_step_read_taps(float *out, const float *weights, uint64_t first, uint64_t n,
                       uint64_t n_taps);

/* out[i] = the sum over k, in order, of taps[k][i] * (channel i of token k - n_past), of n channels
 * of one token, whose own are `newest`; the state moves on by it.
 * shape    taps: [n_past + 1][PE_CONV_GROUP], state: [n_past][n]
 * alias    out may be newest */
void pe_step_convolve(float *out, float *state, const float *taps, const float *newest, uint64_t n,
                      uint64_t n_past);

void pe_step_shortconv(pe_pass *p);

/* ---- pe_step_latent.c ---- */

void pe_step_latent_qk(pe_pass *p);
void pe_step_latent_out(pe_pass *p);

/* ---- pe_step_delta.c ---- */

void pe_step_delta(pe_pass *p);

/* ---- pe_head.c ---- */

/* Gives the tokens of the batch the hidden states and the logits that they want.
 * errors   PE_ERR_NUMERIC for a logit that is NaN or infinite; hidden states are not checked */
pe_status pe_head_run(pe_pass *p, pe_error *err);

#endif
