#include "pe_quantizer.h"

#include "pe_cores.h"
#include "pe_cpu.h"
#include "pe_mem.h"

#define MAX_THREADS 1024u

pe_status pe_quantizer_new(pe_quantizer **out_quantizer, uint32_t n_threads, uint32_t isa,
                           pe_error *err) {
    *out_quantizer = NULL;
    if (n_threads > MAX_THREADS || !pe_cpu_has_isa((pe_isa)isa)) {
        return pe_fail(err, PE_ERR_ARG,
                       "quantizer: expected up to %u threads and an instruction set of this"
                       " processor, found %u and %u",
                       MAX_THREADS, n_threads, isa);
    }
    if (n_threads == 0) {
        pe_cores cores;
        pe_cores_find(&cores, "", NULL);
        n_threads = PE_MIN(cores.n_threads, MAX_THREADS);
    }
    pe_quantizer *q = pe_mem_zalloc(1, sizeof *q);
    if (q == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "quantizer: no memory for it");
    }
    pe_kernels_init(&q->kernels, (pe_isa)isa);
    const pe_status status = pe_pool_new(&q->pool, n_threads, err);
    if (status != PE_OK) {
        pe_mem_free(q);
        return status;
    }
    *out_quantizer = q;
    return PE_OK;
}

void pe_quantizer_free(pe_quantizer *quantizer) {
    if (quantizer != NULL) {
        pe_pool_free(quantizer->pool);
        pe_mem_free(quantizer);
    }
}

/* ---- products ---------------------------------------------------------- */

typedef struct product_job {
    const pe_quantizer *q;
    float *out;
    const float *a;
    const float *b;
    uint64_t n_a;
    uint64_t n_b;
    uint64_t n;
} product_job;

static void product_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const product_job *job = arg;
    const uint64_t first = (uint64_t)i_chunk * PE_SOLVE_ROWS;
    const uint64_t n_a = PE_MIN(PE_SOLVE_ROWS, job->n_a - first);
    pe_dot_rows(job->q, job->out + first * job->n_b, job->n_b, job->b, job->n, job->n_b,
                job->a + first * job->n, job->n, n_a, job->n);
}

void pe_quantizer_product(pe_quantizer *q, float *out, const float *a, const float *b, uint64_t n_a,
                          uint64_t n_b, uint64_t n) {
    product_job job = {.q = q, .out = out, .a = a, .b = b, .n_a = n_a, .n_b = n_b, .n = n};
    pe_pool_run(q->pool, product_chunk, &job, (uint32_t)pe_ceil_div(n_a, PE_SOLVE_ROWS));
}
