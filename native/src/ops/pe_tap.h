/* Taps: what a matrix is multiplied with, copied or summed up while a pass runs. Those who
 * choose how weights are stored need it; an ordinary pass has none.
 */
#ifndef PE_TAP_H
#define PE_TAP_H

#include "pe_ops.h"

/* One tap, and what it looks for: a product whose weight lies in [begin, end). */
typedef struct pe_tap_place {
    pe_tap *tap;
    const uint8_t *begin;
    const uint8_t *end;
    uint64_t n_cols;
    bool seen;  // in this pass
} pe_tap_place;

typedef struct pe_taps {
    pe_tap_place *places;
    uint32_t n_places;
    uint32_t n_unseen;  // in this pass
    uint32_t n_orders;  // products so far that any tap saw
    uint64_t n_before;  // tokens of the run in earlier passes
    const float *x;     // [n_cols of the pass][d_model], the residual stream
    uint64_t d_model;
    bool end_run;  // a pass ends when all have seen what they look for
} pe_taps;

/* Begins a pass behind n_before tokens of the run. */
void pe_taps_begin(pe_taps *taps, uint64_t n_before);

/* Shows products of the same activations to the taps; taps may be NULL. */
void pe_taps_see(pe_taps *taps, const pe_product *products, size_t n_products, const pe_acts *acts);

/* The same of stacked matrices: the columns of matrix m are those from firsts[m] to
 * firsts[m + 1], in no order of tokens, so that they are summed up but never copied. */
void pe_taps_see_stacked(pe_taps *taps, const pe_product *products, size_t n_products,
                         const pe_acts *acts, const uint32_t *firsts, uint32_t n_matrices);

#endif
