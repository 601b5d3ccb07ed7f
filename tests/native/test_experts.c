/* Routing to experts against its rule, their products against pe_matmul's. */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_experts.h"

#define N_TOKENS 23
#define N_EXPERTS 7
#define N_USED 3
#define N_ROWS 40
#define N_COLS 64

static uint32_t experts[N_TOKENS * N_USED];
static float weights[N_TOKENS * N_USED];
static float scores[N_TOKENS * N_EXPERTS];
static uint32_t rows[N_TOKENS * N_USED];
static uint32_t tokens[N_TOKENS * N_USED];
static uint32_t firsts[N_EXPERTS + 1];
static uint32_t groups[N_EXPERTS];

static pe_routes make_routes(uint32_t n_tokens) {
    return (pe_routes){.n_tokens = n_tokens,
                       .n_used = N_USED,
                       .n_experts = N_EXPERTS,
                       .scores = scores,
                       .experts = experts,
                       .weights = weights,
                       .rows = rows,
                       .tokens = tokens,
                       .firsts = firsts,
                       .groups = groups};
}

static void choose_all(pe_routes *routes, const float *logits, bool is_normed) {
    for (uint32_t token = 0; token < routes->n_tokens; token++) {
        const pe_routing routing = {.is_normed = is_normed, .scale = 1.0f};
        pe_routes_choose(routes, token, logits + token * N_EXPERTS, &routing);
    }
    pe_routes_sort(routes);
}

/* Experts of higher logit, or of the same and in front. */
static uint32_t n_better(const float *logits, uint32_t expert) {
    uint32_t n = 0;
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        n += logits[e] > logits[expert] || (e < expert && !(logits[e] < logits[expert]));
    }
    return n;
}

static void check_choice(const float *logits, uint32_t token, bool is_normed) {
    double sum = 0.0;
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        sum += !is_normed || n_better(logits, e) < N_USED ? exp((double)logits[e]) : 0.0;
    }
    for (uint32_t i = 0; i < N_USED; i++) {
        const uint32_t at = token * N_USED + i;
        CHECK_U64(n_better(logits, experts[at]), i);
        const double share = exp((double)logits[experts[at]]) / sum;
        CHECK(fabs((double)weights[at] - share) <= 0x1p-24 * share, "weight %g, expected %g",
              (double)weights[at], share);
        CHECK_U64(tokens[rows[at]], token);
        CHECK(rows[at] >= firsts[experts[at]] && rows[at] < firsts[experts[at] + 1],
              "row %u of expert %u", rows[at], experts[at]);
    }
}

static void choices(void) {
    for (uint32_t round = 0; round < 200; round++) {
        float logits[N_TOKENS * N_EXPERTS];
        for (size_t i = 0; i < N_TOKENS * N_EXPERTS; i++) {
            // Every other round has many equals.
            logits[i] = round % 2 == 0 ? rng_f32(-5.0f, 5.0f) : (float)rng_below(3);
        }
        pe_routes routes = make_routes(1 + round % N_TOKENS);
        choose_all(&routes, logits, round % 3 != 0);
        for (uint32_t token = 0; token < routes.n_tokens; token++) {
            check_choice(logits + token * N_EXPERTS, token, round % 3 != 0);
        }
        uint32_t n_groups = 0;
        for (uint32_t e = 0; e < N_EXPERTS; e++) {
            if (firsts[e + 1] > firsts[e]) {
                CHECK_U64(groups[n_groups], e);
                n_groups++;
            }
        }
        CHECK_U64(routes.n_groups, n_groups);
        CHECK_U64(firsts[N_EXPERTS], routes.n_tokens * N_USED);
    }
}

/* Groups of four experts, of which the best are chosen from, in double and by counting. */
#define N_GROUPED 12u
#define N_GROUPS 3u

static double best_of(const double *x, uint32_t n, uint32_t rank) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_better = 0;
        for (uint32_t j = 0; j < n; j++) {
            n_better += x[j] > x[i] || (j < i && !(x[j] < x[i]));
        }
        if (n_better == rank) {
            return x[i];
        }
    }
    return NAN;
}

static bool is_in(const double *chosen_by, uint32_t expert, uint32_t n_groups_used, bool adds_two) {
    const uint32_t n = N_GROUPED / N_GROUPS;
    double of_groups[N_GROUPS];
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        of_groups[g] = best_of(chosen_by + g * n, n, 0);
        of_groups[g] += adds_two ? best_of(chosen_by + g * n, n, 1) : 0.0;
    }
    return of_groups[expert / n] >= best_of(of_groups, N_GROUPS, n_groups_used - 1);
}

static void check_routing(const pe_routing *routing, const float *logits) {
    float all_scores[N_GROUPED];
    double own[N_GROUPED];
    double chosen_by[N_GROUPED];
    double total = 0.0;
    double sum = 0.0;
    pe_routes routes = make_routes(1);
    routes.n_experts = N_GROUPED;
    routes.scores = all_scores;
    pe_routes_choose(&routes, 0, logits, routing);
    for (uint32_t e = 0; e < N_GROUPED; e++) {
        own[e] = exp((double)logits[e]);
        total += own[e];
    }
    for (uint32_t e = 0; e < N_GROUPED; e++) {
        own[e] = routing->is_sigmoid ? own[e] / (1.0 + own[e]) : own[e] / total;
        chosen_by[e] = own[e] + (routing->choice != NULL ? (double)routing->choice[e] : 0.0);
    }
    double masked[N_GROUPED];
    for (uint32_t e = 0; e < N_GROUPED; e++) {
        const bool in = routing->n_groups == 0 ||
                        is_in(chosen_by, e, routing->n_groups_used, routing->is_sigmoid);
        masked[e] = in ? chosen_by[e] : -1e9;
    }
    for (uint32_t i = 0; i < N_USED; i++) {
        CHECK(masked[experts[i]] == best_of(masked, N_GROUPED, i), "choice %u: expert %u", i,
              experts[i]);
        sum += own[experts[i]];
    }
    for (uint32_t i = 0; i < N_USED; i++) {
        const double weight = own[experts[i]] / (routing->is_normed ? sum : 1.0) * 2.5;
        CHECK(fabs((double)weights[i] - weight) <= 0x1p-22 * weight, "weight %g, expected %g",
              (double)weights[i], weight);
    }
}

static void groups_and_sigmoids(void) {
    for (uint32_t round = 0; round < 400; round++) {
        float logits[N_GROUPED];
        float choice[N_GROUPED];
        for (uint32_t e = 0; e < N_GROUPED; e++) {
            logits[e] = rng_f32(-3.0f, 3.0f);
            choice[e] = rng_f32(-0.5f, 0.5f);
        }
        const pe_routing routing = {.is_sigmoid = round % 2 == 0,
                                    .is_normed = round / 2 % 2 == 0,
                                    .scale = 2.5f,
                                    .choice = round / 4 % 2 == 0 ? choice : NULL,
                                    .n_groups = round / 8 % 2 == 0 ? N_GROUPS : 0,
                                    .n_groups_used = 1 + round / 16 % N_GROUPS};
        check_routing(&routing, logits);
    }
}

/* NaN is chosen last, but something always is, and nothing twice. */
static void not_numbers(void) {
    float logits[N_EXPERTS] = {NAN, NAN, 1.0f, NAN, NAN, 2.0f, NAN};
    pe_routes routes = make_routes(1);
    choose_all(&routes, logits, true);
    for (uint32_t i = 0; i < N_USED; i++) {
        CHECK(experts[i] < N_EXPERTS, "expert %u", experts[i]);
        for (uint32_t j = 0; j < i; j++) {
            CHECK(experts[i] != experts[j], "expert %u twice", experts[i]);
        }
    }
    CHECK_U64(firsts[N_EXPERTS], N_USED);
}

static float matrices[N_EXPERTS][N_ROWS * N_COLS];
static float biases[N_EXPERTS][N_ROWS];
static float acts[N_TOKENS * N_USED][N_COLS];
static float out[N_TOKENS * N_USED][N_ROWS];
static pe_act_block q8[N_TOKENS * N_USED * N_COLS / PE_BLOCK];

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        x[i] = rng_f32(-1.0f, 1.0f);
    }
}

static void products(void) {
    pe_ops ops = {.pool = NULL};
    pe_kernels_init(&ops.kernels, PE_ISA_SCALAR);
    CHECK_OK(pe_pool_new(&ops.pool, 3, err));
    float logits[N_TOKENS * N_EXPERTS];
    fill(logits, PE_LEN(logits));
    for (size_t e = 0; e < N_EXPERTS; e++) {
        fill(matrices[e], N_ROWS * N_COLS);
        fill(biases[e], N_ROWS);
    }
    for (size_t row = 0; row < N_TOKENS * N_USED; row++) {
        fill(acts[row], N_COLS);
    }
    pe_routes routes = make_routes(N_TOKENS);
    choose_all(&routes, logits, true);
    pe_weight weight = {.data = matrices,
                        .n_rows = N_ROWS,
                        .n_cols = N_COLS,
                        .stack_rows = N_ROWS,
                        .row_bytes = N_COLS * sizeof(float),
                        .dtype = PE_DTYPE_F32};
    pe_weight bias = {.data = biases, .n_rows = 1, .n_cols = N_ROWS};
    const pe_product product = {
        .out = out[0], .out_stride = N_ROWS, .weight = &weight, .bias = &bias};
    pe_acts all = {.f32 = acts[0], .q8 = q8, .n_cols = N_TOKENS * N_USED, .n_k = N_COLS};
    pe_experts_matmul(&ops, &product, 1, &routes, &all);
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        for (uint32_t row = firsts[e]; row < firsts[e + 1]; row++) {
            float expected[N_ROWS];
            pe_weight one = weight;
            pe_weight one_bias = bias;
            one.data = matrices[e];
            one_bias.data = biases[e];
            const pe_product alone = {
                .out = expected, .out_stride = N_ROWS, .weight = &one, .bias = &one_bias};
            pe_acts column = {.f32 = acts[row], .q8 = q8, .n_cols = 1, .n_k = N_COLS};
            pe_matmul(&ops, &alone, 1, &column);
            CHECK_U64(first_difference(out[row], expected, N_ROWS), N_ROWS);
        }
    }
    pe_pool_free(ops.pool);
}

int main(void) {
    static const test_case tests[] = {TEST(choices), TEST(groups_and_sigmoids), TEST(not_numbers),
                                      TEST(products)};
    return run_tests(tests, PE_LEN(tests));
}
