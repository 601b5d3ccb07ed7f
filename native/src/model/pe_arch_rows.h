/* Rows that the tables of several families share. */
#ifndef PE_ARCH_ROWS_H
#define PE_ARCH_ROWS_H

#include "pe_arch.h"

#define PE_ROW(key, field, kind, absent, value)                                                    \
    {key, offsetof(pe_hparams, field), PE_HPARAM_##kind, PE_ABSENT_##absent, value}

/* ---- hyper-parameters ------------------------------------------------- */

/* What every family reads: a key that its files never have keeps its default. */
#define PE_HPARAMS_COMMON(embd_absent, attn_value)                                                 \
    PE_HPARAMS_WITH_EPS("attention.layer_norm_rms_epsilon", embd_absent, attn_value)
#define PE_HPARAMS_WITH_EPS(eps_key, embd_absent, attn_value)                                      \
    PE_ROW("block_count", n_layers, U32, ERROR, 0),                                                \
        PE_ROW("context_length", n_ctx_train, U32, ERROR, 0),                                      \
        PE_ROW("embedding_length", d_model, U32, ERROR, 0),                                        \
        PE_ROW("feed_forward_length", d_ff, EACH, EXPERT_FF, 0),                                   \
        PE_ROW("attention.head_count", n_heads, U32, ERROR, 0),                                    \
        PE_ROW("attention.head_count_kv", n_kv_heads, EACH, HEADS, 0),                             \
        PE_ROW("attention.key_length", d_k, U32, HEAD_WIDTH, 0),                                   \
        PE_ROW("attention.value_length", d_v, U32, HEAD_WIDTH, 0),                                 \
        PE_ROW("attention.key_length_swa", d_k_local, U32, D_K, 0),                                \
        PE_ROW("attention.value_length_swa", d_v_local, U32, D_V, 0),                              \
        PE_ROW(eps_key, norm_eps, F32, ERROR, 0),                                                  \
        PE_ROW("attention.causal", is_causal, BOOL, VALUE, 1),                                     \
        PE_ROW("pooling_type", pooling, U32, VALUE, PE_POOLING_UNSAID),                            \
        PE_ROW("attention.sliding_window", window, U32, VALUE, 0),                                 \
        PE_ROW("attention.scale", attn_scale, F32, ATTN_SCALE, attn_value),                        \
        PE_ROW("embedding_scale", embd_scale, F32, embd_absent, 1),                                \
        PE_ROW("residual_scale", residual_scale, F32, VALUE, 1),                                   \
        PE_ROW("logit_scale", logit_divisor, F32, VALUE, 1),                                       \
        PE_ROW("final_logit_softcapping", logit_softcap, F32, VALUE, 0),                           \
        PE_ROW("attn_logit_softcapping", attn_softcap, F32, VALUE, 0),                             \
        PE_ROW("rope.dimension_count", d_rot, U32, D_K, 0),                                        \
        PE_ROW("rope.dimension_count_swa", d_rot_local, U32, D_ROT, 0),                            \
        PE_ROW("rope.freq_base", rope_base, F32, VALUE, 10000),                                    \
        PE_ROW("rope.scaling.original_context_length", n_ctx_rope, U32, CTX, 0),                   \
        PE_ROW("rope.scaling.attn_factor", rope_attn_factor, F32, VALUE, 1),                       \
        PE_ROW("rope.scaling.yarn_attn_factor", yarn_attn_factor, F32, VALUE, 0),                  \
        PE_ROW("rope.scaling.yarn_log_multiplier", yarn_log_mul, F32, VALUE, 0),                   \
        PE_ROW("rope.scaling.yarn_beta_fast", yarn_beta_fast, F32, VALUE, 32),                     \
        PE_ROW("rope.scaling.yarn_beta_slow", yarn_beta_slow, F32, VALUE, 1),                      \
        PE_ROW("expert_count", n_experts, U32, VALUE, 0),                                          \
        PE_ROW("expert_used_count", n_experts_used, U32, VALUE, 0),                                \
        PE_ROW("expert_feed_forward_length", d_expert, U32, D_FF, 0),                              \
        PE_ROW("expert_shared_feed_forward_length", d_shared, U32, VALUE, 0),                      \
        PE_ROW("expert_weights_norm", experts_are_normed, BOOL, VALUE, 1)

/* What families differ in by default. */
#define PE_HPARAMS_ROPE(local_absent, local_value, truncates)                                      \
    PE_ROW("rope.freq_base_swa", rope_base_local, F32, local_absent, local_value),                 \
        PE_ROW("rope.scaling.yarn_truncate", yarn_truncate, BOOL, VALUE, truncates)

#define PE_HPARAMS_PLAIN PE_HPARAMS_COMMON(VALUE, 0), PE_HPARAMS_ROPE(ROPE_BASE, 0, 1)

/* Files say whether positions are rotated at all. */
#define PE_HPARAMS_HAS_ROPE PE_ROW("rope.scaling.finetuned", has_rope, BOOL, VALUE, 1)
/* They do not: all are. */
#define PE_HPARAMS_ALWAYS_ROPE PE_ROW("", has_rope, U32, VALUE, 1)

/* Encoders: norms that also center, every token sees every other. */
#define PE_HPARAMS_ENCODER                                                                         \
    PE_HPARAMS_WITH_EPS("attention.layer_norm_epsilon", VALUE, 0),                                 \
        PE_HPARAMS_ROPE(ROPE_BASE, 0, 1), PE_ROW("attention.causal", is_causal, BOOL, VALUE, 0)

/* ---- weights ---------------------------------------------------------- */

#define PE_MATRIX(slot, name, rows, cols)                                                          \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_REQUIRED, 0, 0}
#define PE_TABLE(slot, name, rows, cols, flags)                                                    \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_LOOKUP | (flags), 0, 0}
#define PE_VECTOR(slot, name, cols) {slot, name, PE_DIM_ONE, PE_DIM_##cols, PE_SLOT_VECTOR, 0, 0}
#define PE_MAYBE(slot, name, cols)                                                                 \
    {slot, name, PE_DIM_ONE, PE_DIM_##cols, PE_SLOT_VECTOR | PE_SLOT_OPTIONAL, 0, 0}
/* Rows of a taller tensor. */
#define PE_PART(slot, name, rows, cols, first, whole)                                              \
    {slot, name, PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_REQUIRED, PE_DIM_##first, PE_DIM_##whole}

#define PE_SLOTS_MODEL                                                                             \
    PE_TABLE(PE_W_TOKEN_EMBD, "token_embd", VOCAB, MODEL, 0),                                      \
        PE_VECTOR(PE_W_OUTPUT_NORM, "output_norm.weight", MODEL),                                  \
        {PE_W_OUTPUT, "output.weight", PE_DIM_VOCAB, PE_DIM_MODEL, PE_SLOT_TIED, 0, 0}

#define PE_SLOTS_ROPE_LONG                                                                         \
    PE_MAYBE(PE_W_ROPE_LONG, "rope_factors_long.weight", ROT_PAIRS),                               \
        PE_MAYBE(PE_W_ROPE_SHORT, "rope_factors_short.weight", ROT_PAIRS)

#define PE_SLOTS_ROPE PE_MAYBE(PE_W_ROPE_FREQS, "rope_freqs.weight", ROT_PAIRS), PE_SLOTS_ROPE_LONG

/* In layers with keys and values. */
#define PE_ATTN_MATRIX(slot, name, rows, cols)                                                     \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_ATTENTION, 0, 0}
#define PE_ATTN_VECTOR(slot, name, cols, flags)                                                    \
    {slot, name, PE_DIM_ONE, PE_DIM_##cols, PE_SLOT_ATTENTION | PE_SLOT_VECTOR | (flags), 0, 0}

#define PE_SLOTS_ATTN_OUT                                                                          \
    PE_ATTN_MATRIX(PE_W_ATTN_OUT, "blk.attn_output", MODEL, HEADS),                                \
        PE_ATTN_VECTOR(PE_W_ATTN_OUT_BIAS, "blk.attn_output.bias", MODEL, PE_SLOT_OPTIONAL)

#define PE_SLOTS_ATTN                                                                              \
    PE_ATTN_MATRIX(PE_W_ATTN_Q, "blk.attn_q", Q, MODEL),                                           \
        PE_ATTN_MATRIX(PE_W_ATTN_K, "blk.attn_k", K, MODEL),                                       \
        PE_ATTN_MATRIX(PE_W_ATTN_V, "blk.attn_v", V, MODEL),                                       \
        PE_ATTN_VECTOR(PE_W_ATTN_Q_BIAS, "blk.attn_q.bias", Q, PE_SLOT_OPTIONAL),                  \
        PE_ATTN_VECTOR(PE_W_ATTN_K_BIAS, "blk.attn_k.bias", K, PE_SLOT_OPTIONAL),                  \
        PE_ATTN_VECTOR(PE_W_ATTN_V_BIAS, "blk.attn_v.bias", V, PE_SLOT_OPTIONAL),                  \
        PE_SLOTS_ATTN_OUT

#define PE_SLOTS_NORM_HEADS                                                                        \
    PE_ATTN_VECTOR(PE_W_ATTN_Q_NORM, "blk.attn_q_norm.weight", HEAD, 0),                           \
        PE_ATTN_VECTOR(PE_W_ATTN_K_NORM, "blk.attn_k_norm.weight", HEAD, 0)

#define PE_SLOTS_PRE_NORMS                                                                         \
    PE_VECTOR(PE_W_ATTN_NORM, "blk.attn_norm.weight", MODEL),                                      \
        PE_VECTOR(PE_W_FFN_NORM, "blk.ffn_norm.weight", MODEL)

#define PE_SLOTS_POST_NORMS                                                                        \
    PE_VECTOR(PE_W_ATTN_POST_NORM, "blk.post_attention_norm.weight", MODEL),                       \
        PE_VECTOR(PE_W_FFN_POST_NORM, "blk.post_ffw_norm.weight", MODEL)

#define PE_DENSE_MATRIX(slot, name, rows, cols)                                                    \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_DENSE, 0, 0}
#define PE_DENSE_BIAS(slot, name, cols)                                                            \
    {slot,                                                                                         \
     name ".bias",                                                                                 \
     PE_DIM_ONE,                                                                                   \
     PE_DIM_##cols,                                                                                \
     PE_SLOT_DENSE | PE_SLOT_VECTOR | PE_SLOT_OPTIONAL,                                            \
     0,                                                                                            \
     0}

#define PE_SLOTS_FFN                                                                               \
    PE_DENSE_MATRIX(PE_W_FFN_GATE, "blk.ffn_gate", FF, MODEL),                                     \
        PE_DENSE_MATRIX(PE_W_FFN_UP, "blk.ffn_up", FF, MODEL),                                     \
        PE_DENSE_MATRIX(PE_W_FFN_DOWN, "blk.ffn_down", MODEL, FF),                                 \
        PE_DENSE_BIAS(PE_W_FFN_GATE_BIAS, "blk.ffn_gate", FF),                                     \
        PE_DENSE_BIAS(PE_W_FFN_UP_BIAS, "blk.ffn_up", FF),                                         \
        PE_DENSE_BIAS(PE_W_FFN_DOWN_BIAS, "blk.ffn_down", MODEL)

#define PE_STACKED(slot, name, rows, cols)                                                         \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_EXPERTS | PE_SLOT_STACKED, 0, 0}
#define PE_STACKED_BIAS(slot, name, cols)                                                          \
    {slot,                                                                                         \
     name ".bias",                                                                                 \
     PE_DIM_ONE,                                                                                   \
     PE_DIM_##cols,                                                                                \
     PE_SLOT_EXPERTS | PE_SLOT_STACKED | PE_SLOT_VECTOR | PE_SLOT_OPTIONAL,                        \
     0,                                                                                            \
     0}
#define PE_EXPERT_MATRIX(slot, name, rows, cols)                                                   \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_EXPERTS, 0, 0}

#define PE_SLOTS_EXPERTS                                                                           \
    PE_EXPERT_MATRIX(PE_W_ROUTER, "blk.ffn_gate_inp", EXPERTS, MODEL),                             \
        PE_STACKED(PE_W_EXPERTS_GATE, "blk.ffn_gate_exps", EXPERT, MODEL),                         \
        PE_STACKED(PE_W_EXPERTS_UP, "blk.ffn_up_exps", EXPERT, MODEL),                             \
        PE_STACKED(PE_W_EXPERTS_DOWN, "blk.ffn_down_exps", MODEL, EXPERT)

/* Of no rows where the model has no such expert: then no tensors. */
#define PE_SLOTS_SHARED                                                                            \
    PE_EXPERT_MATRIX(PE_W_SHARED_GATE, "blk.ffn_gate_shexp", SHARED, MODEL),                       \
        PE_EXPERT_MATRIX(PE_W_SHARED_UP, "blk.ffn_up_shexp", SHARED, MODEL),                       \
        PE_EXPERT_MATRIX(PE_W_SHARED_DOWN, "blk.ffn_down_shexp", MODEL, SHARED)

/* In layers with a state. */
#define PE_RECURRENT(slot, name, rows, cols, flags)                                                \
    {slot, name, PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_RECURRENT | (flags), 0, 0}

/* Of the gated delta rule, but for the two numbers of each head. */
#define PE_SLOTS_DELTA                                                                             \
    PE_RECURRENT(PE_W_DELTA_QKV, "blk.attn_qkv.weight", DELTA_CHANNELS, MODEL, 0),                 \
        PE_RECURRENT(PE_W_DELTA_GATE, "blk.attn_gate.weight", DELTA_VALUES, MODEL, 0),             \
        PE_RECURRENT(PE_W_DELTA_CONV, "blk.ssm_conv1d.weight", DELTA_CHANNELS, CONV,               \
                     PE_SLOT_VECTOR),                                                              \
        PE_RECURRENT(PE_W_DELTA_STEP_BIAS, "blk.ssm_dt.bias", ONE, DELTA_HEADS, PE_SLOT_VECTOR),   \
        PE_RECURRENT(PE_W_DELTA_RATE, "blk.ssm_a", ONE, DELTA_HEADS, PE_SLOT_VECTOR),              \
        PE_RECURRENT(PE_W_DELTA_NORM, "blk.ssm_norm.weight", ONE, DELTA_V, PE_SLOT_VECTOR),        \
        PE_RECURRENT(PE_W_DELTA_OUT, "blk.ssm_out.weight", MODEL, DELTA_VALUES, 0)

/* Apart, or together: those of a key head's values, first how much they learn. */
#define PE_SLOTS_DELTA_APART                                                                       \
    PE_RECURRENT(PE_W_DELTA_BETA, "blk.ssm_beta.weight", DELTA_HEADS, MODEL, 0),                   \
        PE_RECURRENT(PE_W_DELTA_ALPHA, "blk.ssm_alpha.weight", DELTA_HEADS, MODEL, 0)
#define PE_SLOTS_DELTA_TOGETHER                                                                    \
    PE_RECURRENT(PE_W_DELTA_BETA_ALPHA, "blk.ssm_ba.weight", TWO_DELTA_HEADS, MODEL, 0)

/* Attention whose queries have gates, and normed heads. */
#define PE_SLOTS_ATTN_GATED                                                                        \
    PE_ATTN_MATRIX(PE_W_ATTN_Q, "blk.attn_q", TWO_Q, MODEL),                                       \
        PE_ATTN_MATRIX(PE_W_ATTN_K, "blk.attn_k", K, MODEL),                                       \
        PE_ATTN_MATRIX(PE_W_ATTN_V, "blk.attn_v", V, MODEL),                                       \
        PE_ATTN_MATRIX(PE_W_ATTN_OUT, "blk.attn_output", MODEL, HEADS), PE_SLOTS_NORM_HEADS,       \
        PE_VECTOR(PE_W_ATTN_NORM, "blk.attn_norm.weight", MODEL),                                  \
        PE_VECTOR(PE_W_ATTN_POST_NORM, "blk.post_attention_norm.weight", MODEL)

#define PE_SLOTS_SHARED_SWITCHED                                                                   \
    PE_SLOTS_SHARED, {PE_W_SHARED_SWITCH,                                                          \
                      "blk.ffn_gate_inp_shexp.weight",                                             \
                      PE_DIM_ONE,                                                                  \
                      PE_DIM_MODEL,                                                                \
                      PE_SLOT_EXPERTS | PE_SLOT_VECTOR,                                            \
                      0,                                                                           \
                      0}

#define PE_HPARAMS_DELTA                                                                           \
    PE_ROW("ssm.conv_kernel", n_conv, U32, ERROR, 0),                                              \
        PE_ROW("ssm.group_count", n_delta_k_heads, U32, ERROR, 0),                                 \
        PE_ROW("ssm.time_step_rank", n_delta_v_heads, U32, ERROR, 0),                              \
        PE_ROW("ssm.state_size", d_delta_k, U32, ERROR, 0),                                        \
        PE_ROW("ssm.inner_size", d_delta_values, U32, ERROR, 0),                                   \
        PE_ROW("nextn_predict_layers", n_predictors, U32, VALUE, 0)

/* Of encoders, whose norms stand behind what they norm. */
#define PE_SLOTS_ENCODER                                                                           \
    PE_TABLE(PE_W_TOKEN_EMBD, "token_embd", VOCAB, MODEL, 0), {PE_W_TYPE_EMBD,                     \
                                                               "token_types.weight",               \
                                                               PE_DIM_TYPES,                       \
                                                               PE_DIM_MODEL,                       \
                                                               PE_SLOT_OPTIONAL,                   \
                                                               0,                                  \
                                                               0},                                 \
        PE_VECTOR(PE_W_EMBD_NORM, "token_embd_norm.weight", MODEL),                                \
        PE_VECTOR(PE_W_EMBD_NORM_BIAS, "token_embd_norm.bias", MODEL),                             \
        PE_VECTOR(PE_W_ATTN_OUT_NORM, "blk.attn_output_norm.weight", MODEL),                       \
        PE_VECTOR(PE_W_ATTN_OUT_NORM_BIAS, "blk.attn_output_norm.bias", MODEL),                    \
        PE_VECTOR(PE_W_LAYER_OUT_NORM, "blk.layer_output_norm.weight", MODEL),                     \
        PE_VECTOR(PE_W_LAYER_OUT_NORM_BIAS, "blk.layer_output_norm.bias", MODEL)

/* ---- steps ------------------------------------------------------------ */

#define PE_DO(kind) {PE_STEP_##kind, PE_W_NONE, PE_W_NONE}
#define PE_DO_WITH(kind, weight) {PE_STEP_##kind, PE_W_##weight, PE_W_NONE}
#define PE_PROJECT(weight) {PE_STEP_PROJECT, PE_W_##weight, PE_W_##weight##_BIAS}
#define PE_LAYER_NORM(weight) {PE_STEP_LAYER_NORM, PE_W_##weight, PE_W_##weight##_BIAS}

#define PE_STEPS_SWIGLU PE_DO(SWIGLU), PE_PROJECT(FFN_DOWN), PE_DO(ADD)
#define PE_STEPS_ATTEND PE_DO(ATTEND), PE_PROJECT(ATTN_OUT), PE_DO(ADD)

#define PE_STEPS_ATTEND_GATED                                                                      \
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV_GATED), PE_DO(NORM_QK), PE_DO(ROPE_HALVES),         \
        PE_DO(ATTEND), PE_DO(GATE_HEADS), PE_DO_WITH(PROJECT, ATTN_OUT), PE_DO(ADD),               \
        PE_DO_WITH(RMS_NORM, ATTN_POST_NORM)
#define PE_STEPS_DELTA                                                                             \
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(DELTA), PE_DO_WITH(PROJECT, DELTA_OUT), PE_DO(ADD),     \
        PE_DO_WITH(RMS_NORM, ATTN_POST_NORM)

/* A layer of Gemma 3. */
#define PE_SLOTS_GEMMA3                                                                            \
    PE_SLOTS_MODEL, PE_SLOTS_PRE_NORMS, PE_SLOTS_POST_NORMS, PE_SLOTS_ATTN, PE_SLOTS_NORM_HEADS,   \
        PE_SLOTS_FFN
#define PE_STEPS_GEMMA3                                                                            \
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV), PE_DO(NORM_QK), PE_DO(ROPE_HALVES),               \
        PE_DO(ATTEND), PE_PROJECT(ATTN_OUT), PE_DO_WITH(POST_NORM, ATTN_POST_NORM), PE_DO(ADD),    \
        PE_DO_WITH(RMS_NORM, FFN_NORM), PE_DO(GEGLU), PE_PROJECT(FFN_DOWN),                        \
        PE_DO_WITH(POST_NORM, FFN_POST_NORM), PE_DO(ADD)

#define PE_STEP_LIST(list) {list, PE_LEN(list)}
#define PE_TABLES(hparam_rows, slot_rows)                                                          \
    .hparams = hparam_rows, .n_hparams = PE_LEN(hparam_rows), .slots = slot_rows,                  \
    .n_slots = PE_LEN(slot_rows)

#endif
