/* OLMo 2 and 3: norms behind attention and feed-forward only, q and k normed as a whole. */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_PLAIN, PE_HPARAMS_ALWAYS_ROPE};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,
    PE_SLOTS_POST_NORMS,
    PE_SLOTS_ATTN,
    PE_VECTOR(PE_W_ATTN_Q_NORM, "blk.attn_q_norm.weight", Q),
    PE_VECTOR(PE_W_ATTN_K_NORM, "blk.attn_k_norm.weight", K),
    PE_SLOTS_FFN,
};

static const pe_step STEPS[] = {
    PE_DO(RESIDUAL),
    PE_DO(QKV),
    PE_DO(NORM_QK),
    PE_DO(ROPE_HALVES),
    PE_DO(ATTEND),
    PE_PROJECT(ATTN_OUT),
    PE_DO_WITH(POST_NORM, ATTN_POST_NORM),
    PE_DO(ADD),
    PE_DO(RESIDUAL),
    PE_DO(SWIGLU),
    PE_PROJECT(FFN_DOWN),
    PE_DO_WITH(POST_NORM, FFN_POST_NORM),
    PE_DO(ADD),
};

const pe_arch pe_arch_olmo2 = {
    .name = "olmo2",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .window_period = 4,
    .local_rope_is_unscaled = true,
};
