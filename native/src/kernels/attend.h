/* Attention over pages for any vector width: the frame that the files of the
 * instruction sets share.
 *
 * Such a file first says what a vector of LANES floats is and defines, all static:
 *
 *     vec_load, vec_store    LANES floats, unaligned
 *     vec_all(x)             x in every lane
 *     vec_add, vec_sub, vec_mul, vec_fma(a, b, c) = a b + c
 *     vec_max(a, b)          a > b ? a : b
 *     vec_hold(x)            x held to [PE_EXP_MIN, PE_EXP_MAX], NaN kept
 *     vec_two_to(t)          2^n, where t is PE_EXP_MAGIC + n
 *     vec_keep(v, other, first, n_valid)
 *                            v in the lanes l with first + l < n_valid, else other
 *     WEIGH_ROWS             queries whose softmax is worked on side by side
 *     max_rows(out, v)       the largest lane of each of WEIGH_ROWS vectors, none NaN
 *     add_rows(out, e)       of as many rows of a page the sum in halves
 *     vec_f16, vec_i8        LANES stored numbers as floats
 *     vec_low, vec_high      the low, the high nibbles of LANES bytes, minus 8
 *     turn_square(out, out_stride, in)
 *                            4 rows of 4 floats, PE_PAGE_TOKENS apart, as columns
 *     SCORE_ROWS, SCORE_VECS, MIX_ROWS, MIX_VECS
 *                            sizes of the two register tiles; powers of two
 *
 * and then includes this, and delta.h. Numeric contracts are those of pe_kernels.h.
 */
#ifndef PE_KERNELS_ATTEND_H
#define PE_KERNELS_ATTEND_H

#include <math.h>

#include "pe_kernels.h"

/* Queries whose weights p lie side by side between the two products. */
#define ROUND 16

/* ---- opening ---------------------------------------------------------- */

/* Prefetches the line of next that lies where at lies in stored, into the second
 * level: its turn comes after this page's products, which need the first. */
INLINE void prefetch_beside(const void *at, const void *stored, const void *next) {
    const size_t offset = (size_t)((const uint8_t *)at - (const uint8_t *)stored);
    __builtin_prefetch((const uint8_t *)next + offset, 0, 2);
}

INLINE const float *prefetch_f32(const void *stored, const void *next, size_t n) {
    for (size_t i = 0; i < n; i += PE_CACHE_LINE / sizeof(float)) {
        __builtin_prefetch((const float *)next + i);  // nothing opens it: into the first level
    }
    return stored;
}

/* n halves, a multiple of 32: one cache line a turn. */
INLINE const float *open_halves(float *out, const void *stored, const void *next, size_t n) {
    const pe_f16 *in = stored;
    for (size_t i = 0; i < n; i += PE_PAGE_TOKENS) {
        prefetch_beside(in + i, stored, next);
#pragma GCC unroll 8
        for (size_t v = 0; v < PAGE_VECS; v++) {
            vec_store(out + i + v * LANES, vec_f16(in + i + v * LANES));
        }
    }
    return out;
}

static const float *open_keys_f32(float *out, const void *stored, const void *next, size_t d) {
    (void)out;
    return prefetch_f32(stored, next, d * PE_PAGE_TOKENS);
}

static const float *open_keys_f16(float *out, const void *stored, const void *next, size_t d) {
    return open_halves(out, stored, next, d * PE_PAGE_TOKENS);
}

static const float *open_values_f32(float *out, const void *stored, const void *next, size_t d) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    if (d == d_out) {
        return prefetch_f32(stored, next, d * PE_PAGE_TOKENS);
    }
    memset(out, 0, PE_PAGE_TOKENS * d_out * sizeof *out);
    for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
        memcpy(out + j * d_out, (const float *)stored + j * d, d * sizeof *out);
    }
    return out;
}

static const float *open_values_f16(float *out, const void *stored, const void *next, size_t d) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    if (d == d_out) {
        return open_halves(out, stored, next, d * PE_PAGE_TOKENS);
    }
    memset(out, 0, PE_PAGE_TOKENS * d_out * sizeof *out);
    for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
        for (size_t i = 0; i < d; i++) {
            out[j * d_out + i] = pe_f16_to_f32(((const pe_f16 *)stored)[j * d + i]);
        }
    }
    return out;
}

INLINE const float *open_keys_quantized(float *out, const void *stored, const void *next, size_t d,
                                        pe_kv_type type) {
    const bool is_q8 = type == PE_KV_Q8_0;
    const uint8_t *q = (const uint8_t *)stored + pe_page_scale_bytes(type, d);
    for (size_t b = 0; b * PE_BLOCK < d; b++) {
        const size_t n_dims = PE_MIN(d - b * PE_BLOCK, (size_t)PE_BLOCK);
        const pe_f16 *scales = (const pe_f16 *)stored + b * PE_PAGE_TOKENS;
        float *block = out + b * PE_BLOCK * PE_PAGE_TOKENS;
        float *high = block + PE_BLOCK / 2 * PE_PAGE_TOKENS;
        const size_t n_rows = is_q8 ? n_dims : PE_MIN(n_dims, (size_t)PE_BLOCK / 2);
        vec scale[PAGE_VECS];
        prefetch_beside(scales, stored, next);
#pragma GCC unroll 8
        for (size_t v = 0; v < PAGE_VECS; v++) {
            scale[v] = vec_f16(scales + v * LANES);
        }
        for (size_t i = 0; i < n_rows; i++, q += PE_PAGE_TOKENS) {
            const size_t at = i * PE_PAGE_TOKENS;
            prefetch_beside(q, stored, next);
#pragma GCC unroll 8
            for (size_t v = 0; v < PAGE_VECS; v++) {
                const vec w =
                    is_q8 ? vec_i8((const int8_t *)q + v * LANES) : vec_low(q + v * LANES);
                vec_store(block + at + v * LANES, vec_mul(w, scale[v]));
                if (!is_q8 && i + PE_BLOCK / 2 < n_dims) {
                    vec_store(high + at + v * LANES, vec_mul(vec_high(q + v * LANES), scale[v]));
                }
            }
        }
    }
    return out;
}

INLINE const float *open_values_quantized(float *out, const void *stored, const void *next,
                                          size_t d, pe_kv_type type) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    const size_t n_blocks = pe_page_width(d) / PE_BLOCK;
    const bool is_q8 = type == PE_KV_Q8_0;
    const uint8_t *q = (const uint8_t *)stored + pe_page_scale_bytes(type, d);
    for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
        for (size_t b = 0; b < n_blocks; b++) {
            float *block = out + j * d_out + b * PE_BLOCK;
            const bool is_half = d_out - b * PE_BLOCK < PE_BLOCK;  // rows end with 16
            const vec scale =
                vec_all(pe_f16_to_f32(((const pe_f16 *)stored)[b * PE_PAGE_TOKENS + j]));
            prefetch_beside(q, stored, next);
#pragma GCC unroll 4
            for (size_t i = 0; i < PE_BLOCK / 2; i += LANES) {
                const int8_t *bytes = (const int8_t *)q + i;
                vec_store(block + i, vec_mul(is_q8 ? vec_i8(bytes) : vec_low(q + i), scale));
                if (!is_half) {
                    vec_store(
                        block + PE_BLOCK / 2 + i,
                        vec_mul(is_q8 ? vec_i8(bytes + PE_BLOCK / 2) : vec_high(q + i), scale));
                }
            }
            q += is_q8 ? PE_BLOCK : PE_BLOCK / 2;
        }
    }
    return out;
}

/* Columns of the last dimensions, fewer than 4 of which there may be. */
INLINE void turn_rest(float *out, size_t out_stride, const float *in, size_t n) {
    for (size_t r = 0; r < 4; r++) {
        for (size_t c = 0; c < 4; c++) {
            out[c * out_stride + r] = r < n ? in[r * PE_PAGE_TOKENS + c] : 0.0f;
        }
    }
}

/* Lines of 16 numbers are written as a whole: those of 32 positions, often a power of two
 * apart, do not stay in the first level together. */
static void turn_keys(float *out, const float *keys, size_t d) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    for (size_t line = 0; line < d_out; line += PE_LANES) {
        for (size_t j = 0; j < PE_PAGE_TOKENS; j += 4) {
            for (size_t i = line; i < line + PE_LANES; i += 4) {
                const float *in = keys + i * PE_PAGE_TOKENS + j;
                if (i + 4 <= d) {
                    turn_square(out + j * d_out + i, d_out, in);
                } else {
                    turn_rest(out + j * d_out + i, d_out, in, i < d ? d - i : 0);
                }
            }
        }
    }
}

/* Defines open_<part>_<name> for a quantized type. */
#define OPEN(part, name, type)                                                                     \
    static const float *open_##part##_##name(float *out, const void *stored, const void *next,     \
                                             size_t d) {                                           \
        return open_##part##_quantized(out, stored, next, d, type);                                \
    }

OPEN(keys, q8_0, PE_KV_Q8_0)
OPEN(keys, q4_0, PE_KV_Q4_0)
OPEN(values, q8_0, PE_KV_Q8_0)
OPEN(values, q4_0, PE_KV_Q4_0)

/* ---- products --------------------------------------------------------- */

/* out[r][c] = the fma chain over k of a[r][k] b[k][c], from 0, or from out[r][c] *
 * shrink[r]; n_rows by n_vecs vectors in registers (constants). */
INLINE void multiply(float *out, size_t out_stride, const float *shrink, const float *a,
                     size_t a_stride, const float *b, size_t b_stride, size_t n_k, size_t n_rows,
                     size_t n_vecs) {
    vec acc[16];
#pragma GCC unroll 8
    for (size_t r = 0; r < n_rows; r++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < n_vecs; v++) {
            acc[r * n_vecs + v] =
                shrink == NULL
                    ? vec_all(0.0f)
                    : vec_mul(vec_load(out + r * out_stride + v * LANES), vec_all(shrink[r]));
        }
    }
    for (size_t k = 0; k < n_k; k++) {
        vec b_k[8];
#pragma GCC unroll 8
        for (size_t v = 0; v < n_vecs; v++) {
            b_k[v] = vec_load(b + k * b_stride + v * LANES);
        }
#pragma GCC unroll 8
        for (size_t r = 0; r < n_rows; r++) {
            const vec a_k = vec_all(a[r * a_stride + k]);
#pragma GCC unroll 8
            for (size_t v = 0; v < n_vecs; v++) {
                acc[r * n_vecs + v] = vec_fma(a_k, b_k[v], acc[r * n_vecs + v]);
            }
        }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < n_rows; r++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < n_vecs; v++) {
            vec_store(out + r * out_stride + v * LANES, acc[r * n_vecs + v]);
        }
    }
}

/* Unscaled scores of n_rows queries (constant) against a whole page. */
INLINE void score_rows(float *s, const float *q, const float *keys, size_t d_k, size_t n_rows) {
#pragma GCC unroll 2
    for (size_t v = 0; v < PAGE_VECS; v += SCORE_VECS) {
        multiply(s + v * LANES, PE_PAGE_TOKENS, NULL, q, d_k, keys + v * LANES, PE_PAGE_TOKENS, d_k,
                 n_rows, SCORE_VECS);
    }
}

static void score(float *s, const float *q, size_t n_queries, const float *keys, size_t d_k) {
    size_t i = 0;
    for (; i + SCORE_ROWS <= n_queries; i += SCORE_ROWS) {
        score_rows(s + i * PE_PAGE_TOKENS, q + i * d_k, keys, d_k, SCORE_ROWS);
    }
    if (SCORE_ROWS > 4 && i + 4 <= n_queries) {
        score_rows(s + i * PE_PAGE_TOKENS, q + i * d_k, keys, d_k, 4);
        i += 4;
    }
    if (i + 2 <= n_queries) {
        score_rows(s + i * PE_PAGE_TOKENS, q + i * d_k, keys, d_k, 2);
        i += 2;
    }
    if (i < n_queries) {
        score_rows(s + i * PE_PAGE_TOKENS, q + i * d_k, keys, d_k, 1);
    }
}

/* acc = acc * shrink + p values over n_positions for n_rows queries (constant). */
INLINE void mix_rows(float *acc, const float *shrink, const float *p, const float *values,
                     size_t n_positions, size_t d_v, size_t n_rows) {
    size_t d = 0;
    for (; d + MIX_VECS * LANES <= d_v; d += MIX_VECS * LANES) {
        multiply(acc + d, d_v, shrink, p, PE_PAGE_TOKENS, values + d, d_v, n_positions, n_rows,
                 MIX_VECS);
    }
    if (MIX_VECS > 2 && d + 2 * LANES <= d_v) {
        multiply(acc + d, d_v, shrink, p, PE_PAGE_TOKENS, values + d, d_v, n_positions, n_rows, 2);
        d += 2 * LANES;
    }
    if (MIX_VECS > 1 && d < d_v) {
        multiply(acc + d, d_v, shrink, p, PE_PAGE_TOKENS, values + d, d_v, n_positions, n_rows, 1);
    }
}

/* Queries that see more positions than their neighbours go on alone. */
static void mix(float *acc, const float *shrink, const float *p, const uint32_t *n_valid,
                size_t n_queries, const float *values, size_t d_v) {
    static const float one = 1.0f;
    size_t n_rows;
    for (size_t i = 0; i < n_queries; i += n_rows) {
        n_rows = n_queries - i >= MIX_ROWS ? MIX_ROWS : n_queries - i >= 2 ? 2 : 1;
        uint32_t n_common = n_valid[i];
        for (size_t r = 1; r < n_rows; r++) {
            n_common = PE_MIN(n_common, n_valid[i + r]);
        }
        float *acc_i = acc + i * d_v;
        const float *p_i = p + i * PE_PAGE_TOKENS;
        if (n_rows == MIX_ROWS) {
            mix_rows(acc_i, shrink + i, p_i, values, n_common, d_v, MIX_ROWS);
        } else if (n_rows == 2) {
            mix_rows(acc_i, shrink + i, p_i, values, n_common, d_v, 2);
        } else {
            mix_rows(acc_i, shrink + i, p_i, values, n_common, d_v, 1);
        }
        for (size_t r = 0; r < n_rows; r++) {
            if (n_valid[i + r] > n_common) {
                mix_rows(acc_i + r * d_v, &one, p_i + r * PE_PAGE_TOKENS + n_common,
                         values + n_common * d_v, n_valid[i + r] - n_common, d_v, 1);
            }
        }
    }
}

/* ---- softmax ---------------------------------------------------------- */

INLINE vec vec_exp(vec x) {
    x = vec_hold(x);
    const vec t = vec_fma(x, vec_all(PE_EXP_LOG2E), vec_all(PE_EXP_MAGIC));
    const vec n = vec_sub(t, vec_all(PE_EXP_MAGIC));
    vec r = vec_fma(n, vec_all(-PE_EXP_LN2_HI), x);
    r = vec_fma(n, vec_all(-PE_EXP_LN2_LO), r);
    vec p = vec_all(PE_EXP_P0);
    p = vec_fma(p, r, vec_all(PE_EXP_P1));
    p = vec_fma(p, r, vec_all(PE_EXP_P2));
    p = vec_fma(p, r, vec_all(PE_EXP_P3));
    p = vec_fma(p, r, vec_all(PE_EXP_P4));
    p = vec_fma(p, r, vec_all(PE_EXP_P5));
    p = vec_add(vec_fma(p, vec_mul(r, r), r), vec_all(1.0f));
    return vec_mul(p, vec_two_to(t));
}

/* Division has an operator for the vectors of every compiler that builds this. */
INLINE vec vec_softcap(vec x, float cap) {
    const vec e = vec_exp(vec_mul(x, vec_all(2.0f / cap)));
    const vec rest = vec_all(2.0f) / vec_add(e, vec_all(1.0f));
    return vec_mul(vec_all(cap), vec_sub(vec_all(1.0f), rest));
}

/* Turns a page's scores into weights p in place, WEIGH_ROWS queries at once; moves
 * their maxima and gives the sums of p. */
INLINE void weigh(float *s, float *max, float *sum, const uint32_t *n_valid, float scale,
                  float cap) {
    vec e[WEIGH_ROWS][PAGE_VECS];
    vec m[WEIGH_ROWS];
#pragma GCC unroll 4
    for (size_t r = 0; r < WEIGH_ROWS; r++) {
        m[r] = vec_all(max[r]);  // no lane ever turns NaN: it takes only what is greater
#pragma GCC unroll 8
        for (size_t v = 0; v < PAGE_VECS; v++) {
            e[r][v] = vec_mul(vec_load(s + r * PE_PAGE_TOKENS + v * LANES), vec_all(scale));
            e[r][v] = cap > 0.0f ? vec_softcap(e[r][v], cap) : e[r][v];
            m[r] = vec_max(vec_keep(e[r][v], m[r], v * LANES, n_valid[r]), m[r]);
        }
    }
    max_rows(max, m);
#pragma GCC unroll 4
    for (size_t r = 0; r < WEIGH_ROWS; r++) {
        max[r] = max[r] + 0.0f;
#pragma GCC unroll 8
        for (size_t v = 0; v < PAGE_VECS; v++) {
            const vec p = vec_exp(vec_sub(e[r][v], vec_all(max[r])));
            e[r][v] = vec_keep(p, vec_all(0.0f), v * LANES, n_valid[r]);
            vec_store(s + r * PE_PAGE_TOKENS + v * LANES, e[r][v]);
        }
    }
    add_rows(sum, e);
}

/* Moves up to ROUND softmax states by a page; p holds scores, then weights. */
static void move_softmax(pe_softmax *softmax, float *shrink, float *p, const uint32_t *n_valid,
                         size_t n_queries, float scale, float softcap) {
    float before[ROUND] = {0};
    float after[ROUND] = {0};
    float sums[ROUND];
    uint32_t valid[ROUND];
    for (size_t i = 0; i < n_queries; i++) {
        before[i] = after[i] = softmax[i].max;
        valid[i] = n_valid[i];
    }
    for (size_t i = n_queries; i % WEIGH_ROWS != 0; i++) {  // rows that nobody reads
        memset(p + i * PE_PAGE_TOKENS, 0, PE_PAGE_TOKENS * sizeof *p);
        valid[i] = 1;
    }
    for (size_t i = 0; i < n_queries; i += WEIGH_ROWS) {
        weigh(p + i * PE_PAGE_TOKENS, after + i, sums + i, valid + i, scale, softcap);
    }
    for (size_t i = 0; i < n_queries; i += LANES) {
        vec_store(shrink + i, vec_exp(vec_sub(vec_load(before + i), vec_load(after + i))));
    }
    for (size_t i = 0; i < n_queries; i++) {
        softmax[i].max = after[i];
        softmax[i].sum = softmax[i].sum * shrink[i] + sums[i];
    }
}

/* ---- gates ------------------------------------------------------------ */

/* LANES numbers, or the n of them that there are and zeros behind. */
INLINE vec load_part(const float *x, size_t n) {
    float padded[LANES] = {0};
    if (n >= LANES) {
        return vec_load(x);
    }
    memcpy(padded, x, n * sizeof *x);
    return vec_load(padded);
}

INLINE void store_part(float *out, vec v, size_t n) {
    float padded[LANES];
    if (n >= LANES) {
        vec_store(out, v);
        return;
    }
    vec_store(padded, v);
    memcpy(out, padded, n * sizeof *out);
}

static void gelu_mul(float *out, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const vec g = load_part(gate + i, n - i);
        const vec s = vec_fma(vec_mul(g, g), vec_all(PE_GELU_CUBE), vec_all(PE_GELU_SLOPE));
        const vec below = vec_add(vec_all(1.0f), vec_exp(vec_mul(g, s)));
        store_part(out + i, vec_mul(g / below, load_part(up + i, n - i)), n - i);
    }
}

static void gelu_erf(float *x, size_t n) {
    const vec zero = vec_all(0.0f);
    const vec one = vec_all(1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        const vec v = load_part(x + i, n - i);
        const vec a = vec_max(v, vec_sub(zero, v));
        const vec t = one / vec_fma(a, vec_all(PE_ERF_P), one);
        vec p = vec_all(PE_ERF_C7);
        p = vec_fma(p, t, vec_all(PE_ERF_C6));
        p = vec_fma(p, t, vec_all(PE_ERF_C5));
        p = vec_fma(p, t, vec_all(PE_ERF_C4));
        p = vec_fma(p, t, vec_all(PE_ERF_C3));
        p = vec_fma(p, t, vec_all(PE_ERF_C2));
        p = vec_fma(p, t, vec_all(PE_ERF_C1));
        p = vec_fma(p, t, vec_all(PE_ERF_C0));
        const vec e = vec_exp(vec_mul(vec_mul(a, a), vec_all(-0.5f)));
        const vec share = vec_mul(vec_mul(t, p), e);
        store_part(x + i, vec_sub(vec_max(v, zero), vec_mul(a, share)), n - i);
    }
}

static void clamped_mul(float *out, const float *gate, const float *up, size_t n, float limit) {
    for (size_t i = 0; i < n; i += LANES) {
        // vec_max(a, b) is b where either is NaN; min(x, l) = -max(-l, -x), and a zero's
        // sign that it may lose does not show behind the sums below.
        const vec minus = vec_all(-limit);
        const vec none = vec_all(-0.0f);
        const vec g = vec_sub(none, vec_max(minus, vec_sub(none, load_part(gate + i, n - i))));
        const vec low = vec_max(minus, load_part(up + i, n - i));
        const vec u = vec_sub(none, vec_max(minus, vec_sub(none, low)));
        const vec below = vec_add(vec_all(1.0f), vec_exp(vec_mul(g, vec_all(PE_CLAMPED_SLOPE))));
        store_part(out + i, vec_mul(g / below, vec_add(u, vec_all(1.0f))), n - i);
    }
}

static void sigmoid_mul(float *out, const float *gate, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const vec minus = vec_sub(vec_all(-0.0f), load_part(gate + i, n - i));
        const vec below = vec_add(vec_all(1.0f), vec_exp(minus));
        store_part(out + i, load_part(x + i, n - i) / below, n - i);
    }
}

static void softcap(float *x, size_t n, float cap) {
    for (size_t i = 0; i < n; i += LANES) {
        store_part(x + i, vec_softcap(load_part(x + i, n - i), cap), n - i);
    }
}

/* ---- the entry -------------------------------------------------------- */

static void attend(pe_softmax *softmax, float *acc, const float *q, const uint32_t *n_valid,
                   size_t n_queries, const float *keys, const float *values, size_t d_k, size_t d_v,
                   float scale, float softcap) {
    for (size_t i = 0; i < n_queries; i += ROUND) {
        const size_t n = PE_MIN(n_queries - i, (size_t)ROUND);
        float p[ROUND * PE_PAGE_TOKENS];
        float shrink[ROUND];
        score(p, q + i * d_k, n, keys, d_k);
        move_softmax(softmax + i, shrink, p, n_valid + i, n, scale, softcap);
        mix(acc + i * d_v, shrink, p, n_valid + i, n, values, d_v);
    }
}

INLINE void init_attend(pe_kernels *kernels) {
    kernels->open_keys[PE_KV_F32] = open_keys_f32;
    kernels->open_keys[PE_KV_F16] = open_keys_f16;
    kernels->open_keys[PE_KV_Q8_0] = open_keys_q8_0;
    kernels->open_keys[PE_KV_Q4_0] = open_keys_q4_0;
    kernels->open_values[PE_KV_F32] = open_values_f32;
    kernels->open_values[PE_KV_F16] = open_values_f16;
    kernels->open_values[PE_KV_Q8_0] = open_values_q8_0;
    kernels->open_values[PE_KV_Q4_0] = open_values_q4_0;
    kernels->turn_keys = turn_keys;
    kernels->attend = attend;
    kernels->gelu_mul = gelu_mul;
    kernels->gelu_erf = gelu_erf;
    kernels->clamped_mul = clamped_mul;
    kernels->sigmoid_mul = sigmoid_mul;
    kernels->softcap = softcap;
}

#endif
