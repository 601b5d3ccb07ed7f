/* gpt-oss: attention sinks, every other layer windowed, experts with biases and a clamped
 * gate. YaRN's ramp starts and ends between pairs.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_COMMON(VALUE, 0),
    PE_HPARAMS_ROPE(ROPE_BASE, 0, 0),
    PE_HPARAMS_ALWAYS_ROPE,
};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,
    PE_SLOTS_ATTN,
    PE_VECTOR(PE_W_ATTN_NORM, "blk.attn_norm.weight", MODEL),
    PE_VECTOR(PE_W_ATTN_POST_NORM, "blk.post_attention_norm.weight", MODEL),
    PE_VECTOR(PE_W_ATTN_SINKS, "blk.attn_sinks.weight", N_HEADS),
    PE_SLOTS_EXPERTS,
    PE_MAYBE(PE_W_ROUTER_BIAS, "blk.ffn_gate_inp.bias", EXPERTS),
    PE_STACKED_BIAS(PE_W_EXPERTS_GATE_BIAS, "blk.ffn_gate_exps", EXPERT),
    PE_STACKED_BIAS(PE_W_EXPERTS_UP_BIAS, "blk.ffn_up_exps", EXPERT),
    PE_STACKED_BIAS(PE_W_EXPERTS_DOWN_BIAS, "blk.ffn_down_exps", MODEL),
};

static const pe_step STEPS[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM),
    PE_DO(QKV),
    PE_DO(ROPE_HALVES),
    PE_DO_WITH(ATTEND, ATTN_SINKS),
    PE_PROJECT(ATTN_OUT),
    PE_DO(ADD),
    PE_DO_WITH(RMS_NORM, ATTN_POST_NORM),
    PE_DO(EXPERTS_CLAMPED),
};

const pe_arch pe_arch_gpt_oss = {
    .name = "gpt-oss",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_EXPERTS] = PE_STEP_LIST(STEPS)},
    .window_period = 2,
};
