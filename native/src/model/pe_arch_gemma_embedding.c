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

static const pe_slot_row SLOTS[] = {PE_SLOTS_GEMMA3};

static const pe_step STEPS[] = {PE_STEPS_GEMMA3};

const pe_arch pe_arch_gemma_embedding = {
    .name = "gemma-embedding",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .window_period = 6,
    .local_rope_is_unscaled = true,
    .window_is_symmetric = true,
    .is_encoder = true,
};
