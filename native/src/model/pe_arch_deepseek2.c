/* DeepSeek V2 and V3, GLM 4.7 Flash, Moonlight: latent attention, whose cache holds one
 * compressed vector a token for all heads; experts behind leading dense layers, chosen by
 * groups, and one that sees every token. */
#include "pe_arch_rows.h"

/* Neither the width nor the scale of a head is what a file says of its cache: pe_hparams.c
 * derives both. */
static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_PLAIN,
    PE_HPARAMS_ALWAYS_ROPE,
    PE_ROW("attention.kv_lora_rank", d_latent, U32, ERROR, 0),
    PE_ROW("attention.q_lora_rank", d_query, U32, VALUE, 0),
    PE_ROW("attention.key_length_mla", d_head_k, U32, VALUE, 0),
    PE_ROW("attention.value_length_mla", d_head_v, U32, VALUE, 0),
    PE_ROW("attention.temperature_scale", temper_scale, F32, VALUE, 0),
    PE_ROW("leading_dense_block_count", n_dense_layers, U32, VALUE, 0),
    PE_ROW("nextn_predict_layers", n_predictors, U32, VALUE, 0),
    PE_ROW("expert_shared_count", n_shared, U32, VALUE, 0),
    PE_ROW("expert_weights_norm", experts_are_normed, BOOL, VALUE, 0),
    PE_ROW("expert_weights_scale", experts_scale, F32, VALUE, 0),
    PE_ROW("expert_gating_func", expert_gating, U32, VALUE, 0),
    PE_ROW("expert_group_count", n_expert_groups, U32, VALUE, 0),
    PE_ROW("expert_group_used_count", n_expert_groups_used, U32, VALUE, 0),
};

/* Of the two ways to queries, and of the two forms of what leads out of the latent, the one
 * that the file does not have is of no rows. */
#define PE_OF_HEADS(slot, name, rows, cols, whole)                                                 \
    {slot, name ".weight", PE_DIM_##rows, PE_DIM_##cols, PE_SLOT_HEADS, 0, PE_DIM_##whole}

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,
    PE_SLOTS_PRE_NORMS,
    PE_MATRIX(PE_W_ATTN_Q, "blk.attn_q", Q_DIRECT, MODEL),
    PE_MATRIX(PE_W_ATTN_Q_A, "blk.attn_q_a", QUERY, MODEL),
    PE_VECTOR(PE_W_ATTN_Q_A_NORM, "blk.attn_q_a_norm.weight", QUERY),
    PE_MATRIX(PE_W_ATTN_Q_B, "blk.attn_q_b", Q_INDIRECT, QUERY),
    PE_MATRIX(PE_W_ATTN_KV_A, "blk.attn_kv_a_mqa", LATENT_KEY, MODEL),
    PE_VECTOR(PE_W_ATTN_KV_A_NORM, "blk.attn_kv_a_norm.weight", LATENT),
    PE_OF_HEADS(PE_W_ATTN_K_B, "blk.attn_k_b", K_SPLIT, NOPE, NONE),
    PE_OF_HEADS(PE_W_ATTN_V_B, "blk.attn_v_b", V_SPLIT, LATENT, NONE),
    PE_OF_HEADS(PE_W_ATTN_KV_B, "blk.attn_kv_b", KV_HEAD, LATENT, KV_HEADS),
    PE_MATRIX(PE_W_ATTN_OUT, "blk.attn_output", MODEL, HEADS_OUT),
    PE_SLOTS_FFN,
    PE_SLOTS_EXPERTS,
    {PE_W_ROUTER_CHOICE, "blk.exp_probs_b.bias", PE_DIM_ONE, PE_DIM_EXPERTS,
     PE_SLOT_EXPERTS | PE_SLOT_VECTOR | PE_SLOT_OPTIONAL, 0, 0},
    PE_SLOTS_SHARED,
};

#define PE_STEPS_LATENT                                                                            \
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(LATENT_QK), PE_DO(ROPE_PAIRS), PE_DO(TEMPER),           \
        PE_DO(ATTEND), PE_DO(LATENT_OUT), PE_PROJECT(ATTN_OUT), PE_DO(ADD),                        \
        PE_DO_WITH(RMS_NORM, FFN_NORM)

static const pe_step DENSE[] = {PE_STEPS_LATENT, PE_STEPS_SWIGLU};
static const pe_step EXPERTS[] = {PE_STEPS_LATENT, PE_DO(EXPERTS), PE_DO(SHARED)};

const pe_arch pe_arch_deepseek2 = {
    .name = "deepseek2",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(DENSE), [PE_LAYER_EXPERTS] = PE_STEP_LIST(EXPERTS)},
};
