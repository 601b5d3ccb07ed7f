/* The entries of the table: one column and several, for every quantized type. Included
 * last by an instruction set's file, after LEVEL, its suffix, and MATMUL_QUANT,
 * its product of several columns, are defined, and MATMUL_STRIPS where it has one, with
 * GAINS_BY_STRIPS, whether that pays for a type.
 */
#define GLUE(a, b, c) a##b##_##c
#define NAME(kind, name, level) GLUE(kind, name, level)

#define PRODUCTS(name, dtype)                                                                      \
    static void NAME(matvec_, name, LEVEL)(float *out, size_t out_stride, const void *weights,     \
                                           size_t row_bytes, size_t n_rows, const void *acts,      \
                                           size_t act_bytes, size_t n_cols, size_t n_k) {          \
        (void)out_stride, (void)act_bytes, (void)n_cols;                                           \
        matvec_rows(out, weights, row_bytes, n_rows, acts, n_k, dtype);                            \
    }                                                                                              \
    static void NAME(matmul_, name, LEVEL)(float *out, size_t out_stride, const void *weights,     \
                                           size_t row_bytes, size_t n_rows, const void *acts,      \
                                           size_t act_bytes, size_t n_cols, size_t n_k) {          \
        MATMUL_QUANT(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k,    \
                     dtype);                                                                       \
    }                                                                                              \
    STRIPS(name, dtype)

#if defined(MATMUL_STRIPS)
#define STRIPS(name, dtype)                                                                        \
    static void NAME(strips_, name, LEVEL)(float *out, size_t out_stride, const void *weights,     \
                                           size_t row_bytes, size_t n_rows, const void *acts,      \
                                           size_t act_bytes, size_t n_cols, size_t n_k) {          \
        MATMUL_STRIPS(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k,   \
                      dtype);                                                                      \
    }
#define SET_STRIPS(name, dtype)                                                                    \
    kernels->matmul_strips[dtype] = NAME(strips_, name, LEVEL);                                    \
    kernels->fast_strips[dtype] = GAINS_BY_STRIPS(dtype);
#else
#define STRIPS(name, dtype)
#define SET_STRIPS(name, dtype)
#endif

PRODUCTS(q4_0, PE_DTYPE_Q4_0)
PRODUCTS(q4_1, PE_DTYPE_Q4_1)
PRODUCTS(q5_0, PE_DTYPE_Q5_0)
PRODUCTS(q5_1, PE_DTYPE_Q5_1)
PRODUCTS(q8_0, PE_DTYPE_Q8_0)
PRODUCTS(q2_k, PE_DTYPE_Q2_K)
PRODUCTS(q3_k, PE_DTYPE_Q3_K)
PRODUCTS(q4_k, PE_DTYPE_Q4_K)
PRODUCTS(q5_k, PE_DTYPE_Q5_K)
PRODUCTS(q6_k, PE_DTYPE_Q6_K)
PRODUCTS(iq4_nl, PE_DTYPE_IQ4_NL)
PRODUCTS(iq4_xs, PE_DTYPE_IQ4_XS)
PRODUCTS(mxfp4, PE_DTYPE_MXFP4)
#undef PRODUCTS

static void NAME(set_, products, LEVEL)(pe_kernels *kernels) {
#define SET(name, dtype)                                                                           \
    kernels->matvec[dtype] = NAME(matvec_, name, LEVEL);                                           \
    kernels->matmul[dtype] = NAME(matmul_, name, LEVEL);                                           \
    SET_STRIPS(name, dtype)
    SET(q4_0, PE_DTYPE_Q4_0)
    SET(q4_1, PE_DTYPE_Q4_1)
    SET(q5_0, PE_DTYPE_Q5_0)
    SET(q5_1, PE_DTYPE_Q5_1)
    SET(q8_0, PE_DTYPE_Q8_0)
    SET(q2_k, PE_DTYPE_Q2_K)
    SET(q3_k, PE_DTYPE_Q3_K)
    SET(q4_k, PE_DTYPE_Q4_K)
    SET(q5_k, PE_DTYPE_Q5_K)
    SET(q6_k, PE_DTYPE_Q6_K)
    SET(iq4_nl, PE_DTYPE_IQ4_NL)
    SET(iq4_xs, PE_DTYPE_IQ4_XS)
    SET(mxfp4, PE_DTYPE_MXFP4)
#undef SET
}
