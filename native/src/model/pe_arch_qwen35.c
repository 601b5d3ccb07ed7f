/* Qwen 3.5 and 3.6: three of four layers are linear attention by the gated delta rule, the fourth
 * is attention whose heads have gates. Rotation is by a picture's axes, which in a text are one.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {PE_HPARAMS_PLAIN, PE_HPARAMS_ALWAYS_ROPE, PE_HPARAMS_DELTA};

static const pe_slot_row SLOTS[] = {
    PE_SLOTS_MODEL, PE_SLOTS_ATTN_GATED, PE_SLOTS_DELTA, PE_SLOTS_DELTA_APART, PE_SLOTS_FFN,
};

static const pe_step ATTENTION[] = {PE_STEPS_ATTEND_GATED, PE_STEPS_SWIGLU};
static const pe_step DELTA[] = {PE_STEPS_DELTA, PE_STEPS_SWIGLU};

const pe_arch pe_arch_qwen35 = {
    .name = "qwen35",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(ATTENTION)},
    .state = PE_STATE_DELTA,
    .recurrent = {[PE_LAYER_DENSE] = PE_STEP_LIST(DELTA)},
    .queries_are_gated = true,
    .delta_heads_alternate = true,
};
