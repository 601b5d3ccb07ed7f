/* Gemma 3: as Gemma 2, but with normed heads instead of bounds, and five layers of six
 * windowed, which rotate with a base of their own and without scaling.
 */
#include "pe_arch_rows.h"

static const pe_hparam_row HPARAMS[] = {
    PE_HPARAMS_COMMON(ROOT_WIDTH, 62),
    PE_HPARAMS_ROPE(VALUE, 10000, 1),
    PE_HPARAMS_ALWAYS_ROPE,
};

static const pe_slot_row SLOTS[] = {PE_SLOTS_GEMMA3};

static const pe_step STEPS[] = {PE_STEPS_GEMMA3};

const pe_arch pe_arch_gemma3 = {
    .name = "gemma3",
    PE_TABLES(HPARAMS, SLOTS),
    .layers = {[PE_LAYER_DENSE] = PE_STEP_LIST(STEPS)},
    .window_period = 6,
    .local_rope_is_unscaled = true,
};
