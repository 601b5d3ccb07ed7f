/* Gemma 2: four norms a layer, every other layer windowed, scores and logits bounded.
 * Norms are stored with the 1 added that the formula adds.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_COMMON(ROOT_WIDTH, 46),
    PE_HPARAMS_ROPE(ROPE_BASE, 0, 1),
    PE_HPARAMS_ALWAYS_ROPE,
};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL, PE_SLOTS_PRE_NORMS, PE_SLOTS_POST_NORMS, PE_SLOTS_ATTN, PE_SLOTS_FFN,
};

static const pe_step STEPS[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM),
    PE_DO(QKV),
    PE_DO(ROPE_HALVES),
    PE_DO(ATTEND),
    PE_PROJECT(ATTN_OUT),
    PE_DO_WITH(POST_NORM, ATTN_POST_NORM),
    PE_DO(ADD),
    PE_DO_WITH(RMS_NORM, FFN_NORM),
    PE_DO(GEGLU),
    PE_PROJECT(FFN_DOWN),
    PE_DO_WITH(POST_NORM, FFN_POST_NORM),
    PE_DO(ADD),
};

const pe_arch pe_arch_gemma2 = {
    .name = "gemma2",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .window_period = 2,
};
