/* Rotary position embedding (arXiv:2104.09864): its angles and its rotation. */
#ifndef PE_ROPE_H
#define PE_ROPE_H

#include "pe_base.h"

/* How the frequencies of dimension pairs follow from their number. */
typedef struct pe_rope_rule {
    float base;
    float factor;          // all are divided by it, with YaRN the slow ones only
    const float *factors;  // [n_pairs], each is further divided by its own; may be NULL
    bool is_yarn;          // the rest belongs to it
    bool truncates;        // the ramp starts and ends at whole pairs
    float beta_fast;       // turns over n_ctx above which a frequency is kept
    float beta_slow;       // below which it is divided by factor; between is a ramp
    uint32_t n_ctx;
} pe_rope_rule;

/* Fills the frequencies of n_pairs dimension pairs: base^(-i / n_pairs), scaled.
 * numeric  computed in double and rounded once to float; the same bits everywhere */
void pe_rope_freqs(float *out, uint32_t n_pairs, const pe_rope_rule *rule);

/* Cosines and sines of one position: the float angle (float)position * freqs[i] and
 * its functions in double, rounded to float, as the reference models do it, then times
 * magnitude.
 * shape    out: [n_pairs][2], cosine then sine */
void pe_rope_angles(float *out, const float *freqs, uint32_t n_pairs, uint32_t position,
                    float magnitude);

/* Rotates the pairs (2 i, 2 i + 1) of one head in place; dimensions behind them stay. */
void pe_rope_rotate_pairs(float *head, const float *angles, uint32_t n_pairs);

/* Rotates the pairs (i, i + n_pairs). */
void pe_rope_rotate_halves(float *head, const float *angles, uint32_t n_pairs);

#endif
