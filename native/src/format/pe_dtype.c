#include "pe_dtype.h"

#include "pe_pack.h"
#include "pe_unit.h"

#define FLOAT(name, bytes) {{name, 1, bytes, true, true}, PE_ACTS_F32, NULL, NULL, 0, false}
#define QUANT(name, type, n_scales, has_min)                                                       \
    {{name, sizeof(pe_block_##type) > 40 ? PE_SUPER_BLOCK : PE_BLOCK, sizeof(pe_block_##type),     \
      true, true},                                                                                 \
     PE_ACTS_Q8,                                                                                   \
     pe_unit_##type,                                                                               \
     pe_pack_##type,                                                                               \
     n_scales,                                                                                     \
     has_min}
#define KNOWN(name, weights, bytes)                                                                \
    {{name, weights, bytes, false, false}, PE_ACTS_F32, NULL, NULL, 0, false}

/* Sizes from the GGUF specification (ggml docs/gguf.md and gguf-py's constants).
 * KNOWN types can be listed and skipped over; using one is refused by name. */
static const pe_dtype_traits TABLE[PE_DTYPE_END] = {
    [PE_DTYPE_F32] = FLOAT("F32", 4),
    [PE_DTYPE_F16] = FLOAT("F16", 2),
    [PE_DTYPE_Q4_0] = QUANT("Q4_0", q4_0, 1, false),
    [PE_DTYPE_Q4_1] = QUANT("Q4_1", q4_1, 1, true),
    [PE_DTYPE_Q5_0] = QUANT("Q5_0", q5_0, 1, false),
    [PE_DTYPE_Q5_1] = QUANT("Q5_1", q5_1, 1, true),
    [PE_DTYPE_Q8_0] = QUANT("Q8_0", q8_0, 1, false),
    [9] = KNOWN("Q8_1", 32, 36),
    [PE_DTYPE_Q2_K] = QUANT("Q2_K", q2_k, 2, true),
    [PE_DTYPE_Q3_K] = QUANT("Q3_K", q3_k, 2, false),
    [PE_DTYPE_Q4_K] = QUANT("Q4_K", q4_k, 1, true),
    [PE_DTYPE_Q5_K] = QUANT("Q5_K", q5_k, 1, true),
    [PE_DTYPE_Q6_K] = QUANT("Q6_K", q6_k, 2, false),
    [15] = KNOWN("Q8_K", 256, 292),
    [16] = KNOWN("IQ2_XXS", 256, 66),
    [17] = KNOWN("IQ2_XS", 256, 74),
    [18] = KNOWN("IQ3_XXS", 256, 98),
    [19] = KNOWN("IQ1_S", 256, 50),
    [PE_DTYPE_IQ4_NL] = QUANT("IQ4_NL", iq4_nl, 1, false),
    [21] = KNOWN("IQ3_S", 256, 110),
    [22] = KNOWN("IQ2_S", 256, 82),
    [PE_DTYPE_IQ4_XS] = QUANT("IQ4_XS", iq4_xs, 1, false),
    [24] = KNOWN("I8", 1, 1),
    [25] = KNOWN("I16", 1, 2),
    [26] = KNOWN("I32", 1, 4),
    [27] = KNOWN("I64", 1, 8),
    [28] = KNOWN("F64", 1, 8),
    [29] = KNOWN("IQ1_M", 256, 56),
    [PE_DTYPE_BF16] = FLOAT("BF16", 2),
    [34] = KNOWN("TQ1_0", 256, 54),
    [35] = KNOWN("TQ2_0", 256, 66),
    [PE_DTYPE_MXFP4] = QUANT("MXFP4", mxfp4, 1, false),
    [40] = KNOWN("NVFP4", 64, 36),
    [41] = KNOWN("Q1_0", 128, 18),
};

const pe_dtype_traits *pe_dtype_find(uint32_t dtype) {
    return dtype < PE_LEN(TABLE) && TABLE[dtype].info.name != NULL ? &TABLE[dtype] : NULL;
}

pe_status pe_dtype_describe(pe_dtype_info *out_info, uint32_t dtype, pe_error *err) {
    const pe_dtype_traits *traits = pe_dtype_find(dtype);
    if (traits == NULL) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "tensor type %u: expected a type of GGUF, found an unknown number", dtype);
    }
    *out_info = traits->info;
    return PE_OK;
}
