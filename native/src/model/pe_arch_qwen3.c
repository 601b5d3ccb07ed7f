/* Qwen 3: each query and key head is normed before it is rotated. */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_PLAIN, PE_HPARAMS_ALWAYS_ROPE};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL, PE_SLOTS_PRE_NORMS, PE_SLOTS_ATTN, PE_SLOTS_NORM_HEADS, PE_SLOTS_FFN,
};

static const pe_step STEPS[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM),
    PE_DO(QKV),
    PE_DO(NORM_QK),
    PE_DO(ROPE_HALVES),
    PE_STEPS_ATTEND,
    PE_DO_WITH(RMS_NORM, FFN_NORM),
    PE_STEPS_SWIGLU,
};

const pe_arch pe_arch_qwen3 = {
    .name = "qwen3",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
};
