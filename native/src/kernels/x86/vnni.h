/* Sums by VPDPBUSD, which multiplies unsigned weights by signed activations and adds fours
 * of them to 32-bit lanes. Included behind panels.h by an instruction set's file that has
 * it, in whatever width: vec_dpbusd, vec_add32, vec_zero.
 */
#ifndef PE_X86_VNNI_H
#define PE_X86_VNNI_H

INLINE bool offset_in_start(panel_kind kind) {
    (void)kind;
    return true;
}

INLINE void sum_fours(vec (*isum)[VECS], const vec *start, const panel *w, size_t u, size_t f,
                      size_t n_fours, const pe_act_block *const *x, size_t n_tile_cols,
                      size_t n_vecs, panel_kind kind) {
    (void)kind;
#pragma GCC unroll 12
    for (size_t c = 0; c < n_tile_cols; c++) {
#pragma GCC unroll 4
        for (size_t v = 0; v < n_vecs; v++) {
            isum[c][v] = start[c];
        }
    }
#pragma GCC unroll 8
    for (size_t i = f; i < f + n_fours; i++) {
        vec weights[VECS];
#pragma GCC unroll 4
        for (size_t v = 0; v < n_vecs; v++) {
            weights[v] = vec_load(w->q[u][i][v * (size_t)LANES]);
        }
#pragma GCC unroll 12
        for (size_t c = 0; c < n_tile_cols; c++) {
            const vec a = broadcast_four(x[c]->q + 4 * i);
#pragma GCC unroll 4
            for (size_t v = 0; v < n_vecs; v++) {
                isum[c][v] = vec_dpbusd(isum[c][v], weights[v], a);
            }
        }
    }
}

/* Two chains, for one alone takes longer than the processor looks ahead. */
INLINE vec dot_fours(vec start, const vec *fours, size_t n_fours, const int8_t *x, int limit) {
    (void)limit;
    vec other = vec_zero();
#pragma GCC unroll 4
    for (size_t f = 0; f < n_fours; f += 2) {
        start = vec_dpbusd(start, fours[f], broadcast_four(x + 4 * f));
        other = vec_dpbusd(other, fours[f + 1], broadcast_four(x + 4 * f + 4));
    }
    return vec_add32(start, other);
}

INLINE bool subtracts_offset(pe_dtype dtype) {
    (void)dtype;
    return true;
}

#endif
