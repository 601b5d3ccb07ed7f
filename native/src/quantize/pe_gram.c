/* Sums of products of inputs: second moments, and moments of one input with another. */
#include "pe_mem.h"
#include "pe_quantizer.h"

/* Rows are added up in runs of so many by a kernel, the runs by single additions. */
#define RUN_ROWS 512u
#define TILE 64u

typedef struct gram_job {
    const pe_quantizer *q;
    float *sums;
    const float *y;
    const float *x;
    float *yt;  // [n_y][RUN_ROWS], a run, columns as rows
    float *xt;
    uint64_t n_run;
    uint64_t n_y;
    uint64_t n_x;
    bool is_symmetric;
} gram_job;

static void transpose(float *out, const float *in, uint64_t n_run, uint64_t n, uint64_t first) {
    const uint64_t end = PE_MIN(first + TILE, n);
    for (uint64_t row = 0; row < n_run; row++) {
        for (uint64_t i = first; i < end; i++) {
            out[i * RUN_ROWS + row] = in[row * n + i];
        }
    }
}

static void transpose_x(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const gram_job *job = arg;
    transpose(job->xt, job->x, job->n_run, job->n_x, (uint64_t)i_chunk * TILE);
}

static void transpose_y(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const gram_job *job = arg;
    transpose(job->yt, job->y, job->n_run, job->n_y, (uint64_t)i_chunk * TILE);
}

static void add_tile(const gram_job *job, uint64_t y0, uint64_t x0) {
    float tile[TILE * TILE];
    const uint64_t n_y = PE_MIN(TILE, job->n_y - y0);
    const uint64_t n_x = PE_MIN(TILE, job->n_x - x0);
    pe_dot_rows(job->q, tile, TILE, job->xt + x0 * RUN_ROWS, RUN_ROWS, n_x, job->yt + y0 * RUN_ROWS,
                RUN_ROWS, n_y, job->n_run);
    for (uint64_t i = 0; i < n_y; i++) {
        for (uint64_t j = 0; j < n_x; j++) {
            job->sums[(y0 + i) * job->n_x + x0 + j] += tile[i * TILE + j];
        }
    }
    for (uint64_t i = 0; job->is_symmetric && x0 < y0 && i < n_y; i++) {
        for (uint64_t j = 0; j < n_x; j++) {
            job->sums[(x0 + j) * job->n_x + y0 + i] += tile[i * TILE + j];
        }
    }
}

/* A chunk is a row of tiles; of a symmetric matrix up to the diagonal, the longest first. */
static void add_tiles(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const gram_job *job = arg;
    const uint64_t n_tiles = pe_ceil_div(job->n_y, TILE);
    const uint64_t y0 = (n_tiles - 1 - i_chunk) * TILE;
    for (uint64_t x0 = 0; x0 < job->n_x && !(job->is_symmetric && x0 > y0); x0 += TILE) {
        add_tile(job, y0, x0);
    }
}

pe_status pe_quantizer_gram(pe_quantizer *q, float *sums, const float *y, const float *x,
                            uint64_t n_rows, uint64_t n_y, uint64_t n_x, pe_error *err) {
    gram_job job = {.q = q, .sums = sums, .n_y = n_y, .n_x = n_x, .is_symmetric = y == x};
    job.xt = pe_mem_alloc(n_x * RUN_ROWS, sizeof *job.xt);
    job.yt = job.is_symmetric ? job.xt : pe_mem_alloc(n_y * RUN_ROWS, sizeof *job.yt);
    pe_status status = PE_OK;
    if (job.xt == NULL || job.yt == NULL) {
        status = pe_fail(err, PE_ERR_NOMEM, "moments: no memory for runs of %u inputs", RUN_ROWS);
        n_rows = 0;
    }
    for (uint64_t row = 0; row < n_rows; row += RUN_ROWS) {
        job.n_run = PE_MIN(RUN_ROWS, n_rows - row);
        job.x = x + row * n_x;
        job.y = y + row * n_y;
        pe_pool_run(q->pool, transpose_x, &job, (uint32_t)pe_ceil_div(n_x, TILE));
        if (!job.is_symmetric) {
            pe_pool_run(q->pool, transpose_y, &job, (uint32_t)pe_ceil_div(n_y, TILE));
        }
        pe_pool_run(q->pool, add_tiles, &job, (uint32_t)pe_ceil_div(n_y, TILE));
    }
    if (!job.is_symmetric) {
        pe_mem_free(job.yt);
    }
    pe_mem_free(job.xt);
    return status;
}
