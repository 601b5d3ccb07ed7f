#include "pe_heads.h"

/* Rows, or columns of a transposed matrix, of one chunk: whole blocks of every type. */
#define CHUNK 256u
#define LEAST_ROWS 32u
#define CHUNKS_PER_THREAD 4u

typedef struct heads_job {
    const pe_ops *ops;
    const pe_heads *out;
    const pe_weight *weight;
    uint64_t first_row;
    uint64_t n_rows;
    const pe_heads *in;
    pe_unpack_fn unpack;
    pe_act_block *q8;  // NULL: the weight takes floats
    uint32_t n_tokens;
    uint64_t chunk;     // rows or columns
    uint32_t n_chunks;  // of a head
} heads_job;

static float *head_at(const heads_job *job, const pe_heads *heads, uint64_t token, uint64_t head) {
    return heads->data + (token * job->weight->n_stacked + head) * heads->stride;
}

/* ---- rows ------------------------------------------------------------- */

static void quantize_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const heads_job *job = arg;
    const uint64_t n_heads = job->weight->n_stacked;
    const uint64_t n_blocks = job->weight->n_cols / PE_BLOCK;
    pe_act_block *q8 = job->q8 + i_token * n_heads * n_blocks;
    for (uint64_t h = 0; h < n_heads; h++, q8 += n_blocks) {
        job->ops->kernels.quantize_acts(q8, head_at(job, job->in, i_token, h), job->weight->n_cols);
    }
}

static void rows_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const heads_job *job = arg;
    const pe_weight *w = job->weight;
    const pe_kernels *kernels = &job->ops->kernels;
    const uint64_t head = i_chunk / job->n_chunks;
    const uint64_t begin = i_chunk % job->n_chunks * job->chunk;
    const uint64_t row = head * w->n_rows + job->first_row + begin;
    const uint64_t n_blocks = w->n_cols / PE_BLOCK;
    const void *x = head_at(job, job->in, 0, head);
    size_t x_bytes = w->n_stacked * job->in->stride * sizeof(float);
    if (job->q8 != NULL) {
        x = job->q8 + head * n_blocks;
        x_bytes = w->n_stacked * n_blocks * sizeof *job->q8;
    }
    const pe_matmul_fn multiply =
        (job->n_tokens == 1 ? kernels->matvec : kernels->matmul)[w->dtype];
    multiply(head_at(job, job->out, 0, head) + begin, w->n_stacked * job->out->stride,
             (const uint8_t *)w->data + row * w->row_bytes, w->row_bytes,
             PE_MIN(job->chunk, job->n_rows - begin), x, x_bytes, job->n_tokens, w->n_cols);
}

void pe_heads_matmul(const pe_ops *ops, const pe_heads *out, const pe_weight *weight,
                     uint64_t first_row, uint64_t n_rows, const pe_heads *in, pe_act_block *q8,
                     uint32_t n_tokens) {
    const bool is_quantized = pe_dtype_find(weight->dtype)->acts == PE_ACTS_Q8;
    const uint64_t n_wanted = (uint64_t)pe_pool_n_threads(ops->pool) * CHUNKS_PER_THREAD;
    const uint64_t share = weight->n_stacked * n_rows / n_wanted / LEAST_ROWS * LEAST_ROWS;
    heads_job job = {.ops = ops,
                     .out = out,
                     .weight = weight,
                     .first_row = first_row,
                     .n_rows = n_rows,
                     .in = in,
                     .q8 = is_quantized ? q8 : NULL,
                     .n_tokens = n_tokens,
                     .chunk = PE_MAX(PE_MIN(share, CHUNK), LEAST_ROWS)};
    job.n_chunks = (uint32_t)pe_ceil_div(n_rows, job.chunk);
    if (is_quantized) {
        pe_pool_run(ops->pool, quantize_token, &job, n_tokens);
    }
    pe_pool_run(ops->pool, rows_chunk, &job, (uint32_t)weight->n_stacked * job.n_chunks);
}

/* ---- columns ---------------------------------------------------------- */

static void columns_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const heads_job *job = arg;
    const pe_weight *w = job->weight;
    const pe_dtype_info *info = &pe_dtype_find(w->dtype)->info;
    const uint64_t head = i_chunk / job->n_chunks;
    const uint64_t begin = i_chunk % job->n_chunks * job->chunk;
    const uint64_t n = PE_MIN(job->chunk, w->n_cols - begin);
    const uint8_t *row = (const uint8_t *)w->data + head * w->n_rows * w->row_bytes +
                         begin / info->block_weights * info->block_bytes;
    for (uint32_t t = 0; t < job->n_tokens; t++) {
        memset(head_at(job, job->out, t, head) + begin, 0, n * sizeof(float));
    }
    for (uint64_t r = 0; r < job->n_rows; r++, row += w->row_bytes) {
        float weights[CHUNK];
        job->unpack(weights, w->dtype, row, n);
        for (uint32_t t = 0; t < job->n_tokens; t++) {
            const float x = head_at(job, job->in, t, head)[r];
            float *sums = head_at(job, job->out, t, head) + begin;
            for (uint64_t i = 0; i < n; i++) {
                sums[i] = sums[i] + x * weights[i];
            }
        }
    }
}

void pe_heads_matmul_transposed(const pe_ops *ops, const pe_heads *out, const pe_weight *weight,
                                pe_unpack_fn unpack, uint64_t n_rows, const pe_heads *in,
                                uint32_t n_tokens) {
    heads_job job = {.ops = ops,
                     .out = out,
                     .weight = weight,
                     .n_rows = n_rows,
                     .in = in,
                     .unpack = unpack,
                     .n_tokens = n_tokens,
                     .chunk = CHUNK};
    job.n_chunks = (uint32_t)pe_ceil_div(weight->n_cols, job.chunk);
    pe_pool_run(ops->pool, columns_chunk, &job, (uint32_t)weight->n_stacked * job.n_chunks);
}
