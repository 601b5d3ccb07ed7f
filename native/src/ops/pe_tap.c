#include "pe_tap.h"

void pe_taps_begin(pe_taps *taps, uint64_t n_before) {
    taps->n_before = n_before;
    taps->n_orders = 0;
    taps->n_unseen = taps->n_places;
    for (uint32_t i = 0; i < taps->n_places; i++) {
        taps->places[i].seen = false;
    }
}

/* Parts of one tensor, fused, are weights of their own: the first that is multiplied counts. */
static bool is_found(const pe_tap_place *place, const pe_product *products, size_t n_products,
                     const pe_acts *acts) {
    for (size_t i = 0; i < n_products && !place->seen && acts->n_k == place->n_cols; i++) {
        const uint8_t *data = products[i].weight->data;
        if (data >= place->begin && data < place->end) {
            return true;
        }
    }
    return false;
}

/* Squares are added up in double precision, in the order of tokens. */
static void add_squares(double *sums, const float *columns, size_t n_columns, uint64_t n_k) {
    for (size_t c = 0; c < n_columns; c++, columns += n_k) {
        for (uint64_t k = 0; k < n_k; k++) {
            sums[k] += (double)columns[k] * (double)columns[k];
        }
    }
}

/* firsts is NULL for a single matrix, whose columns are the pass's tokens. */
static void see(pe_taps *taps, const pe_product *products, size_t n_products, const pe_acts *acts,
                const uint32_t *firsts, uint32_t n_matrices) {
    bool any = false;
    for (uint32_t i = 0; i < taps->n_places; i++) {
        pe_tap_place *place = &taps->places[i];
        if (!is_found(place, products, n_products, acts)) {
            continue;
        }
        pe_tap *tap = place->tap;
        place->seen = any = true;
        taps->n_unseen--;
        tap->order = taps->n_orders + 1;
        if (tap->rows != NULL && firsts == NULL) {
            memcpy(tap->rows + taps->n_before * acts->n_k, acts->f32,
                   acts->n_cols * acts->n_k * sizeof *acts->f32);
        }
        if (tap->residual != NULL && firsts == NULL) {
            memcpy(tap->residual + taps->n_before * taps->d_model, taps->x,
                   acts->n_cols * taps->d_model * sizeof *taps->x);
        }
        for (uint32_t m = 0; tap->sums != NULL && m < n_matrices; m++) {
            const size_t first = firsts != NULL ? firsts[m] : 0;
            const size_t end = firsts != NULL ? firsts[m + 1] : acts->n_cols;
            add_squares(tap->sums + m * acts->n_k, acts->f32 + first * acts->n_k, end - first,
                        acts->n_k);
            tap->counts[m] += end - first;
        }
    }
    taps->n_orders += any;
}

void pe_taps_see(pe_taps *taps, const pe_product *products, size_t n_products,
                 const pe_acts *acts) {
    if (taps != NULL) {
        see(taps, products, n_products, acts, NULL, 1);
    }
}

void pe_taps_see_stacked(pe_taps *taps, const pe_product *products, size_t n_products,
                         const pe_acts *acts, const uint32_t *firsts, uint32_t n_matrices) {
    if (taps != NULL) {
        see(taps, products, n_products, acts, firsts, n_matrices);
    }
}
