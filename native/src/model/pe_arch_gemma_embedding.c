/* EmbeddingGemma: Gemma 3's layers, but every token sees the whole text, in windowed layers as
 * far before it as behind it.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_COMMON(ROOT_WIDTH, 0),
    PE_HPARAMS_ROPE(VALUE, 10000, 1),
    PE_HPARAMS_ALWAYS_ROPE,
    PE_ROW("attention.causal", is_causal, BOOL, VALUE, 0),
};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL, PE_SLOTS_PRE_NORMS,  PE_SLOTS_POST_NORMS,
    PE_SLOTS_ATTN,  PE_SLOTS_NORM_HEADS, PE_SLOTS_FFN,
};

static const pe_step STEPS[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM),
    PE_DO(QKV),
    PE_DO(NORM_QK),
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

const pe_arch pe_arch_gemma_embedding = {
    .name = "gemma-embedding",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .window_period = 6,
    .local_rope_is_unscaled = true,
    .window_is_symmetric = true,
    .is_encoder = true,
};
