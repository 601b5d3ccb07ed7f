/* LFM 2: most layers are gated convolutions over the last few tokens, some are attention with
 * normed heads. A layer without KV heads is a convolution.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_PLAIN,
    PE_HPARAMS_ALWAYS_ROPE,
    PE_ROW("shortconv.l_cache", n_conv, U32, ERROR, 0),
};

static const pe_slot_row SLOTS[] = {
    PE_TABLE(PE_W_TOKEN_EMBD, "token_embd", VOCAB, MODEL, 0),
    PE_VECTOR(PE_W_OUTPUT_NORM, "token_embd_norm.weight", MODEL),
    {PE_W_OUTPUT, "output.weight", PE_DIM_VOCAB, PE_DIM_MODEL, PE_SLOT_TIED, 0, 0},
    PE_SLOTS_PRE_NORMS,
    PE_SLOTS_ATTN,
    PE_SLOTS_NORM_HEADS,
    PE_RECURRENT(PE_W_SHORTCONV_IN, "blk.shortconv.in_proj.weight", THREE_MODEL, MODEL, 0),
    PE_RECURRENT(PE_W_SHORTCONV_CONV, "blk.shortconv.conv.weight", MODEL, CONV, PE_SLOT_VECTOR),
    PE_RECURRENT(PE_W_SHORTCONV_OUT, "blk.shortconv.out_proj.weight", MODEL, MODEL, 0),
    PE_SLOTS_FFN,
};

static const pe_step ATTENTION[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM),
    PE_DO(QKV),
    PE_DO(NORM_QK),
    PE_DO(ROPE_HALVES),
    PE_STEPS_ATTEND,
    PE_DO_WITH(RMS_NORM, FFN_NORM),
    PE_STEPS_SWIGLU,
};

static const pe_step CONVOLUTION[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM),    PE_DO(SHORTCONV),
    PE_DO_WITH(PROJECT, SHORTCONV_OUT), PE_DO(ADD),
    PE_DO_WITH(RMS_NORM, FFN_NORM),     PE_STEPS_SWIGLU,
};

const pe_arch pe_arch_lfm2 = {
    .name = "lfm2",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(ATTENTION)},
    .state = PE_STATE_SHORTCONV,
    .recurrent = {[PE_LAYER_DENSE] = PE_STEP_LIST(CONVOLUTION)},
};
