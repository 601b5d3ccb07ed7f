/* BERT: MiniLM, BGE, E5, GTE and others that embed texts. Learned positions, biases, exact GELU, a
 * norm behind each half of a layer. Every token is of the first type.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_ENCODER,
    PE_ROW("", has_rope, U32, VALUE, 0),
    PE_ROW("", d_rot, U32, VALUE, 0),
};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_ENCODER,
    PE_MATRIX(PE_W_POSITION_EMBD, "position_embd", CTX, MODEL),
    PE_SLOTS_ATTN,
    PE_MATRIX(PE_W_FFN_UP, "blk.ffn_up", FF, MODEL),
    PE_MATRIX(PE_W_FFN_DOWN, "blk.ffn_down", MODEL, FF),
    PE_MAYBE(PE_W_FFN_UP_BIAS, "blk.ffn_up.bias", FF),
    PE_MAYBE(PE_W_FFN_DOWN_BIAS, "blk.ffn_down.bias", MODEL),
};

static const pe_step STEPS[] = {
    PE_DO(RESIDUAL), PE_DO(QKV),           PE_STEPS_ATTEND, PE_LAYER_NORM(ATTN_OUT_NORM),
    PE_DO(GELU),     PE_PROJECT(FFN_DOWN), PE_DO(ADD),      PE_LAYER_NORM(LAYER_OUT_NORM),
};

const pe_arch pe_arch_bert = {
    .name = "bert",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .is_encoder = true,
};
