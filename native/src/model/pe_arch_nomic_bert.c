/* Nomic's BERT, which embeds texts: rotated heads, SwiGLU, q, k and v in one tensor, a norm behind
 * each half of a layer.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_ENCODER, PE_HPARAMS_ALWAYS_ROPE};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_ENCODER,
    PE_PART(PE_W_ATTN_Q, "blk.attn_qkv.weight", Q, MODEL, NONE, QKV),
    PE_PART(PE_W_ATTN_K, "blk.attn_qkv.weight", K, MODEL, Q, QKV),
    PE_PART(PE_W_ATTN_V, "blk.attn_qkv.weight", V, MODEL, QK, QKV),
    PE_SLOTS_ATTN_OUT,
    PE_SLOTS_FFN,
};

static const pe_step STEPS[] = {
    PE_DO(RESIDUAL),
    PE_DO(QKV),
    PE_DO(ROPE_HALVES),
    PE_STEPS_ATTEND,
    PE_LAYER_NORM(ATTN_OUT_NORM),
    PE_STEPS_SWIGLU,
    PE_LAYER_NORM(LAYER_OUT_NORM),
};

const pe_arch pe_arch_nomic_bert = {
    .name = "nomic-bert",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .is_encoder = true,
};
