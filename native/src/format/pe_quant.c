#include "pe_quant.h"

#include <inttypes.h>
#include <math.h>

/* ---- decoding --------------------------------------------------------- */

static void unpack_units(float *out, const pe_dtype_traits *traits, const void *row,
                         size_t n_units) {
    pe_unit unit;
    for (size_t u = 0; u < n_units; u++, out += PE_BLOCK) {
        traits->unpack_unit(&unit, row, u);
        for (size_t i = 0; i < PE_BLOCK; i++) {
            const float scaled = unit.d[i / 16] * (float)unit.q[i];
            out[i] = traits->has_min ? scaled + unit.m[i / 16] : scaled;
        }
    }
}

void pe_quant_unpack(float *out, pe_dtype dtype, const void *blocks, size_t n) {
    switch (dtype) {
    case PE_DTYPE_F32: memcpy(out, blocks, n * sizeof *out); break;
    case PE_DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            out[i] = pe_f16_to_f32(((const pe_f16 *)blocks)[i]);
        }
        break;
    case PE_DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            out[i] = pe_bf16_to_f32(((const pe_bf16 *)blocks)[i]);
        }
        break;
    default: unpack_units(out, pe_dtype_find(dtype), blocks, n / PE_BLOCK); break;
    }
}

/* ---- encoding --------------------------------------------------------- */

/* The block packers return false when a scale or minimum leaves fp16. */

static bool store_f16(pe_f16 *out, float x) {
    *out = pe_f16_from_f32(x);
    return (*out & 0x7c00u) != 0x7c00u;
}

/* 1 / d, or 0 for a block of zeros. A d below 2^-126 may give infinity, which the
 * clamps below keep from reaching an integer; such a d is 0 in fp16 anyway. */
static float inverse(float d) {
    return d != 0.0f ? 1.0f / d : 0.0f;
}

/* The integer part of x in 0..15; NaN gives 0. */
static uint8_t nibble(float x) {
    if (!(x >= 0.0f)) {
        return 0;
    }
    return x < 15.0f ? (uint8_t)x : 15;
}

/* The largest magnitude of the block maps to -8, the end of the range that
 * reaches furthest. */
static bool pack_q4_0(pe_block_q4_0 *out, const float *x) {
    float extreme = x[0];
    for (size_t i = 1; i < PE_BLOCK; i++) {
        if (fabsf(x[i]) > fabsf(extreme)) {
            extreme = x[i];
        }
    }
    const float d = extreme / -8.0f;
    const float inv = inverse(d);
    for (size_t i = 0; i < PE_BLOCK / 2; i++) {
        const uint8_t low = nibble(x[i] * inv + 8.5f);
        const uint8_t high = nibble(x[i + PE_BLOCK / 2] * inv + 8.5f);
        out->q[i] = (uint8_t)(low | high << 4);
    }
    return store_f16(&out->d, d);
}

static bool pack_q4_1(pe_block_q4_1 *out, const float *x) {
    float min = x[0];
    float max = x[0];
    for (size_t i = 1; i < PE_BLOCK; i++) {
        min = PE_MIN(min, x[i]);
        max = PE_MAX(max, x[i]);
    }
    const float d = (max - min) / 15.0f;
    const float inv = inverse(d);
    for (size_t i = 0; i < PE_BLOCK / 2; i++) {
        const uint8_t low = nibble((x[i] - min) * inv + 0.5f);
        const uint8_t high = nibble((x[i + PE_BLOCK / 2] - min) * inv + 0.5f);
        out->q[i] = (uint8_t)(low | high << 4);
    }
    const bool d_fits = store_f16(&out->d, d);
    const bool m_fits = store_f16(&out->m, min);
    return d_fits && m_fits;
}

static bool pack_q8_0(pe_block_q8_0 *out, const float *x) {
    float extreme = 0.0f;
    for (size_t i = 0; i < PE_BLOCK; i++) {
        extreme = PE_MAX(extreme, fabsf(x[i]));
    }
    const float d = extreme / 127.0f;
    const float inv = inverse(d);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const float q = roundf(x[i] * inv);  // ties away from zero
        out->q[i] = q >= -127.0f && q <= 127.0f ? (int8_t)q : 0;
    }
    return store_f16(&out->d, d);
}

bool pe_quant_pack_block(void *out, pe_dtype dtype, const float *x) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return pack_q4_0(out, x);
    case PE_DTYPE_Q4_1: return pack_q4_1(out, x);
    default: return pack_q8_0(out, x);
    }
}

/* ---- the public calls ------------------------------------------------- */

static pe_status check_blocks(uint32_t dtype, bool writing, uint64_t n_weights, pe_error *err) {
    pe_dtype_info info;
    PE_TRY(pe_dtype_describe(&info, dtype, err));
    if (writing ? !info.can_quantize : !info.can_compute) {
        return pe_fail(err, PE_ERR_UNSUPPORTED, "tensor type %s: this build cannot %s it",
                       info.name, writing ? "write" : "read");
    }
    if (n_weights % info.block_weights != 0) {
        return pe_fail(err, PE_ERR_ARG,
                       "%s: expected whole blocks of %u weights, found %" PRIu64 " weights",
                       info.name, info.block_weights, n_weights);
    }
    return PE_OK;
}

pe_status pe_dequantize(float *out, uint32_t dtype, const void *blocks, uint64_t n_weights,
                        pe_error *err) {
    PE_TRY(check_blocks(dtype, false, n_weights, err));
    pe_quant_unpack(out, (pe_dtype)dtype, blocks, (size_t)n_weights);
    return PE_OK;
}

pe_status pe_quantize(void *out, uint32_t dtype, const float *weights, uint64_t n_weights,
                      pe_error *err) {
    PE_TRY(check_blocks(dtype, true, n_weights, err));
    switch (dtype) {
    case PE_DTYPE_F32: memcpy(out, weights, (size_t)n_weights * sizeof *weights); return PE_OK;
    case PE_DTYPE_F16:
        for (uint64_t i = 0; i < n_weights; i++) {
            ((pe_f16 *)out)[i] = pe_f16_from_f32(weights[i]);
        }
        return PE_OK;
    case PE_DTYPE_BF16:
        for (uint64_t i = 0; i < n_weights; i++) {
            ((pe_bf16 *)out)[i] = pe_bf16_from_f32(weights[i]);
        }
        return PE_OK;
    }
    for (uint64_t i = 0; i < n_weights; i++) {
        if (!pe_f32_is_finite(weights[i])) {
            return pe_fail(err, PE_ERR_NUMERIC, "weight %" PRIu64 ": expected a number, found %g",
                           i, (double)weights[i]);
        }
    }
    const pe_dtype_info info = pe_dtype_find(dtype)->info;
    for (uint64_t b = 0; b < n_weights / info.block_weights; b++) {
        const float *x = weights + b * info.block_weights;
        if (!pe_quant_pack_block((uint8_t *)out + b * info.block_bytes, (pe_dtype)dtype, x)) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "weights %" PRIu64 " to %" PRIu64
                           ": expected a %s scale that fits fp16 (up to 65504), found a larger one",
                           b * info.block_weights, (b + 1) * info.block_weights - 1, info.name);
        }
    }
    return PE_OK;
}
