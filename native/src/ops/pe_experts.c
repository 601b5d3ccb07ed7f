#include "pe_experts.h"

#include "pe_math.h"
#include "pe_product.h"

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
    pe_cut cut;  // of one expert
} experts_job;

static void experts_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const experts_job *job = arg;
    const uint32_t expert = job->routes->groups[i_chunk / job->cut.n_chunks];
    const uint32_t first = job->routes->firsts[expert];
    const pe_columns columns = {first, job->routes->firsts[expert + 1] - first};
    pe_product_run_chunk(job->ops, job->products, &job->cut, i_chunk % job->cut.n_chunks, expert,
                         job->acts, columns);
}

void pe_experts_matmul(const pe_ops *ops, const pe_product *products, size_t n_products,
                       const pe_routes *routes, pe_acts *acts) {
    experts_job job = {.ops = ops, .products = products, .routes = routes, .acts = acts};
    pe_product_quantize(ops, products, n_products, acts);
    pe_product_cut(&job.cut, ops, products, n_products, routes->n_groups);
    pe_pool_run(ops->pool, experts_chunk, &job, routes->n_groups * job.cut.n_chunks);
}
