/* Rotary position embedding (arXiv:2104.09864): its angles and its rotation. */
#ifndef PE_ROPE_H
#define PE_ROPE_H

#include "pe_base.h"

/* Fills the frequencies of n_pairs dimension pairs: base^(-i / n_pairs) / factor,
 * further divided by factors[i] when factors is not NULL (llama3 and LongRoPE
 * scaling store them in the file).
 * numeric  computed in double and rounded once to float; the same bits everywhere */
void pe_rope_freqs(float *out, uint32_t n_pairs, float base, float factor, const float *factors);

/* Cosines and sines of one position: the float angle (float)position * freqs[i] and
 * its functions in double, rounded to float, as the reference models do it.
 * shape    out: [n_pairs][2], cosine then sine */
void pe_rope_angles(float *out, const float *freqs, uint32_t n_pairs, uint32_t position);

/* Rotates the pairs (2 i, 2 i + 1) of one head in place; dimensions behind them stay. */
void pe_rope_rotate_pairs(float *head, const float *angles, uint32_t n_pairs);

#endif
