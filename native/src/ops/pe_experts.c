#include "pe_experts.h"

#include "pe_math.h"

#define MAX_PRODUCTS 4

/* As in pe_matmul.c. */
#define TILE_ROWS 8u
#define MAX_CHUNK_ROWS 64u
#define CHUNKS_PER_THREAD 8u

/* ---- routing ---------------------------------------------------------- */

static bool is_among(const uint32_t *experts, uint32_t n, uint32_t expert) {
    for (uint32_t i = 0; i < n; i++) {
        if (experts[i] == expert) {
            return true;
        }
    }
    return false;
}

void pe_routes_choose(pe_routes *routes, uint32_t token, const float *logits, bool is_normed) {
    uint32_t *chosen = routes->experts + (uint64_t)token * routes->n_used;
    float *weights = routes->weights + (uint64_t)token * routes->n_used;
    for (uint32_t i = 0; i < routes->n_used; i++) {
        uint32_t best = routes->n_experts;
        for (uint32_t e = 0; e < routes->n_experts; e++) {
            // NaN wins against nothing but may stand first: its weights are NaN, and so the
            // logits, which is an error.
            const bool wins = best == routes->n_experts || logits[e] > logits[best];
            best = wins && !is_among(chosen, i, e) ? e : best;
        }
        chosen[i] = best;
    }
    const double max = (double)logits[chosen[0]];
    double sum = 0.0;
    for (uint32_t i = 0; i < (is_normed ? routes->n_used : routes->n_experts); i++) {
        sum += pe_exp((double)logits[is_normed ? chosen[i] : i] - max);
    }
    for (uint32_t i = 0; i < routes->n_used; i++) {
        weights[i] = (float)(pe_exp((double)logits[chosen[i]] - max) / sum);
    }
}

void pe_routes_sort(pe_routes *routes) {
    const uint32_t n_choices = routes->n_tokens * routes->n_used;
    memset(routes->firsts, 0, (routes->n_experts + 1) * sizeof *routes->firsts);
    for (uint32_t i = 0; i < n_choices; i++) {
        routes->firsts[routes->experts[i] + 1]++;
    }
    routes->n_groups = 0;
    for (uint32_t e = 0; e < routes->n_experts; e++) {
        if (routes->firsts[e + 1] > 0) {
            routes->groups[routes->n_groups++] = e;
        }
        routes->firsts[e + 1] += routes->firsts[e];
    }
    for (uint32_t i = 0; i < n_choices; i++) {
        const uint32_t row = routes->firsts[routes->experts[i]]++;
        routes->rows[i] = row;
        routes->tokens[row] = i / routes->n_used;
    }
    // Each first has moved to the next expert's.
    memmove(routes->firsts + 1, routes->firsts, routes->n_experts * sizeof *routes->firsts);
    routes->firsts[0] = 0;
}

/* ---- products --------------------------------------------------------- */

typedef struct experts_job {
    const pe_ops *ops;
    const pe_product *products;
    const pe_routes *routes;
    const pe_acts *acts;
    uint64_t chunk_rows;
    uint32_t first_chunk[MAX_PRODUCTS + 1];  // of each product within an expert
    uint32_t per_expert;                     // chunks
} experts_job;

static void quantize_row(void *arg, uint32_t i_row, uint32_t i_thread) {
    (void)i_thread;
    const experts_job *job = arg;
    const pe_acts *acts = job->acts;
    job->ops->kernels.quantize_acts(acts->q8 + i_row * (acts->n_k / PE_BLOCK),
                                    acts->f32 + i_row * acts->n_k, acts->n_k);
}

static void add_bias(const pe_product *product, float *out, uint32_t expert, uint64_t begin,
                     uint64_t n_rows, size_t n_cols) {
    const float *bias =
        (const float *)product->bias->data + expert * product->weight->n_rows + begin;
    for (size_t c = 0; c < n_cols; c++) {
        for (uint64_t r = 0; r < n_rows; r++) {
            out[c * product->out_stride + r] += bias[r];
        }
    }
}

static void experts_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const experts_job *job = arg;
    const pe_acts *acts = job->acts;
    const uint32_t expert = job->routes->groups[i_chunk / job->per_expert];
    const uint32_t chunk = i_chunk % job->per_expert;
    size_t i = 0;
    while (chunk >= job->first_chunk[i + 1]) {
        i++;
    }
    const pe_product *product = &job->products[i];
    const pe_weight *weight = product->weight;
    const uint64_t begin = (chunk - job->first_chunk[i]) * job->chunk_rows;
    const uint64_t n_rows = PE_MIN(job->chunk_rows, weight->n_rows - begin);
    const uint32_t first = job->routes->firsts[expert];
    const size_t n_cols = job->routes->firsts[expert + 1] - first;
    const bool q8 = pe_dtype_find(weight->dtype)->acts == PE_ACTS_Q8;
    const size_t act_bytes =
        q8 ? acts->n_k / PE_BLOCK * sizeof(pe_act_block) : acts->n_k * sizeof(float);
    const uint8_t *columns = q8 ? (const uint8_t *)acts->q8 : (const uint8_t *)acts->f32;
    const uint64_t stack_row = expert * weight->n_rows + begin;
    float *out = product->out + first * product->out_stride + begin;
    const pe_kernels *kernels = &job->ops->kernels;
    (n_cols == 1 ? kernels->matvec : kernels->matmul)[weight->dtype](
        out, product->out_stride, (const uint8_t *)weight->data + stack_row * weight->row_bytes,
        weight->row_bytes, n_rows, columns + first * act_bytes, act_bytes, n_cols, acts->n_k);
    if (product->bias != NULL && product->bias->data != NULL) {
        add_bias(product, out, expert, begin, n_rows, n_cols);
    }
}

void pe_experts_matmul(const pe_ops *ops, const pe_product *products, size_t n_products,
                       const pe_routes *routes, pe_acts *acts) {
    experts_job job = {.ops = ops, .products = products, .routes = routes, .acts = acts};
    uint64_t n_rows = 0;
    bool needs_q8 = false;
    for (size_t i = 0; i < n_products; i++) {
        n_rows += products[i].weight->n_rows * routes->n_groups;
        needs_q8 |= pe_dtype_find(products[i].weight->dtype)->acts == PE_ACTS_Q8;
    }
    if (needs_q8 && !acts->is_quantized) {
        pe_pool_run(ops->pool, quantize_row, &job, (uint32_t)acts->n_cols);
        acts->is_quantized = true;
    }
    const uint64_t share = n_rows / ((uint64_t)pe_pool_n_threads(ops->pool) * CHUNKS_PER_THREAD);
    job.chunk_rows = PE_MAX(PE_MIN(share / TILE_ROWS * TILE_ROWS, MAX_CHUNK_ROWS), TILE_ROWS);
    for (size_t i = 0; i < n_products; i++) {
        job.first_chunk[i + 1] =
            job.first_chunk[i] + (uint32_t)pe_ceil_div(products[i].weight->n_rows, job.chunk_rows);
    }
    job.per_expert = job.first_chunk[n_products];
    pe_pool_run(ops->pool, experts_chunk, &job, routes->n_groups * job.per_expert);
}
