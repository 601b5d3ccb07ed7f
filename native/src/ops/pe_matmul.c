/* Matrix products over a batch: runs of rows are dealt to threads. */
#include "pe_product.h"
#include "pe_tap.h"

typedef struct matmul_job {
    const pe_ops *ops;
    const pe_product *products;
    const pe_acts *acts;
    pe_cut cut;
} matmul_job;

/* Chunks are claimed in order, by threads more or less in turn: each thread gets a run of
 * neighbours, whose rows follow each other, so that what one has asked ahead for is its
 * own. */
static uint32_t dealt(const matmul_job *job, uint32_t i_claim) {
    const uint32_t n_threads = pe_pool_n_threads(job->ops->pool);
    const uint32_t run = job->cut.n_chunks / n_threads;
    return i_claim < run * n_threads ? i_claim % n_threads * run + i_claim / n_threads : i_claim;
}

static void matmul_chunk(void *arg, uint32_t i_claim, uint32_t i_thread) {
    (void)i_thread;
    const matmul_job *job = arg;
    pe_product_run_chunk(job->ops, job->products, &job->cut, dealt(job, i_claim), 0, job->acts,
                         (pe_columns){0, job->acts->n_cols});
}

void pe_matmul(const pe_ops *ops, const pe_product *products, size_t n_products, pe_acts *acts) {
    matmul_job job = {.ops = ops, .products = products, .acts = acts};
    pe_taps_see(ops->taps, products, n_products, acts);
    pe_product_quantize(ops, products, n_products, acts);
    pe_product_cut(&job.cut, ops, products, n_products, 1);
    pe_pool_run(ops->pool, matmul_chunk, &job, job.cut.n_chunks);
}
