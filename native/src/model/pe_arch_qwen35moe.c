/* Qwen 3.5 and 3.6 with experts, and one that sees every token by a switch. */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_PLAIN, PE_HPARAMS_ALWAYS_ROPE, PE_HPARAMS_DELTA};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL,       PE_SLOTS_ATTN_GATED, PE_SLOTS_DELTA,
    PE_SLOTS_DELTA_APART, PE_SLOTS_EXPERTS,    PE_SLOTS_SHARED_SWITCHED,
};

static const pe_step ATTENTION[] = {PE_STEPS_ATTEND_GATED, PE_DO(EXPERTS), PE_DO(SHARED)};
static const pe_step DELTA[] = {PE_STEPS_DELTA, PE_DO(EXPERTS), PE_DO(SHARED)};

const pe_arch pe_arch_qwen35moe = {
    .name = "qwen35moe",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_EXPERTS] = PE_STEP_LIST(ATTENTION)},
    .state = PE_STATE_DELTA,
    .recurrent = {[PE_LAYER_EXPERTS] = PE_STEP_LIST(DELTA)},
    .queries_are_gated = true,
    .delta_heads_alternate = true,
};
