/* The gated delta rule for any vector width, over the vectors of attend.h.
 *
 * Columns of the state lie in lanes and know nothing of each other. DELTA_VECS vectors of them
 * go through all rows together, twice: their sums hide each other's latency, and what the
 * first pass has read the second finds in the nearest cache.
 */
#ifndef PE_KERNELS_DELTA_H
#define PE_KERNELS_DELTA_H

#include "attend.h"

#define DELTA_VECS 4

/* n_vecs * LANES columns of a state whose rows are n_v long; the last vector may have but
 * n_last of them. n_vecs is a constant. */
INLINE void delta_columns(float *state, float *out, const float *q, const float *k, const float *v,
                          size_t d_k, size_t n_v, float decay, float share, size_t n_vecs,
                          size_t n_last) {
    const vec keep = vec_all(decay);
    vec sum[DELTA_VECS];
    vec change[DELTA_VECS];
#pragma GCC unroll 4
    for (size_t c = 0; c < n_vecs; c++) {
        sum[c] = vec_all(0.0f);
    }
    for (size_t i = 0; i < d_k; i++) {
        const vec key = vec_all(k[i]);
#pragma GCC unroll 4
        for (size_t c = 0; c < n_vecs; c++) {
            const vec s = load_part(state + i * n_v + c * LANES, n_last);
            sum[c] = vec_fma(key, s, sum[c]);
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < n_vecs; c++) {
        const vec error = vec_sub(load_part(v + c * LANES, n_last), vec_mul(keep, sum[c]));
        change[c] = vec_mul(vec_all(share), error);
        sum[c] = vec_all(0.0f);
    }
    for (size_t i = 0; i < d_k; i++) {
        const vec key = vec_all(k[i]);
        const vec query = vec_all(q[i]);
#pragma GCC unroll 4
        for (size_t c = 0; c < n_vecs; c++) {
            float *at = state + i * n_v + c * LANES;
            const vec s = vec_fma(key, change[c], vec_mul(keep, load_part(at, n_last)));
            store_part(at, s, n_last);
            sum[c] = vec_fma(query, s, sum[c]);
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < n_vecs; c++) {
        store_part(out + c * LANES, sum[c], n_last);
    }
}

static void delta(float *state, float *out, const float *q, const float *k, const float *v,
                  size_t d_k, size_t n_v, float decay, float share) {
    size_t j = 0;
#define COLUMNS(n_vecs, n_last)                                                                    \
    delta_columns(state + j, out + j, q, k, v + j, d_k, n_v, decay, share, n_vecs, n_last)
    for (; n_v - j >= DELTA_VECS * LANES; j += DELTA_VECS * LANES) {
        COLUMNS(DELTA_VECS, LANES);
    }
    for (; n_v - j >= LANES; j += LANES) {
        COLUMNS(1, LANES);
    }
    if (j < n_v) {
        COLUMNS(1, n_v - j);
    }
#undef COLUMNS
}

#endif
