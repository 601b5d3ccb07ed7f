#include "pe_quant.h"

#include <inttypes.h>

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
    const pe_dtype_traits *traits = pe_dtype_find(dtype);
    const pe_dtype_info info = traits->info;
    for (uint64_t b = 0; b < n_weights / info.block_weights; b++) {
        const float *x = weights + b * info.block_weights;
        if (!traits->pack_block((uint8_t *)out + b * info.block_bytes, x)) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "weights %" PRIu64 " to %" PRIu64
                           ": expected a %s scale that fits fp16 (up to 65504), found a larger one",
                           b * info.block_weights, (b + 1) * info.block_weights - 1, info.name);
        }
    }
    return PE_OK;
}
