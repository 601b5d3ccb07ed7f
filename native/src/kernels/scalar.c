/* The definition of every kernel, one operation at a time.
 *
 * This is the reference that all other code is compared with, bit for bit, and the
 * code that runs where nothing better exists. It is written to be read against the
 * formulas of pe_kernels.h, not to be fast.
 */
#include <math.h>

#include "pe_kernels.h"

/* ---- shared ----------------------------------------------------------- */

static float add_in_halves(float *lanes, size_t n_lanes) {
    for (size_t half = n_lanes / 2; half >= 1; half /= 2) {
        for (size_t i = 0; i < half; i++) {
            lanes[i] = lanes[i] + lanes[i + half];
        }
    }
    return lanes[0];
}

/* (condition) ? a : b as a vector maximum does it: b when either is NaN. */
static float max_or_second(float a, float b) {
    return a > b ? a : b;
}

static float exp_f32(float x) {
    x = x < PE_EXP_MIN ? PE_EXP_MIN : x;  // false for NaN, which stays
    x = x > PE_EXP_MAX ? PE_EXP_MAX : x;
    const float t = fmaf(x, PE_EXP_LOG2E, PE_EXP_MAGIC);
    const uint32_t n = pe_f32_bits(t) - pe_f32_bits(PE_EXP_MAGIC);
    const float n_f32 = t - PE_EXP_MAGIC;
    float r = fmaf(n_f32, -PE_EXP_LN2_HI, x);
    r = fmaf(n_f32, -PE_EXP_LN2_LO, r);
    float p = PE_EXP_P0;
    p = fmaf(p, r, PE_EXP_P1);
    p = fmaf(p, r, PE_EXP_P2);
    p = fmaf(p, r, PE_EXP_P3);
    p = fmaf(p, r, PE_EXP_P4);
    p = fmaf(p, r, PE_EXP_P5);
    p = fmaf(p, r * r, r) + 1.0f;
    return p * pe_f32_from_bits((n + 127u) << 23);
}

/* ---- activations ------------------------------------------------------ */

static void quantize_acts_scalar(pe_act_block *out, const float *x, size_t n) {
    for (size_t b = 0; b < n / PE_BLOCK; b++, x += PE_BLOCK) {
        // Magnitudes compare as integers, NaN above infinity above all numbers.
        uint32_t max_bits = 0;
        for (size_t i = 0; i < PE_BLOCK; i++) {
            max_bits = PE_MAX(max_bits, pe_f32_bits(x[i]) & 0x7fffffffu);
        }
        const bool finite = max_bits < 0x7f800000u;
        const float max = pe_f32_from_bits(max_bits);
        // Below 2^-119 the quotient 127 / max overflows: such a block is all zero.
        const float inverse = finite && max >= 0x1p-119f ? 127.0f / max : 0.0f;
        out[b].d = finite ? max / 127.0f : NAN;
        int32_t sum[2] = {0, 0};
        for (size_t i = 0; i < PE_BLOCK; i++) {
            const float scaled = finite ? x[i] * inverse : 0.0f;
            // Adding 1.5 * 2^23 rounds to nearest even in the low mantissa bits.
            const uint32_t rounded = pe_f32_bits(scaled + 0x1.8p+23f);
            out[b].q[i] = (int8_t)(rounded & 0xffu);
            sum[i / 16] += out[b].q[i];
        }
        out[b].half[0] = (float)sum[0];
        out[b].half[1] = (float)sum[1];
        out[b].sum = (float)(sum[0] + sum[1]);
    }
}

/* ---- matrix products -------------------------------------------------- */

typedef float (*widen_fn)(const void *weights, size_t i);

static float widen_f32(const void *weights, size_t i) {
    return ((const float *)weights)[i];
}

static float widen_f16(const void *weights, size_t i) {
    return pe_f16_to_f32(((const pe_f16 *)weights)[i]);
}

static float widen_bf16(const void *weights, size_t i) {
    return pe_bf16_to_f32(((const pe_bf16 *)weights)[i]);
}

static float dot_float(const void *weights, const float *x, size_t n_k, widen_fn widen) {
    float lanes[PE_LANES] = {0};
    for (size_t k = 0; k < n_k; k += PE_LANES) {
        for (size_t l = 0; l < PE_LANES; l++) {
            const bool inside = k + l < n_k;
            const float w = inside ? widen(weights, k + l) : 0.0f;
            lanes[l] = fmaf(w, inside ? x[k + l] : 0.0f, lanes[l]);
        }
    }
    return add_in_halves(lanes, PE_LANES);
}

/* isum * d by way of the magic number, see pe_kernels.h. */
static float scaled_sum(int32_t isum, float d) {
    return fmaf(PE_SUM_MAGIC + (float)isum, d, -(PE_SUM_MAGIC * d));
}

/* One unit of a row added to acc. */
static float add_unit(float acc, const pe_unit *w, const pe_act_block *x,
                      const pe_dtype_traits *traits) {
    int32_t isum[2] = {0, 0};
    for (size_t i = 0; i < PE_BLOCK; i++) {
        isum[i / 16] += w->q[i] * x->q[i];
    }
    float s;
    if (traits->n_scales == 1) {
        s = scaled_sum(isum[0] + isum[1], w->d[0]);
        s = traits->has_min ? fmaf(x->sum, w->m[0], s) : s;
    } else {
        s = scaled_sum(isum[0], w->d[0]) + scaled_sum(isum[1], w->d[1]);
        s = traits->has_min ? fmaf(x->half[1], w->m[1], fmaf(x->half[0], w->m[0], s)) : s;
    }
    return fmaf(s, x->d, acc);
}

static float dot_units(const pe_dtype_traits *traits, const void *weights, const pe_act_block *x,
                       size_t n_k) {
    float acc = 0.0f;
    for (size_t u = 0; u < n_k / PE_BLOCK; u++) {
        pe_unit w;
        traits->unpack_unit(&w, weights, u);
        acc = add_unit(acc, &w, &x[u], traits);
    }
    return acc;
}

/* The same of a row of a strip. */
static float dot_strip(pe_dtype dtype, const void *strip, size_t row, const pe_act_block *x,
                       size_t n_k) {
    const pe_dtype_traits *traits = pe_dtype_find(dtype);
    const size_t n_units = traits->info.block_weights / PE_BLOCK;  // of a block
    float acc = 0.0f;
    for (size_t u = 0; u < n_k / PE_BLOCK; u++) {
        uint8_t block[sizeof(pe_block_q6_k)];  // the largest
        pe_strip_read_block(block, dtype, strip, u / n_units, row);
        pe_unit w;
        traits->unpack_unit(&w, block, u % n_units);
        acc = add_unit(acc, &w, &x[u], traits);
    }
    return acc;
}

/* Defines matmul_<name>_scalar: dot_expression for every row w and column x. */
#define MATMUL(name, dot_expression)                                                               \
    static void matmul_##name##_scalar(float *out, size_t out_stride, const void *weights,         \
                                       size_t row_bytes, size_t n_rows, const void *acts,          \
                                       size_t act_bytes, size_t n_cols, size_t n_k) {              \
        for (size_t c = 0; c < n_cols; c++) {                                                      \
            const void *x = (const uint8_t *)acts + c * act_bytes;                                 \
            for (size_t r = 0; r < n_rows; r++) {                                                  \
                const void *w = (const uint8_t *)weights + r * row_bytes;                          \
                out[c * out_stride + r] = dot_expression;                                          \
            }                                                                                      \
        }                                                                                          \
    }

/* Both products of a quantized type, from rows and from strips. */
#define MATMUL_QUANT(name, dtype)                                                                  \
    MATMUL(name, dot_units(pe_dtype_find(dtype), w, x, n_k))                                       \
    static void strips_##name##_scalar(float *out, size_t out_stride, const void *weights,         \
                                       size_t row_bytes, size_t n_rows, const void *acts,          \
                                       size_t act_bytes, size_t n_cols, size_t n_k) {              \
        for (size_t c = 0; c < n_cols; c++) {                                                      \
            const void *x = (const uint8_t *)acts + c * act_bytes;                                 \
            for (size_t r = 0; r < n_rows; r++) {                                                  \
                const size_t in_strip = r % PE_STRIP_ROWS;                                         \
                const void *strip = (const uint8_t *)weights + (r - in_strip) * row_bytes;         \
                out[c * out_stride + r] = dot_strip(dtype, strip, in_strip, x, n_k);               \
            }                                                                                      \
        }                                                                                          \
    }

MATMUL(f32, dot_float(w, x, n_k, widen_f32))
MATMUL(f16, dot_float(w, x, n_k, widen_f16))
MATMUL(bf16, dot_float(w, x, n_k, widen_bf16))
MATMUL_QUANT(q4_0, PE_DTYPE_Q4_0)
MATMUL_QUANT(q4_1, PE_DTYPE_Q4_1)
MATMUL_QUANT(q5_0, PE_DTYPE_Q5_0)
MATMUL_QUANT(q5_1, PE_DTYPE_Q5_1)
MATMUL_QUANT(q8_0, PE_DTYPE_Q8_0)
MATMUL_QUANT(q2_k, PE_DTYPE_Q2_K)
MATMUL_QUANT(q3_k, PE_DTYPE_Q3_K)
MATMUL_QUANT(q4_k, PE_DTYPE_Q4_K)
MATMUL_QUANT(q5_k, PE_DTYPE_Q5_K)
MATMUL_QUANT(q6_k, PE_DTYPE_Q6_K)
MATMUL_QUANT(iq4_nl, PE_DTYPE_IQ4_NL)
MATMUL_QUANT(iq4_xs, PE_DTYPE_IQ4_XS)
MATMUL_QUANT(mxfp4, PE_DTYPE_MXFP4)

/* ---- norm and activation ---------------------------------------------- */

static void rms_norm_scalar(float *out, const float *x, const float *weight, size_t n, float eps) {
    const float mean = dot_float(x, x, n, widen_f32) / (float)n;
    const float r = 1.0f / sqrtf(mean + eps);
    for (size_t i = 0; i < n; i++) {
        out[i] = (x[i] * r) * weight[i];
    }
}

static void layer_norm_scalar(float *out, const float *x, const float *weight, const float *bias,
                              size_t n, float eps) {
    float lanes[PE_LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        lanes[i % PE_LANES] += x[i];
    }
    const float mean = add_in_halves(lanes, PE_LANES) / (float)n;
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] - mean;
    }
    const float variance = dot_float(out, out, n, widen_f32) / (float)n;
    const float r = 1.0f / sqrtf(variance + eps);
    for (size_t i = 0; i < n; i++) {
        out[i] = (out[i] * r) * weight[i] + bias[i];
    }
}

static void silu_mul_scalar(float *out, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
    }
}

static void gelu_mul_scalar(float *out, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float s = fmaf(gate[i] * gate[i], PE_GELU_CUBE, PE_GELU_SLOPE);
        out[i] = gate[i] / (1.0f + exp_f32(gate[i] * s)) * up[i];
    }
}

static void gelu_erf_scalar(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const float a = max_or_second(x[i], 0.0f - x[i]);
        const float t = 1.0f / fmaf(a, PE_ERF_P, 1.0f);
        float p = PE_ERF_C7;
        p = fmaf(p, t, PE_ERF_C6);
        p = fmaf(p, t, PE_ERF_C5);
        p = fmaf(p, t, PE_ERF_C4);
        p = fmaf(p, t, PE_ERF_C3);
        p = fmaf(p, t, PE_ERF_C2);
        p = fmaf(p, t, PE_ERF_C1);
        p = fmaf(p, t, PE_ERF_C0);
        const float share = (t * p) * exp_f32(a * a * -0.5f);
        x[i] = max_or_second(x[i], 0.0f) - a * share;
    }
}

static void clamped_mul_scalar(float *out, const float *gate, const float *up, size_t n,
                               float limit) {
    for (size_t i = 0; i < n; i++) {
        // Each comparison is false for NaN, which stays.
        const float g = gate[i] > limit ? limit : gate[i];
        const float low = up[i] < -limit ? -limit : up[i];
        const float u = low > limit ? limit : low;
        out[i] = g / (1.0f + exp_f32(g * PE_CLAMPED_SLOPE)) * (u + 1.0f);
    }
}

static void sigmoid_mul_scalar(float *out, const float *gate, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] / (1.0f + exp_f32(-gate[i]));
    }
}

static float softcap_one(float x, float cap) {
    const float e = exp_f32(x * (2.0f / cap));
    return cap * (1.0f - 2.0f / (e + 1.0f));
}

static void softcap_scalar(float *x, size_t n, float cap) {
    for (size_t i = 0; i < n; i++) {
        x[i] = softcap_one(x[i], cap);
    }
}

/* ---- recurrences ------------------------------------------------------ */

static void ssm_scan_scalar(float *out, float *state, const float *x, const float *b,
                            const float *c, float decay, size_t n_rows, size_t n) {
    for (size_t r = 0; r < n_rows; r++, state += n) {
        for (size_t i = 0; i < n; i++) {
            state[i] = fmaf(b[i], x[r], state[i] * decay);
        }
        out[r] = dot_float(state, c, n, widen_f32);
    }
}

static void delta_scalar(float *state, float *out, const float *q, const float *k, const float *v,
                         size_t d_k, size_t n_v, float decay, float share) {
    for (size_t j = 0; j < n_v; j++) {
        float sum = 0.0f;
        for (size_t i = 0; i < d_k; i++) {
            sum = fmaf(k[i], state[i * n_v + j], sum);
        }
        const float u = share * (v[j] - decay * sum);
        float answer = 0.0f;
        for (size_t i = 0; i < d_k; i++) {
            float *s = &state[i * n_v + j];
            *s = fmaf(k[i], u, decay * *s);
            answer = fmaf(q[i], *s, answer);
        }
        out[j] = answer;
    }
}

/* ---- attention -------------------------------------------------------- */

static const float *open_keys_f32_scalar(float *out, const void *stored, const void *next,
                                         size_t d) {
    (void)out, (void)next, (void)d;
    return stored;
}

static const float *open_keys_f16_scalar(float *out, const void *stored, const void *next,
                                         size_t d) {
    (void)next;
    for (size_t i = 0; i < d * PE_PAGE_TOKENS; i++) {
        out[i] = widen_f16(stored, i);
    }
    return out;
}

/* Values whose rows are d numbers: into rows of d rounded up, zeros behind. */
static const float *open_rows(float *out, const void *stored, size_t d, widen_fn widen) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    for (size_t i = 0; i < PE_PAGE_TOKENS * d_out; i++) {
        out[i] = i % d_out < d ? widen(stored, i / d_out * d + i % d_out) : 0.0f;
    }
    return out;
}

static const float *open_values_f32_scalar(float *out, const void *stored, const void *next,
                                           size_t d) {
    (void)next;
    return open_rows(out, stored, d, widen_f32);
}

static const float *open_values_f16_scalar(float *out, const void *stored, const void *next,
                                           size_t d) {
    (void)next;
    return open_rows(out, stored, d, widen_f16);
}

/* Dimension i of position j of a quantized type. */
static float page_item(pe_kv_type type, const void *stored, size_t d, size_t i, size_t j,
                       bool is_key) {
    const size_t width = (size_t)pe_page_width(d);
    const pe_f16 *scales = stored;
    const uint8_t *integers = (const uint8_t *)stored + pe_page_scale_bytes(type, d);
    const float scale = pe_f16_to_f32(scales[i / PE_BLOCK * PE_PAGE_TOKENS + j]);
    if (type == PE_KV_Q8_0) {
        const size_t at = is_key ? i * PE_PAGE_TOKENS + j : j * width + i;
        return (float)((const int8_t *)integers)[at] * scale;
    }
    const size_t byte = i / PE_BLOCK * (PE_BLOCK / 2) + i % (PE_BLOCK / 2);
    const size_t at = is_key ? byte * PE_PAGE_TOKENS + j : j * (width / 2) + byte;
    const int32_t q = i % PE_BLOCK < PE_BLOCK / 2 ? integers[at] & 15 : integers[at] >> 4;
    return (float)(q - 8) * scale;
}

static const float *open_keys_quantized(float *out, const void *stored, size_t d, pe_kv_type type) {
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
            out[i * PE_PAGE_TOKENS + j] = page_item(type, stored, d, i, j, true);
        }
    }
    return out;
}

static const float *open_values_quantized(float *out, const void *stored, size_t d,
                                          pe_kv_type type) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
        for (size_t i = 0; i < d_out; i++) {
            out[j * d_out + i] = i < d ? page_item(type, stored, d, i, j, false) : 0.0f;
        }
    }
    return out;
}

/* Defines open_<part>_<name>_scalar for a quantized type. */
#define OPEN(part, name, type)                                                                     \
    static const float *open_##part##_##name##_scalar(float *out, const void *stored,              \
                                                      const void *next, size_t d) {                \
        (void)next;                                                                                \
        return open_##part##_quantized(out, stored, d, type);                                      \
    }

OPEN(keys, q8_0, PE_KV_Q8_0)
OPEN(keys, q4_0, PE_KV_Q4_0)
OPEN(values, q8_0, PE_KV_Q8_0)
OPEN(values, q4_0, PE_KV_Q4_0)

static void turn_keys_scalar(float *out, const float *keys, size_t d) {
    const size_t d_out = pe_ceil_div(d, PE_LANES) * PE_LANES;
    for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
        for (size_t i = 0; i < d_out; i++) {
            out[j * d_out + i] = i < d ? keys[i * PE_PAGE_TOKENS + j] : 0.0f;
        }
    }
}

static void attend_one(pe_softmax *softmax, float *acc, const float *q, size_t n_valid,
                       const float *keys, const float *values, size_t d_k, size_t d_v, float scale,
                       float softcap) {
    float p[PE_PAGE_TOKENS] = {0};
    float max = softmax->max;
    for (size_t j = 0; j < n_valid; j++) {
        float score = 0.0f;
        for (size_t d = 0; d < d_k; d++) {
            score = fmaf(q[d], keys[d * PE_PAGE_TOKENS + j], score);
        }
        p[j] = score * scale;
        p[j] = softcap > 0.0f ? softcap_one(p[j], softcap) : p[j];
        max = max_or_second(p[j], max);
    }
    max = max + 0.0f;
    for (size_t j = 0; j < n_valid; j++) {
        p[j] = exp_f32(p[j] - max);
    }
    const float shrink = exp_f32(softmax->max - max);
    for (size_t d = 0; d < d_v; d++) {
        acc[d] = acc[d] * shrink;
        for (size_t j = 0; j < n_valid; j++) {
            acc[d] = fmaf(p[j], values[j * d_v + d], acc[d]);
        }
    }
    softmax->sum = softmax->sum * shrink + add_in_halves(p, PE_PAGE_TOKENS);
    softmax->max = max;
}

static void attend_scalar(pe_softmax *softmax, float *acc, const float *q, const uint32_t *n_valid,
                          size_t n_queries, const float *keys, const float *values, size_t d_k,
                          size_t d_v, float scale, float softcap) {
    for (size_t i = 0; i < n_queries; i++) {
        attend_one(&softmax[i], acc + i * d_v, q + i * d_k, n_valid[i], keys, values, d_k, d_v,
                   scale, softcap);
    }
}

void pe_kernels_init_scalar(pe_kernels *kernels) {
    kernels->isa = PE_ISA_SCALAR;
    kernels->quantize_acts = quantize_acts_scalar;
    kernels->matmul[PE_DTYPE_F32] = matmul_f32_scalar;
    kernels->matmul[PE_DTYPE_F16] = matmul_f16_scalar;
    kernels->matmul[PE_DTYPE_BF16] = matmul_bf16_scalar;
#define SET_QUANT(name, dtype)                                                                     \
    kernels->matmul[dtype] = matmul_##name##_scalar;                                               \
    kernels->matmul_strips[dtype] = strips_##name##_scalar;
    SET_QUANT(q4_0, PE_DTYPE_Q4_0)
    SET_QUANT(q4_1, PE_DTYPE_Q4_1)
    SET_QUANT(q5_0, PE_DTYPE_Q5_0)
    SET_QUANT(q5_1, PE_DTYPE_Q5_1)
    SET_QUANT(q8_0, PE_DTYPE_Q8_0)
    SET_QUANT(q2_k, PE_DTYPE_Q2_K)
    SET_QUANT(q3_k, PE_DTYPE_Q3_K)
    SET_QUANT(q4_k, PE_DTYPE_Q4_K)
    SET_QUANT(q5_k, PE_DTYPE_Q5_K)
    SET_QUANT(q6_k, PE_DTYPE_Q6_K)
    SET_QUANT(iq4_nl, PE_DTYPE_IQ4_NL)
    SET_QUANT(iq4_xs, PE_DTYPE_IQ4_XS)
    SET_QUANT(mxfp4, PE_DTYPE_MXFP4)
#undef SET_QUANT
    memcpy(kernels->matvec, kernels->matmul, sizeof kernels->matmul);
    kernels->rms_norm = rms_norm_scalar;
    kernels->layer_norm = layer_norm_scalar;
    kernels->silu_mul = silu_mul_scalar;
    kernels->gelu_erf = gelu_erf_scalar;
    kernels->gelu_mul = gelu_mul_scalar;
    kernels->clamped_mul = clamped_mul_scalar;
    kernels->sigmoid_mul = sigmoid_mul_scalar;
    kernels->delta = delta_scalar;
    kernels->softcap = softcap_scalar;
    kernels->ssm_scan = ssm_scan_scalar;
    kernels->open_keys[PE_KV_F32] = open_keys_f32_scalar;
    kernels->open_keys[PE_KV_F16] = open_keys_f16_scalar;
    kernels->open_keys[PE_KV_Q8_0] = open_keys_q8_0_scalar;
    kernels->open_keys[PE_KV_Q4_0] = open_keys_q4_0_scalar;
    kernels->open_values[PE_KV_F32] = open_values_f32_scalar;
    kernels->open_values[PE_KV_F16] = open_values_f16_scalar;
    kernels->open_values[PE_KV_Q8_0] = open_values_q8_0_scalar;
    kernels->open_values[PE_KV_Q4_0] = open_values_q4_0_scalar;
    kernels->turn_keys = turn_keys_scalar;
    kernels->attend = attend_scalar;
}
