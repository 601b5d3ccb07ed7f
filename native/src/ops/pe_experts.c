#include "pe_experts.h"

#include <math.h>

#include "pe_math.h"
#include "pe_product.h"
#include "pe_tap.h"

/* ---- routing ---------------------------------------------------------- */

static bool is_among(const uint32_t *experts, uint32_t n, uint32_t expert) {
    for (uint32_t i = 0; i < n; i++) {
        if (experts[i] == expert) {
            return true;
        }
    }
    return false;
}

static double sigmoid(float x) {
    return 1.0 / (1.0 + pe_exp(-(double)x));
}

static float max_of(const float *x, uint32_t n) {
    float max = x[0];
    for (uint32_t i = 1; i < n; i++) {
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

/* The sum of e^(x - max) over all experts, or over those in the list. */
static double sum_exp(const float *x, float max, const uint32_t *list, uint32_t n) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        sum += pe_exp((double)x[list != NULL ? list[i] : i] - (double)max);
    }
    return sum;
}

static void score(float *scores, const float *logits, uint32_t n, const pe_routing *routing) {
    const bool is_plain = !routing->is_sigmoid && routing->choice == NULL;
    const float max = max_of(logits, n);
    const double sum = is_plain || routing->is_sigmoid ? 1.0 : sum_exp(logits, max, NULL, n);
    for (uint32_t e = 0; e < n; e++) {
        scores[e] = logits[e];
        if (!is_plain) {
            scores[e] =
                (float)(routing->is_sigmoid ? sigmoid(logits[e])
                                            : pe_exp((double)logits[e] - (double)max) / sum);
            scores[e] += routing->choice != NULL ? routing->choice[e] : 0.0f;
        }
    }
}

static float group_score(const float *scores, uint32_t n, bool adds_two) {
    float best = -INFINITY;
    float second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        const bool wins = scores[i] > best;
        second = wins ? best : scores[i] > second ? scores[i] : second;
        best = wins ? scores[i] : best;
    }
    return adds_two && n > 1 ? best + second : best;
}

/* Leaves only the best groups to choose from. A group that is out no longer counts as better
 * than others; those that are in do, and they are enough to keep the rest out. */
static void mask_groups(float *scores, uint32_t n_experts, const pe_routing *routing) {
    const uint32_t n = n_experts / routing->n_groups;
    for (uint32_t g = 0; g < routing->n_groups; g++) {
        const float own = group_score(scores + (uint64_t)g * n, n, routing->is_sigmoid);
        uint32_t n_better = 0;
        for (uint32_t other = 0; other < routing->n_groups; other++) {
            const float its = group_score(scores + (uint64_t)other * n, n, routing->is_sigmoid);
            n_better += its > own || (other < g && !(its < own));
        }
        if (n_better >= routing->n_groups_used) {
            for (uint32_t i = g * n; i < (g + 1) * n; i++) {
                scores[i] = -INFINITY;
            }
        }
    }
}
static void choose(uint32_t *chosen, uint32_t n_used, const float *scores, uint32_t n_experts) {
    for (uint32_t i = 0; i < n_used; i++) {
        uint32_t best = n_experts;
        for (uint32_t e = 0; e < n_experts; e++) {
            // NaN wins against nothing but may stand first: its weights are NaN, and so the
            // logits, which is an error.
            const bool wins = best == n_experts || scores[e] > scores[best];
            best = wins && !is_among(chosen, i, e) ? e : best;
        }
        chosen[i] = best;
    }
}

void pe_routes_choose(pe_routes *routes, uint32_t token, const float *logits,
                      const pe_routing *routing) {
    const uint32_t n_experts = routes->n_experts;
    uint32_t *chosen = routes->experts + (uint64_t)token * routes->n_used;
    float *weights = routes->weights + (uint64_t)token * routes->n_used;
    float *scores = routes->scores + (uint64_t)token * n_experts;
    score(scores, logits, n_experts, routing);
    if (routing->n_groups > 1) {
        mask_groups(scores, n_experts, routing);
    }
    choose(chosen, routes->n_used, scores, n_experts);
    const float max = max_of(logits, n_experts);
    double sum = 1.0;
    if (!routing->is_sigmoid) {
        sum = routing->is_normed ? sum_exp(logits, max, chosen, routes->n_used)
                                 : sum_exp(logits, max, NULL, n_experts);
    } else if (routing->is_normed) {
        sum = 0.0;
        for (uint32_t i = 0; i < routes->n_used; i++) {
            sum += sigmoid(logits[chosen[i]]);
        }
    }
    for (uint32_t i = 0; i < routes->n_used; i++) {
        const float logit = logits[chosen[i]];
        const double weight =
            routing->is_sigmoid ? sigmoid(logit) : pe_exp((double)logit - (double)max);
        weights[i] = (float)(weight / sum) * routing->scale;
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
    pe_taps_see_stacked(ops->taps, products, n_products, acts, routes->firsts, routes->n_experts);
    pe_product_quantize(ops, products, n_products, acts);
    pe_product_cut(&job.cut, ops, products, n_products, routes->n_groups);
    pe_pool_run(ops->pool, experts_chunk, &job, routes->n_groups * job.cut.n_chunks);
}
