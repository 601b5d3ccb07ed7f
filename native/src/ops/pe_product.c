#include "pe_product.h"

/* Rows per chunk: a multiple of every kernel's tile. 64 rows of a 4-bit 4096-wide matrix
 * are 147 KB, some 10 us. */
#define TILE_ROWS 8u
#define STRIP_TILE_ROWS 32u  // two strips
#define MAX_CHUNK_ROWS 64u
#define CHUNKS_PER_THREAD 8u

static bool wants_q8(const pe_weight *weight) {
    return pe_dtype_find(weight->dtype)->acts == PE_ACTS_Q8;
}

/* ---- activations ------------------------------------------------------ */

typedef struct quantize_job {
    const pe_kernels *kernels;
    const pe_acts *acts;
} quantize_job;

static void quantize_column(void *arg, uint32_t i_column, uint32_t i_thread) {
    (void)i_thread;
    const quantize_job *job = arg;
    const pe_acts *acts = job->acts;
    job->kernels->quantize_acts(acts->q8 + i_column * (acts->n_k / PE_BLOCK),
                                acts->f32 + i_column * acts->n_k, acts->n_k);
}

void pe_product_quantize(const pe_ops *ops, const pe_product *products, size_t n_products,
                         pe_acts *acts) {
    bool wanted = false;
    for (size_t i = 0; i < n_products; i++) {
        wanted |= wants_q8(products[i].weight);
    }
    if (wanted && !acts->is_quantized) {
        quantize_job job = {&ops->kernels, acts};
        pe_pool_run(ops->pool, quantize_column, &job, (uint32_t)acts->n_cols);
        acts->is_quantized = true;
    }
}

/* ---- rows ------------------------------------------------------------- */

void pe_product_cut(pe_cut *out, const pe_ops *ops, const pe_product *products, size_t n_products,
                    uint64_t n_matrices) {
    uint64_t n_rows = 0;
    uint64_t tile_rows = TILE_ROWS;
    for (size_t i = 0; i < n_products; i++) {
        n_rows += products[i].weight->n_rows * n_matrices;
        tile_rows = products[i].weight->strips != NULL ? STRIP_TILE_ROWS : tile_rows;
    }
    const uint64_t share = n_rows / ((uint64_t)pe_pool_n_threads(ops->pool) * CHUNKS_PER_THREAD);
    *out = (pe_cut){.chunk_rows =
                        PE_MAX(PE_MIN(share / tile_rows * tile_rows, MAX_CHUNK_ROWS), tile_rows)};
    for (size_t i = 0; i < n_products; i++) {
        out->first_chunk[i + 1] =
            out->first_chunk[i] +
            (uint32_t)pe_ceil_div(products[i].weight->n_rows, out->chunk_rows);
    }
    out->n_chunks = out->first_chunk[n_products];
}

static void add_bias(float *out, size_t out_stride, const float *bias, uint64_t n_rows,
                     size_t n_cols) {
    for (size_t c = 0; c < n_cols; c++, out += out_stride) {
        for (uint64_t r = 0; r < n_rows; r++) {
            out[r] += bias[r];
        }
    }
}

void pe_product_run_chunk(const pe_ops *ops, const pe_product *products, const pe_cut *cut,
                          uint32_t i_chunk, uint64_t i_matrix, const pe_acts *acts,
                          pe_columns columns) {
    size_t i = 0;
    while (i_chunk >= cut->first_chunk[i + 1]) {
        i++;
    }
    const pe_product *product = &products[i];
    const pe_weight *weight = product->weight;
    const uint64_t begin = (i_chunk - cut->first_chunk[i]) * cut->chunk_rows;
    const uint64_t n_rows = PE_MIN(cut->chunk_rows, weight->n_rows - begin);
    const uint64_t row = i_matrix * weight->stack_rows + begin;
    const bool q8 = wants_q8(weight);
    const size_t act_bytes =
        q8 ? acts->n_k / PE_BLOCK * sizeof(pe_act_block) : acts->n_k * sizeof(float);
    const uint8_t *x = q8 ? (const uint8_t *)acts->q8 : (const uint8_t *)acts->f32;
    float *out = product->out + columns.first * product->out_stride + begin;
    const pe_kernels *kernels = &ops->kernels;
    const pe_matmul_fn multiply = (weight->strips != NULL ? kernels->matmul_strips
                                   : columns.n == 1       ? kernels->matvec
                                                          : kernels->matmul)[weight->dtype];
    const uint8_t *data = weight->strips != NULL ? weight->strips : weight->data;
    multiply(out, product->out_stride, data + row * weight->row_bytes, weight->row_bytes, n_rows,
             x + columns.first * act_bytes, act_bytes, columns.n, acts->n_k);
    if (product->bias != NULL && product->bias->data != NULL) {
        add_bias(out, product->out_stride,
                 (const float *)product->bias->data + i_matrix * weight->n_rows + begin, n_rows,
                 columns.n);
    }
}
