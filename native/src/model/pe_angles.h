/* A model's rotation frequencies: which rule of pe_rope.h its hyper-parameters ask for. */
#ifndef PE_ANGLES_H
#define PE_ANGLES_H

#include "pe_bind.h"
#include "pe_rope.h"

/* The rule for a kind of layers, and what its cosines and sines are multiplied by, in
 * sessions of up to n_ctx positions: LongRoPE has one set of factors for contexts up to
 * the one first trained and one for longer ones. */
void pe_angles_rule(pe_rope_rule *out, float *out_magnitude, const pe_model *model,
                    pe_rope_angles_kind kind, uint32_t n_ctx);

#endif
