/* Matrix products over a batch: quantizes the activations when a weight asks for
 * it, then deals runs of rows to threads.
 */
#include "pe_ops.h"

#define MAX_PRODUCTS 4

/* Rows per chunk: a multiple of every kernel's tile. Many small chunks even out
 * slow cores; 64 rows of a 4-bit 4096-wide matrix are 147 KB, some 10 us. */
#define TILE_ROWS 8u
#define STRIP_TILE_ROWS 32u  // two strips
#define MAX_CHUNK_ROWS 64u
#define CHUNKS_PER_THREAD 8u

typedef struct matmul_job {
    const pe_ops *ops;
    const pe_product *products;
    size_t n_products;
    const pe_acts *acts;
    uint64_t chunk_rows;
    uint64_t first_chunk[MAX_PRODUCTS + 1];  // of each product; the last: all chunks
} matmul_job;

static void quantize_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const matmul_job *job = arg;
    const pe_acts *acts = job->acts;
    job->ops->kernels.quantize_acts(acts->q8 + i_chunk * (acts->n_k / PE_BLOCK),
                                    acts->f32 + i_chunk * acts->n_k, acts->n_k);
}

/* Chunks are claimed in order, by threads more or less in turn: each thread gets a run of
 * neighbours, whose rows follow each other, so that what one has asked ahead for is its
 * own. */
static uint32_t dealt(const matmul_job *job, uint32_t i_claim) {
    const uint32_t n_threads = pe_pool_n_threads(job->ops->pool);
    const uint32_t run = (uint32_t)job->first_chunk[job->n_products] / n_threads;
    return i_claim < run * n_threads ? i_claim % n_threads * run + i_claim / n_threads : i_claim;
}

static void matmul_chunk(void *arg, uint32_t i_claim, uint32_t i_thread) {
    (void)i_thread;
    const matmul_job *job = arg;
    const uint32_t i_chunk = dealt(job, i_claim);
    const pe_acts *acts = job->acts;
    size_t i = 0;
    while (i_chunk >= job->first_chunk[i + 1]) {
        i++;
    }
    const pe_product *product = &job->products[i];
    const pe_weight *weight = product->weight;
    const uint64_t begin = (i_chunk - job->first_chunk[i]) * job->chunk_rows;
    const uint64_t n_rows = PE_MIN(job->chunk_rows, weight->n_rows - begin);
    const bool q8 = pe_dtype_find(weight->dtype)->acts == PE_ACTS_Q8;
    const size_t act_bytes =
        q8 ? acts->n_k / PE_BLOCK * sizeof(pe_act_block) : acts->n_k * sizeof(float);
    const pe_kernels *kernels = &job->ops->kernels;
    const pe_matmul_fn multiply = (weight->strips != NULL ? kernels->matmul_strips
                                   : acts->n_cols == 1    ? kernels->matvec
                                                          : kernels->matmul)[weight->dtype];
    const uint8_t *data = weight->strips != NULL ? weight->strips : weight->data;
    multiply(product->out + begin, product->out_stride, data + begin * weight->row_bytes,
             weight->row_bytes, n_rows, q8 ? (const void *)acts->q8 : (const void *)acts->f32,
             act_bytes, acts->n_cols, acts->n_k);
    if (product->bias != NULL && product->bias->data != NULL) {
        const float *bias = (const float *)product->bias->data + begin;
        for (size_t c = 0; c < acts->n_cols; c++) {
            float *out = product->out + c * product->out_stride + begin;
            for (uint64_t r = 0; r < n_rows; r++) {
                out[r] += bias[r];
            }
        }
    }
}

void pe_matmul(const pe_ops *ops, const pe_product *products, size_t n_products, pe_acts *acts) {
    matmul_job job = {.ops = ops, .products = products, .n_products = n_products, .acts = acts};
    uint64_t n_rows = 0;
    bool needs_q8 = false;
    uint64_t tile_rows = TILE_ROWS;
    for (size_t i = 0; i < n_products; i++) {
        n_rows += products[i].weight->n_rows;
        needs_q8 |= pe_dtype_find(products[i].weight->dtype)->acts == PE_ACTS_Q8;
        tile_rows = products[i].weight->strips != NULL ? STRIP_TILE_ROWS : tile_rows;
    }
    if (needs_q8 && !acts->is_quantized) {
        pe_pool_run(ops->pool, quantize_chunk, &job, (uint32_t)acts->n_cols);
        acts->is_quantized = true;
    }
    const uint64_t share = n_rows / ((uint64_t)pe_pool_n_threads(ops->pool) * CHUNKS_PER_THREAD);
    job.chunk_rows = PE_MAX(PE_MIN(share / tile_rows * tile_rows, MAX_CHUNK_ROWS), tile_rows);
    for (size_t i = 0; i < n_products; i++) {
        job.first_chunk[i + 1] =
            job.first_chunk[i] + pe_ceil_div(products[i].weight->n_rows, job.chunk_rows);
    }
    pe_pool_run(ops->pool, matmul_chunk, &job, (uint32_t)job.first_chunk[n_products]);
}
