/* Phi 3, 3.5 and 4: q, k and v in one tensor, gate and up in another, part of each head
 * rotated, LongRoPE.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_PLAIN, PE_HPARAMS_ALWAYS_ROPE};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,
    PE_SLOTS_ROPE_LONG,
    PE_SLOTS_PRE_NORMS,
    PE_PART(PE_W_ATTN_Q, "blk.attn_qkv.weight", Q, MODEL, NONE, QKV),
    PE_PART(PE_W_ATTN_K, "blk.attn_qkv.weight", K, MODEL, Q, QKV),
    PE_PART(PE_W_ATTN_V, "blk.attn_qkv.weight", V, MODEL, QK, QKV),
    PE_SLOTS_ATTN_OUT,
    PE_PART(PE_W_FFN_GATE, "blk.ffn_up.weight", FF, MODEL, NONE, TWO_FF),
    PE_PART(PE_W_FFN_UP, "blk.ffn_up.weight", FF, MODEL, FF, TWO_FF),
    PE_MATRIX(PE_W_FFN_DOWN, "blk.ffn_down", MODEL, FF),
};

static const pe_step STEPS[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV),      PE_DO(ROPE_HALVES), PE_STEPS_ATTEND,
    PE_DO_WITH(RMS_NORM, FFN_NORM),  PE_STEPS_SWIGLU,
};

const pe_arch pe_arch_phi3 = {
    .name = "phi3",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
};
