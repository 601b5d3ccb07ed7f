#include "pe_dtype.h"

#define COMPUTE(name, weights, bytes, acts) {{name, weights, bytes, true, true}, acts}
#define READ_ONLY(name, weights, bytes, acts) {{name, weights, bytes, true, false}, acts}
#define KNOWN(name, weights, bytes) {{name, weights, bytes, false, false}, PE_ACTS_F32}

/* Sizes from the GGUF specification (ggml docs/gguf.md and gguf-py's constants).
 * KNOWN types can be listed and skipped over; using one is refused by name. */
static const pe_dtype_traits TABLE[PE_DTYPE_END] = {
    [PE_DTYPE_F32] = COMPUTE("F32", 1, 4, PE_ACTS_F32),
    [PE_DTYPE_F16] = COMPUTE("F16", 1, 2, PE_ACTS_F32),
    [PE_DTYPE_Q4_0] = COMPUTE("Q4_0", PE_BLOCK, sizeof(pe_block_q4_0), PE_ACTS_Q8),
    [PE_DTYPE_Q4_1] = COMPUTE("Q4_1", PE_BLOCK, sizeof(pe_block_q4_1), PE_ACTS_Q8),
    [6] = KNOWN("Q5_0", 32, 22),
    [7] = KNOWN("Q5_1", 32, 24),
    [PE_DTYPE_Q8_0] = COMPUTE("Q8_0", PE_BLOCK, sizeof(pe_block_q8_0), PE_ACTS_Q8),
    [9] = KNOWN("Q8_1", 32, 36),
    [10] = KNOWN("Q2_K", 256, 84),
    [11] = KNOWN("Q3_K", 256, 110),
    [12] = KNOWN("Q4_K", 256, 144),
    [13] = KNOWN("Q5_K", 256, 176),
    [PE_DTYPE_Q6_K] = READ_ONLY("Q6_K", PE_SUPER_BLOCK, sizeof(pe_block_q6_k), PE_ACTS_Q8),
    [15] = KNOWN("Q8_K", 256, 292),
    [16] = KNOWN("IQ2_XXS", 256, 66),
    [17] = KNOWN("IQ2_XS", 256, 74),
    [18] = KNOWN("IQ3_XXS", 256, 98),
    [19] = KNOWN("IQ1_S", 256, 50),
    [20] = KNOWN("IQ4_NL", 32, 18),
    [21] = KNOWN("IQ3_S", 256, 110),
    [22] = KNOWN("IQ2_S", 256, 82),
    [23] = KNOWN("IQ4_XS", 256, 136),
    [24] = KNOWN("I8", 1, 1),
    [25] = KNOWN("I16", 1, 2),
    [26] = KNOWN("I32", 1, 4),
    [27] = KNOWN("I64", 1, 8),
    [28] = KNOWN("F64", 1, 8),
    [29] = KNOWN("IQ1_M", 256, 56),
    [PE_DTYPE_BF16] = COMPUTE("BF16", 1, 2, PE_ACTS_F32),
    [34] = KNOWN("TQ1_0", 256, 54),
    [35] = KNOWN("TQ2_0", 256, 66),
    [39] = KNOWN("MXFP4", 32, 17),
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
