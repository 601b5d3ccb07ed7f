/* The one table of kernels, and what each of them computes.
 *
 * scalar.c defines every entry and fills the table; an instruction set's file then
 * overwrites what it does faster. All of them give the same bits. That is possible
 * because each float operation below is defined down to its order:
 *
 *   - fma(a, b, c) is one fused multiply-add, rounded once; every other operation
 *     is rounded by itself (the core is built with -ffp-contract=off).
 *   - A float sum over k runs in PE_LANES virtual lanes: lane l adds up elements
 *     l, l + 16, l + 32, ... in that order by fma, starting at +0, where elements
 *     past the end count as 0; then lanes are added in halves: i and i + 8, i and
 *     i + 4, i and i + 2, i and i + 1. (lane_sum below.)
 *   - A dot of quantized weights and 8-bit activations is exact in int32 within a
 *     unit of 32; then a few float operations and one fma per unit, in unit order.
 *     Rows are independent, so vector code puts rows in lanes.
 *   - exp is the polynomial of pe_exp_f32, evaluated by fma in Horner order.
 *
 * No kernel allocates, locks, reports errors or looks outside its arguments. None
 * needs aligned pointers unless it says so. All are re-entrant.
 */
#ifndef PE_KERNELS_H
#define PE_KERNELS_H

#include "pe_page.h"
#include "pe_strip.h"

/* Virtual lanes of a float sum: one AVX-512 register, two of AVX2, four of NEON. */
#define PE_LANES 16

/* 32 activations as 8-bit integers: x = d * q, q in -127..127.
 * d = max|x| / 127 and q = x * (127 / max|x|) rounded to nearest even. A block that
 * holds NaN or infinity has d = NaN and q = 0, so that what it touches is NaN too. */
typedef struct pe_act_block {
    float d;
    float sum;      // of q; floats, since these integers meet floats only
    float half[2];  // sums of q[0..15] and of q[16..31]
    int8_t q[PE_BLOCK];
} pe_act_block;
_Static_assert(sizeof(pe_act_block) == 48, "48 bytes per 32 activations");

/* out[c * out_stride + r] = dot of weight row r and activation column c.
 *
 * shape    weights: n_rows rows of n_k weights, row_bytes apart
 *          acts: n_cols columns of n_k, act_bytes apart: floats, or pe_act_blocks,
 *          as the type's pe_acts_kind says
 *          n_k a multiple of the type's block
 * alias    out overlaps neither input
 * numeric  float types: lane_sum of fma(weight, act) with the weight widened
 *          quantized types: for each unit of 32 weights (pe_unit: q, d, m) and its
 *          activation block (q, sum, half, da), with h the halves of 16 or, for types with
 *          one scale, h = 0 the whole unit, isum[h] the exact integer dot and sum[h]
 *          the sum of activations:
 *              s   = scaled_sum(isum[0], d[0])      isum * d, see PE_SUM_MAGIC
 *              s   = s + scaled_sum(isum[1], d[1])  two scales only
 *              s   = fma(sum[h], m[h], s)           for each h, minimums only
 *              acc = fma(s, da, acc)                from +0, in unit order */
typedef void (*pe_matmul_fn)(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                             size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                             size_t n_k);

/* State of one query head's softmax over the positions seen so far. */
typedef struct pe_softmax {
    float max;  // starts at -infinity
    float sum;  // of exp(score - max); starts at 0
} pe_softmax;

/* Turns one head's keys, or its values, of a page into floats.
 *
 * shape    stored: as pe_page.h says, d wide
 *          keys: out has room for [d][PE_PAGE_TOKENS]
 *          values: out has room for [PE_PAGE_TOKENS][d_out], d_out being d rounded up
 *          to a multiple of PE_LANES; numbers behind d mean nothing
 *          next: what will be opened after it, of the same shape, to be prefetched
 * returns  where the floats are: out, or stored where that holds them as they are
 * align    stored and next start on a cache line
 * numeric  float types exact; quantized: the scale widened times (float)(integer) */
typedef const float *(*pe_open_fn)(float *out, const void *stored, const void *next, size_t d);

/* A tile of queries of one KV head against an opened page.
 *
 * shape    q: n_queries rows of d_k floats; softmax: [n_queries]
 *          acc: n_queries rows of d_v floats; d_v a multiple of PE_LANES
 *          keys: [d_k][PE_PAGE_TOKENS], values: [PE_PAGE_TOKENS][d_v]
 *          n_valid: [n_queries], each 1 to PE_PAGE_TOKENS: positions from there on
 *          are ignored by that query, whatever lies there
 * numeric  each query by itself, whatever the tile:
 *          score[j] = scale * (fma chain over d_k in order, from +0, of q and key j);
 *          with softcap > 0 then softcap * tanh(score[j] / softcap), see PE_SOFTCAP
 *          max' = the largest of max and the scores, + 0 (which makes -0 into +0)
 *          p[j] = exp(score[j] - max'), 0 for ignored j; shrink = exp(max - max')
 *          sum = sum * shrink + (p added in halves: j and j + 16, ... + 8, 4, 2, 1)
 *          acc = acc * shrink, then fma(p[j], value[j], acc) for valid j in order */
typedef void (*pe_attend_fn)(pe_softmax *softmax, float *acc, const float *q,
                             const uint32_t *n_valid, size_t n_queries, const float *keys,
                             const float *values, size_t d_k, size_t d_v, float scale,
                             float softcap);

typedef struct pe_kernels {
    pe_isa isa;  // the best level that filled any entry

    /* Quantizes n activations, a multiple of PE_BLOCK, into n / PE_BLOCK blocks. */
    void (*quantize_acts)(pe_act_block *out, const float *x, size_t n);

    /* By type number; NULL for types that cannot be computed with. Both give the
     * same bits; matvec is the faster one for a single column, which is all it is
     * called with, matmul for several. */
    pe_matmul_fn matmul[PE_DTYPE_END];
    pe_matmul_fn matvec[PE_DTYPE_END];

    /* The same bits for any number of columns from weights in strips (pe_strip.h), of the
     * quantized types: weights point to the strip of row 0, and row_bytes is the length
     * of a row without gaps. fast_strips: whether they beat the two above. */
    pe_matmul_fn matmul_strips[PE_DTYPE_END];
    bool fast_strips[PE_DTYPE_END];

    /* out[i] = (x[i] * r) * weight[i], r = 1 / sqrt(lane_sum(x * x) / n + eps).
     * alias    out may be x */
    void (*rms_norm)(float *out, const float *x, const float *weight, size_t n, float eps);

    /* d[i] = x[i] - mean, out[i] = (d[i] * r) * weight[i] + bias[i]; mean is the sum of x in
     * lanes over n, r = 1 / sqrt(lane_sum(d * d) / n + eps).
     * alias    out may be x */
    void (*layer_norm)(float *out, const float *x, const float *weight, const float *bias, size_t n,
                       float eps);

    /* out[i] = gate[i] / (1 + exp(-gate[i])) * up[i].
     * alias    out may be gate or up */
    void (*silu_mul)(float *out, const float *gate, const float *up, size_t n);

    /* out[i] = gelu(gate[i]) * up[i], in its tanh form, which is x / (1 + exp(-2 u)),
     * u = sqrt(2 / pi) (x + 0.044715 x^3):
     *     s = fma(x * x, PE_GELU_CUBE, PE_GELU_SLOPE); out = x / (1 + exp(x * s)) * up
     * alias    out may be gate or up */
    void (*gelu_mul)(float *out, const float *gate, const float *up, size_t n);

    /* x[i] = gelu(x[i]), in its exact form, see PE_GELU_ERF. */
    void (*gelu_erf)(float *x, size_t n);

    /* gpt-oss's gate: g = min(gate, limit), u = up held to +-limit,
     *     out[i] = g / (1 + exp(-1.702 g)) * (u + 1); NaN stays
     * alias    out may be gate or up */
    void (*clamped_mul)(float *out, const float *gate, const float *up, size_t n, float limit);

    /* out[i] = x[i] / (1 + exp(-gate[i])).
     * alias    out may be gate or x, which may be one */
    void (*sigmoid_mul)(float *out, const float *gate, const float *x, size_t n);

    /* One token of the gated delta rule (arXiv:2412.06464), for a head's values or some of
     * them: the state S forgets, learns that k means v, and is asked for q.
     *     u = share (v - decay S^T k);  S = decay S + k u^T;  out = S^T q
     * shape    state: [d_k][n_v]; q, k: [d_k]; v, out: [n_v]
     * alias    out may be v
     * numeric  each column j by itself, sums over rows i in order from +0:
     *          sum = fma(k[i], state[i][j], sum); then u = share * (v[j] - decay * sum);
     *          then state[i][j] = fma(k[i], u, decay * state[i][j]);
     *          out[j] = fma(q[i], state[i][j], out[j]) */
    void (*delta)(float *state, float *out, const float *q, const float *k, const float *v,
                  size_t d_k, size_t n_v, float decay, float share);

    /* x[i] = cap * tanh(x[i] / cap), see PE_SOFTCAP. */
    void (*softcap)(float *x, size_t n, float cap);

    /* One token of a Mamba-2 head, n_rows rows of whose state are n floats each:
     *     state[r][i] = fma(b[i], x[r], state[r][i] * decay), then
     *     out[r] = lane_sum of fma(state[r][i], c[i])
     * alias    out overlaps nothing */
    void (*ssm_scan)(float *out, float *state, const float *x, const float *b, const float *c,
                     float decay, size_t n_rows, size_t n);

    /* By pe_kv_type. */
    pe_open_fn open_keys[PE_KV_END];
    pe_open_fn open_values[PE_KV_END];

    /* Values out of opened keys, for caches in which they are one:
     * out[j * d_out + i] = keys[i * PE_PAGE_TOKENS + j], d_out and what lies behind d as with
     * open_values.
     * align    keys start on a cache line */
    void (*turn_keys)(float *out, const float *keys, size_t d);
    pe_attend_fn attend;
} pe_kernels;

/* Fills the table for an instruction set that this processor has.
 * errors   cannot fail: an instruction set that is missing here falls back to the
 *          best below it of its family, and kernels->isa says which */
void pe_kernels_init(pe_kernels *kernels, pe_isa isa);

/* What each level adds; a level of another processor family adds nothing. */
void pe_kernels_init_scalar(pe_kernels *kernels);
void pe_kernels_init_avx2(pe_kernels *kernels);
void pe_kernels_init_avx_vnni(pe_kernels *kernels);
void pe_kernels_init_avx512(pe_kernels *kernels);
void pe_kernels_init_neon(pe_kernels *kernels);
void pe_kernels_init_dotprod(pe_kernels *kernels);
void pe_kernels_init_i8mm(pe_kernels *kernels);
void pe_kernels_init_floats_avx2(pe_kernels *kernels);
void pe_kernels_init_floats_avx512(pe_kernels *kernels);
void pe_kernels_init_floats_neon(pe_kernels *kernels);
void pe_kernels_init_attend_avx2(pe_kernels *kernels);
void pe_kernels_init_attend_avx512(pe_kernels *kernels);
void pe_kernels_init_attend_neon(pe_kernels *kernels);

/* ---- shared definitions ----------------------------------------------- */

/* (float)isum * d, rounded once, without a conversion: added to the bits of the float
 * 1.5 * 2^23 an integer below 2^22 makes the float 1.5 * 2^23 + isum, and
 *
 *     scaled_sum(isum, d) = fma(1.5 * 2^23 + isum, d, -(1.5 * 2^23 * d))
 *
 * is isum * d rounded once: 1.5 * 2^23 * d is exact, since scales have at most 19
 * significant bits, an fp16 number's 11 and a sub-scale's 8. For an infinite or NaN d it
 * is NaN. Accumulators of integer dots start at the magic bits, which saves vector code
 * the conversion and fuses the product with its subtraction. Block sums stay below 2^22:
 * 32 * 128 * 127 at most. */
#define PE_SUM_MAGIC 0x1.8p+23f
#define PE_SUM_MAGIC_BITS 0x4b400000

/* Constants of the float exponential (Cephes expf, S. Moshier): e^x = 2^n e^r with
 * n = x / ln 2 rounded by adding 1.5 * 2^23, r = x - n ln 2 in two fma steps, and
 * e^r = 1 + r + r^2 P(r). x is first held to [-87, 88], where 2^n is a normal
 * float; NaN passes through. Relative error below 2 ulp. */
#define PE_EXP_MIN (-87.0f)
#define PE_EXP_MAX 88.0f
#define PE_EXP_LOG2E 0x1.715476p+0f
#define PE_EXP_MAGIC 0x1.8p+23f
#define PE_EXP_LN2_HI 0x1.63p-1f
#define PE_EXP_LN2_LO (-0x1.bd0106p-13f)
#define PE_EXP_P0 1.9875691500e-4f
#define PE_EXP_P1 1.3981999507e-3f
#define PE_EXP_P2 8.3334519073e-3f
#define PE_EXP_P3 4.1665795894e-2f
#define PE_EXP_P4 1.6666665459e-1f
#define PE_EXP_P5 5.0000001201e-1f

/* PE_SOFTCAP: cap * tanh(x / cap) is computed as
 *     e = exp(x * (2 / cap)); cap * (1 - 2 / (e + 1))
 * with each operation rounded by itself; off by 4 ulp of cap at most. */

/* -2 sqrt(2 / pi) and 0.044715 times it. */
#define PE_GELU_SLOPE (-1.5957691216057308f)
#define PE_GELU_CUBE (-0.07135481282719223f)
#define PE_CLAMPED_SLOPE (-1.702f)

/* PE_GELU_ERF: x times the normal distribution's share below x, which is
 * (1 + erf(x / sqrt 2)) / 2, as
 *     a = max(x, 0 - x); t = 1 / fma(a, PE_ERF_P, 1)
 *     share = t * (C0 + C1 t + ... + C7 t^7 by fma) * exp(a * a * -0.5)    of what lies above a
 *     gelu(x) = max(x, 0) - a * share
 * a form of Hastings' (Abramowitz and Stegun 7.1.26) with coefficients fitted to a in [0, 14]:
 * 1e-7 of the share. Together with rounding 2.5e-7 |x| at most; infinity gives NaN. */
#define PE_ERF_P 0.305f
#define PE_ERF_C0 0.121639736f
#define PE_ERF_C1 0.122466825f
#define PE_ERF_C2 0.103420831f
#define PE_ERF_C3 0.1210218f
#define PE_ERF_C4 (-0.0379770622f)
#define PE_ERF_C5 0.185717151f
#define PE_ERF_C6 (-0.152988464f)
#define PE_ERF_C7 0.036699228f

#endif
