/* Llama 1 to 3.3 and what shares its graph: Mistral, SmolLM2, TinyLlama, Yi.
 * Query and key rows are permuted in GGUF files so that rotated pairs are
 * neighbours.
 */
#include "pe_arch.h"

#define U32(key, field, absent, value)                                                             \
    {key, offsetof(pe_hparams, field), PE_HPARAM_U32, absent, value}
#define F32(key, field, absent, value)                                                             \
    {key, offsetof(pe_hparams, field), PE_HPARAM_F32, absent, value}

static const pe_hparam_row HPARAMS[] = {
    U32("block_count", n_layers, PE_ABSENT_ERROR, 0),
    U32("context_length", n_ctx_train, PE_ABSENT_ERROR, 0),
    U32("embedding_length", d_model, PE_ABSENT_ERROR, 0),
    U32("feed_forward_length", d_ff, PE_ABSENT_ERROR, 0),
    U32("attention.head_count", n_heads, PE_ABSENT_ERROR, 0),
    U32("attention.head_count_kv", n_kv_heads, PE_ABSENT_HEADS, 0),
    U32("attention.key_length", d_k, PE_ABSENT_HEAD_WIDTH, 0),
    U32("attention.value_length", d_v, PE_ABSENT_HEAD_WIDTH, 0),
    U32("rope.dimension_count", d_rot, PE_ABSENT_D_K, 0),
    U32("expert_count", n_experts, PE_ABSENT_VALUE, 0),
    F32("attention.layer_norm_rms_epsilon", norm_eps, PE_ABSENT_ERROR, 0),
    F32("rope.freq_base", rope_base, PE_ABSENT_VALUE, 10000.0f),
};

#define VECTOR PE_SLOT_VECTOR
#define BIAS (PE_SLOT_VECTOR | PE_SLOT_OPTIONAL)

static const pe_slot_row SLOTS[] = {
    {PE_W_TOKEN_EMBD, "token_embd.weight", PE_DIM_VOCAB, PE_DIM_MODEL, PE_SLOT_REQUIRED},
    {PE_W_OUTPUT_NORM, "output_norm.weight", PE_DIM_ONE, PE_DIM_MODEL, VECTOR},
    {PE_W_OUTPUT, "output.weight", PE_DIM_VOCAB, PE_DIM_MODEL, PE_SLOT_TIED},
    {PE_W_ROPE_FREQS, "rope_freqs.weight", PE_DIM_ONE, PE_DIM_ROT_PAIRS, BIAS},
    {PE_W_ATTN_NORM, "blk.attn_norm.weight", PE_DIM_ONE, PE_DIM_MODEL, VECTOR},
    {PE_W_ATTN_Q, "blk.attn_q.weight", PE_DIM_Q, PE_DIM_MODEL, PE_SLOT_REQUIRED},
    {PE_W_ATTN_K, "blk.attn_k.weight", PE_DIM_K, PE_DIM_MODEL, PE_SLOT_REQUIRED},
    {PE_W_ATTN_V, "blk.attn_v.weight", PE_DIM_V, PE_DIM_MODEL, PE_SLOT_REQUIRED},
    {PE_W_ATTN_OUT, "blk.attn_output.weight", PE_DIM_MODEL, PE_DIM_HEADS, PE_SLOT_REQUIRED},
    {PE_W_ATTN_Q_BIAS, "blk.attn_q.bias", PE_DIM_ONE, PE_DIM_Q, BIAS},
    {PE_W_ATTN_K_BIAS, "blk.attn_k.bias", PE_DIM_ONE, PE_DIM_K, BIAS},
    {PE_W_ATTN_V_BIAS, "blk.attn_v.bias", PE_DIM_ONE, PE_DIM_V, BIAS},
    {PE_W_ATTN_OUT_BIAS, "blk.attn_output.bias", PE_DIM_ONE, PE_DIM_MODEL, BIAS},
    {PE_W_FFN_NORM, "blk.ffn_norm.weight", PE_DIM_ONE, PE_DIM_MODEL, VECTOR},
    {PE_W_FFN_GATE, "blk.ffn_gate.weight", PE_DIM_FF, PE_DIM_MODEL, PE_SLOT_REQUIRED},
    {PE_W_FFN_UP, "blk.ffn_up.weight", PE_DIM_FF, PE_DIM_MODEL, PE_SLOT_REQUIRED},
    {PE_W_FFN_DOWN, "blk.ffn_down.weight", PE_DIM_MODEL, PE_DIM_FF, PE_SLOT_REQUIRED},
    {PE_W_FFN_GATE_BIAS, "blk.ffn_gate.bias", PE_DIM_ONE, PE_DIM_FF, BIAS},
    {PE_W_FFN_UP_BIAS, "blk.ffn_up.bias", PE_DIM_ONE, PE_DIM_FF, BIAS},
    {PE_W_FFN_DOWN_BIAS, "blk.ffn_down.bias", PE_DIM_ONE, PE_DIM_MODEL, BIAS},
};

static const pe_step STEPS[] = {
    {PE_STEP_RMS_NORM, PE_W_ATTN_NORM, PE_W_NONE},
    {PE_STEP_QKV, PE_W_NONE, PE_W_NONE},
    {PE_STEP_ROPE_PAIRS, PE_W_NONE, PE_W_NONE},
    {PE_STEP_ATTEND, PE_W_NONE, PE_W_NONE},
    {PE_STEP_PROJECT_ADD, PE_W_ATTN_OUT, PE_W_ATTN_OUT_BIAS},
    {PE_STEP_RMS_NORM, PE_W_FFN_NORM, PE_W_NONE},
    {PE_STEP_SWIGLU, PE_W_NONE, PE_W_NONE},
    {PE_STEP_PROJECT_ADD, PE_W_FFN_DOWN, PE_W_FFN_DOWN_BIAS},
};

const pe_arch pe_arch_llama = {
    .name = "llama",
    .hparams = HPARAMS,
    .n_hparams = PE_LEN(HPARAMS),
    .slots = SLOTS,
    .n_slots = PE_LEN(SLOTS),
    .steps = STEPS,
    .n_steps = PE_LEN(STEPS),
};
