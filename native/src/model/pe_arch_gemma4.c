/* Gemma 4: wider heads in layers without a window, which may use keys as values; last layers
 * that attend to earlier ones' keys and values; inputs of a token's own to each layer; with
 * experts, a dense layer beside them. Heads of values are normed, scores are not scaled.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_COMMON(ROOT_WIDTH, 0),
    PE_HPARAMS_ROPE(VALUE, 10000, 1),
    PE_HPARAMS_ALWAYS_ROPE,
    // Readers take no notice of what a file says about it.
    PE_ROW("", attn_scale, F32, VALUE, 1),
    PE_ROW("attention.shared_kv_layers", n_shared_kv, U32, VALUE, 0),
    PE_ROW("embedding_length_per_layer_input", d_ple, U32, VALUE, 0),
};

/* Layers that attend to others' keys and values have none of these, or none that is read. */
#define KV(slot, name, rows, cols, flags)                                                          \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_KV | (flags), 0, 0}
#define EXPERTS_VECTOR(slot, name, cols, flags)                                                    \
    {slot, "blk." name, PE_DIM_ONE, PE_DIM_##cols, PE_SLOT_VECTOR | PE_SLOT_EXPERTS | (flags), 0, 0}
/* Gate and up of the experts may stand in one tensor or in two. */
#define HALF(slot, first)                                                                          \
    {slot,                                                                                         \
     "blk.ffn_gate_up_exps.weight",                                                                \
     PE_DIM_EXPERT,                                                                                \
     PE_DIM_MODEL,                                                                                 \
     PE_SLOT_EXPERTS | PE_SLOT_STACKED | PE_SLOT_ELSE,                                             \
     PE_DIM_##first,                                                                               \
     PE_DIM_GATE_UP}
#define WHOLE(slot, name)                                                                          \
    {slot,                                                                                         \
     "blk." name ".weight",                                                                        \
     PE_DIM_EXPERT,                                                                                \
     PE_DIM_MODEL,                                                                                 \
     PE_SLOT_EXPERTS | PE_SLOT_STACKED | PE_SLOT_OPTIONAL,                                         \
     0,                                                                                            \
     0}
#define PLE_MATRIX(slot, name, rows, cols)                                                         \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_PLE, 0, 0}
#define PLE_VECTOR(slot, name, cols)                                                               \
    {slot, name ".weight", PE_DIM_ONE, PE_DIM_##cols, PE_SLOT_PLE | PE_SLOT_VECTOR, 0, 0}

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,
    PE_SLOTS_PRE_NORMS,
    PE_SLOTS_POST_NORMS,
    PE_VECTOR(PE_W_ROPE_FREQS, "rope_freqs.weight", ROT_PAIRS),
    // attention
    PE_MATRIX(PE_W_ATTN_Q, "blk.attn_q", Q, MODEL),
    KV(PE_W_ATTN_K, "blk.attn_k", K, MODEL, 0),
    KV(PE_W_ATTN_V, "blk.attn_v", V, MODEL, PE_SLOT_OPTIONAL),
    PE_MATRIX(PE_W_ATTN_OUT, "blk.attn_output", MODEL, HEADS),
    PE_VECTOR(PE_W_ATTN_Q_NORM, "blk.attn_q_norm.weight", HEAD),
    KV(PE_W_ATTN_K_NORM, "blk.attn_k_norm", ONE, HEAD, PE_SLOT_VECTOR),
    // the dense layer
    PE_MATRIX(PE_W_FFN_GATE, "blk.ffn_gate", FF, MODEL),
    PE_MATRIX(PE_W_FFN_UP, "blk.ffn_up", FF, MODEL),
    PE_MATRIX(PE_W_FFN_DOWN, "blk.ffn_down", MODEL, FF),
    // experts beside it
    EXPERTS_VECTOR(PE_W_BESIDE_POST_NORM, "post_ffw_norm_1.weight", MODEL, 0),
    EXPERTS_VECTOR(PE_W_ROUTER_SCALE, "ffn_gate_inp.scale", MODEL, 0),
    PE_EXPERT_MATRIX(PE_W_ROUTER, "blk.ffn_gate_inp", EXPERTS, MODEL),
    EXPERTS_VECTOR(PE_W_EXPERTS_NORM, "pre_ffw_norm_2.weight", MODEL, 0),
    WHOLE(PE_W_EXPERTS_GATE, "ffn_gate_exps"),
    HALF(PE_W_EXPERTS_GATE, NONE),
    WHOLE(PE_W_EXPERTS_UP, "ffn_up_exps"),
    HALF(PE_W_EXPERTS_UP, EXPERT),
    PE_STACKED(PE_W_EXPERTS_DOWN, "blk.ffn_down_exps", MODEL, EXPERT),
    EXPERTS_VECTOR(PE_W_EXPERTS_SCALE, "ffn_down_exps.scale", EXPERTS, PE_SLOT_OPTIONAL),
    EXPERTS_VECTOR(PE_W_EXPERTS_POST_NORM, "post_ffw_norm_2.weight", MODEL, 0),
    // inputs to each layer
    PE_TABLE(PE_W_PLE_EMBD, "per_layer_token_embd", VOCAB, ALL_PLE, PE_SLOT_PLE),
    PLE_MATRIX(PE_W_PLE_PROJ, "per_layer_model_proj", ALL_PLE, MODEL),
    PLE_VECTOR(PE_W_PLE_PROJ_NORM, "per_layer_proj_norm", PLE),
    PLE_MATRIX(PE_W_PLE_GATE, "blk.inp_gate", PLE, MODEL),
    PLE_MATRIX(PE_W_PLE_OUT, "blk.proj", MODEL, PLE),
    PLE_VECTOR(PE_W_PLE_POST_NORM, "blk.post_norm", MODEL),
    PE_MAYBE(PE_W_LAYER_SCALE, "blk.layer_output_scale.weight", ONE),
};

#define ATTENTION                                                                                  \
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV), PE_DO(NORM_QK), PE_DO(NORM_V),                    \
        PE_DO(ROPE_HALVES), PE_DO(ATTEND), PE_PROJECT(ATTN_OUT),                                   \
        PE_DO_WITH(POST_NORM, ATTN_POST_NORM), PE_DO(ADD)
#define DENSE PE_DO_WITH(RMS_NORM, FFN_NORM), PE_DO(GEGLU), PE_PROJECT(FFN_DOWN)
#define END                                                                                        \
    PE_DO_WITH(POST_NORM, FFN_POST_NORM), PE_DO(ADD), PE_DO(PLE), PE_DO_WITH(SCALE, LAYER_SCALE)

static const pe_step DENSE_STEPS[] = {ATTENTION, DENSE, END};

static const pe_step EXPERTS_STEPS[] = {
    ATTENTION, DENSE, PE_DO_WITH(POST_NORM, BESIDE_POST_NORM), PE_DO(EXPERTS_BESIDE), END,
};

const pe_arch pe_arch_gemma4 = {
    .name = "gemma4",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(DENSE_STEPS),
               [PE_LAYER_EXPERTS] = PE_STEP_LIST(EXPERTS_STEPS)},
    .window_period = 6,
    .local_rope_is_unscaled = true,
};
