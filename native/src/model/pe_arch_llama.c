/* Llama 1 to 3.3 and what shares its graph: Mistral, SmolLM2, TinyLlama, Yi; with experts,
 * Mixtral. Query and key rows are permuted in GGUF files so that rotated pairs are
 * neighbours.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_PLAIN, PE_HPARAMS_ALWAYS_ROPE};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL, PE_SLOTS_ROPE, PE_SLOTS_PRE_NORMS,
    PE_SLOTS_ATTN,  PE_SLOTS_FFN,  PE_SLOTS_EXPERTS,
};

static const pe_step DENSE[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV),      PE_DO(ROPE_PAIRS), PE_STEPS_ATTEND,
    PE_DO_WITH(RMS_NORM, FFN_NORM),  PE_STEPS_SWIGLU,
};

static const pe_step EXPERTS[] = {
    PE_DO_WITH(RMS_NORM, ATTN_NORM), PE_DO(QKV),     PE_DO(ROPE_PAIRS), PE_STEPS_ATTEND,
    PE_DO_WITH(RMS_NORM, FFN_NORM),  PE_DO(EXPERTS),
};

const pe_arch pe_arch_llama = {
    .name = "llama",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(DENSE), [PE_LAYER_EXPERTS] = PE_STEP_LIST(EXPERTS)},
};
