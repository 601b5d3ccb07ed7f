/* Searches for the scale, and perhaps minimum, by which a run of up to 32 weights comes
 * closest to integers; all the float operations of ggml's searches, in their order.
 *
 * Errors are weighted. A run whose sums leave float gives NaN or infinity, which its
 * block then refuses. */
#ifndef PE_FIT_H
#define PE_FIT_H

#include "pe_base.h"

/* Runs that are nowhere as large as this count as zeros. */
#define PE_FIT_EPSILON 1e-15f

/* x as the nearest integer, ties to even, for |x| <= 2^22. Of anything else, NaN
 * included, the low bits of the same sum: some number, the same everywhere. */
static inline int pe_fit_nearest(float x) {
    return (int)(pe_f32_bits(x + 0x1.8p23f) & 0x7fffffu) - 0x400000;
}

static inline int pe_fit_hold(int q, int low, int high) {
    return q < low ? low : q > high ? high : q;
}

/* The weight of largest magnitude, the first of equals; 0 for no weights but zeros. */
float pe_fit_extreme(const float *x, size_t n);

/* x ~ scale * (q - half), q in 0..2 half - 1, where large weights count most: twenty
 * scales are tried. Returns the scale, 0 with all q 0 for a run of zeros. */
float pe_fit_scale(uint8_t *q, const float *x, size_t n, int half);

/* The same by turns: each q moves to where it helps most, up to five times around. */
float pe_fit_scale_by_turns(uint8_t *q, const float *x, size_t n, int half);

/* How pe_fit_scale_min searches. */
typedef struct pe_fit_plan {
    int top;           // q in 0..top
    float first;       // what the first scale tried spreads the range over, less top
    int n_steps;       // steps of 0.1 from there
    bool is_absolute;  // errors count as they are, not squared
} pe_fit_plan;

/* x ~ scale * q - *out_min, the minimum 0 or more. */
float pe_fit_scale_min(uint8_t *q, float *out_min, const float *x, const float *weight, size_t n,
                       const pe_fit_plan *plan);

#endif
