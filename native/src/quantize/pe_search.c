#include <inttypes.h>

#include "pe_grid.h"

static pe_status check_args(const pe_grid *grid, const float *importance, uint64_t n_rows,
                            uint64_t n_cols, pe_error *err) {
    const char *name = pe_dtype_find(grid->dtype)->info.name;
    uint64_t n;
    if (!pe_mul_u64(&n, n_rows, n_cols) || n > SIZE_MAX / sizeof(float)) {
        return pe_fail(err, PE_ERR_ARG,
                       "weights: expected a size in memory, found %" PRIu64 " rows of %" PRIu64,
                       n_rows, n_cols);
    }
    if (n_cols % grid->n_weights != 0) {
        return pe_fail(err, PE_ERR_ARG,
                       "%s: expected rows of whole blocks of %d weights, found rows of %" PRIu64,
                       name, (int)grid->n_weights, n_cols);
    }
    for (uint64_t c = 0; importance != NULL && c < n_cols; c++) {
        if (!pe_f32_is_finite(importance[c])) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "importance %" PRIu64 ": expected a number, found %g", c,
                           (double)importance[c]);
        }
        if (importance[c] < 0.0f) {
            return pe_fail(err, PE_ERR_ARG, "importance %" PRIu64 ": expected 0 or more, found %g",
                           c, (double)importance[c]);
        }
    }
    return PE_OK;
}

static pe_status check_weights(const float *w, uint64_t n, pe_error *err) {
    for (uint64_t i = 0; i < n; i++) {
        if (!pe_f32_is_finite(w[i])) {
            return pe_fail(err, PE_ERR_NUMERIC, "weight %" PRIu64 ": expected a number, found %g",
                           i, (double)w[i]);
        }
    }
    return PE_OK;
}

pe_status pe_quantize_weighted(void *out, uint32_t dtype, const float *weights,
                               const float *importance, uint64_t n_rows, uint64_t n_cols,
                               pe_error *err) {
    pe_dtype_info info;
    PE_TRY(pe_dtype_describe(&info, dtype, err));
    pe_grid grid;
    if (!pe_grid_init(&grid, dtype)) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "tensor type %s: expected a type of blocks, whose scales can be searched",
                       info.name);
    }
    PE_TRY(check_args(&grid, importance, n_rows, n_cols, err));
    PE_TRY(check_weights(weights, n_rows * n_cols, err));
    const uint64_t per_row = n_cols / info.block_weights;
    for (uint64_t b = 0; b < n_rows * per_row; b++) {
        const float *w = weights + b * info.block_weights;
        const float *h = importance == NULL ? NULL : importance + b % per_row * info.block_weights;
        if (!pe_grid_fit(&grid, dtype, w, h)) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "weights %" PRIu64 " to %" PRIu64
                           ": expected a %s scale that fits fp16 (up to 65504), found a larger one",
                           b * info.block_weights, (b + 1) * info.block_weights - 1, info.name);
        }
        int8_t levels[PE_SUPER_BLOCK];
        for (size_t i = 0; i < grid.n_weights; i++) {
            levels[i] = (int8_t)pe_grid_level(&grid, i, w[i]);
        }
        pe_grid_encode((uint8_t *)out + b * info.block_bytes, &grid, levels);
    }
    return PE_OK;
}
