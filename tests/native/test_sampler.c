/* Picking tokens: each step against a brute-force computation of its definition. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "pe_base.h"

#define MAX_VOCAB 300

/* One rounding of a float, and a hair. */
#define EPS 0x1.01p-24

static pe_sampler_params plain(float temperature, uint64_t seed) {
    return (pe_sampler_params){.struct_bytes = sizeof(pe_sampler_params),
                               .temperature = temperature,
                               .top_p = 1.0f,
                               .repeat_penalty = 1.0f,
                               .seed = seed};
}

static pe_sampler *new_sampler(pe_sampler_params params) {
    pe_sampler *sampler = NULL;
    CHECK_OK(pe_sampler_new(&sampler, &params, NULL, NULL, 0, err));
    return sampler;
}

static uint32_t pick(pe_sampler *sampler, const float *logits, uint32_t n_vocab) {
    uint32_t token = UINT32_MAX;
    CHECK_OK(pe_sampler_pick(sampler, &token, logits, n_vocab, err));
    return token;
}

/* ---- greedy ----------------------------------------------------------- */

static void greedy(void) {
    pe_sampler *sampler = new_sampler(plain(0.0f, 1));
    const uint64_t state = pe_sampler_state(sampler);
    const float ties[] = {1.0f, 3.0f, -1.0f, 3.0f, 3.0f, 2.0f};
    CHECK_U64(pick(sampler, ties, 6), 1);
    CHECK_U64(pick(sampler, ties + 2, 4), 1);
    const float low[] = {-5.0f, -4.0f, -4.0f};
    CHECK_U64(pick(sampler, low, 3), 1);
    CHECK_U64(pick(sampler, low, 1), 0);
    const float zeros[] = {-0.0f, 0.0f};
    CHECK_U64(pick(sampler, zeros, 2), 0);  // equal, so the lower id
    for (int round = 0; round < 500; round++) {
        float logits[MAX_VOCAB];
        const uint32_t n = 1 + rng_below(MAX_VOCAB);
        uint32_t best = 0;
        for (uint32_t i = 0; i < n; i++) {
            logits[i] = (float)rng_below(50);
            best = logits[i] > logits[best] ? i : best;
        }
        CHECK_U64(pick(sampler, logits, n), best);
    }
    CHECK_U64(pe_sampler_state(sampler), state);  // no draw is spent
    pe_sampler_free(sampler);
}

/* ---- which tokens may come -------------------------------------------- */

/* Whether i comes before j: larger logit, lower id on a tie. */
static bool before(const float *logits, uint32_t i, uint32_t j) {
    return logits[i] > logits[j] || (logits[i] == logits[j] && i < j);
}

/* Marks the tokens that the definitions of top_k, top_p and min_p leave, and those
 * so near a limit that rounding may decide either way. */
static void brute_force(const pe_sampler_params *p, const float *logits, uint32_t n, bool *kept,
                        bool *doubtful) {
    double total = 0.0;
    double largest = 0.0;
    double weight[MAX_VOCAB];  // 0 for what top_k removes
    for (uint32_t i = 0; i < n; i++) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < n; j++) {
            rank += before(logits, j, i);
        }
        weight[i] = p->top_k == 0 || rank < p->top_k ? exp((double)logits[i]) : 0.0;
        total += weight[i];
        largest = fmax(largest, weight[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        double mass_before = 0.0;
        for (uint32_t j = 0; j < n; j++) {
            mass_before += before(logits, j, i) ? weight[j] / total : 0.0;
        }
        const double share = weight[i] / largest;
        kept[i] = weight[i] > 0.0 && mass_before < (double)p->top_p && share >= (double)p->min_p;
        doubtful[i] = weight[i] > 0.0 && (fabs(mass_before - (double)p->top_p) < 1e-6 ||
                                          fabs(share - (double)p->min_p) < 1e-6);
    }
}

static void truncation(void) {
    for (uint32_t round = 0; round < 300; round++) {
        const uint32_t n = 1 + rng_below(30);
        float logits[30];
        bool kept[30];
        bool doubtful[30];
        bool seen[30] = {false};
        uint32_t n_kept = 0;
        pe_sampler_params params = plain(3.0f, rng_u64());  // flat: every kept token shows up
        for (uint32_t i = 0; i < n; i++) {
            logits[i] = round % 2 == 0 ? rng_f32(-3.0f, 3.0f) : (float)rng_below(4);
        }
        params.top_k = round % 3 == 0 ? 0 : 1 + rng_below(n + 3);
        params.top_p = round % 5 < 2 ? 1.0f : rng_f32(0.05f, 0.99f);
        params.min_p = round % 7 < 3 ? 0.0f : rng_f32(0.0f, 1.0f);
        brute_force(&params, logits, n, kept, doubtful);
        for (uint32_t i = 0; i < n; i++) {
            n_kept += kept[i];
        }
        pe_sampler *sampler = new_sampler(params);
        for (uint32_t i = 0; i < 60 * n_kept + 20; i++) {
            const uint32_t token = pick(sampler, logits, n);
            CHECK(token < n && (kept[token] || doubtful[token]),
                  "token %u of %u with top_k %u top_p %g min_p %g", token, n, params.top_k,
                  (double)params.top_p, (double)params.min_p);
            seen[token < n ? token : 0] = true;
        }
        for (uint32_t i = 0; i < n; i++) {
            CHECK(!kept[i] || seen[i] || doubtful[i] || n_kept > 20, "token %u never came", i);
        }
        pe_sampler_free(sampler);
    }
}

/* ---- how often -------------------------------------------------------- */

/* Frequencies follow the softmax at the temperature. With 7 degrees of freedom
 * chi-square exceeds 40 about once in a million seeds. */
static void distribution(void) {
    static const float temperatures[] = {0.3f, 1.0f, 2.5f};
    const float logits[8] = {0.0f, 1.0f, -1.0f, 0.5f, 0.5f, -0.3f, 0.9f, -0.5f};
    for (size_t t = 0; t < PE_LEN(temperatures); t++) {
        enum { N_DRAWS = 20000 };
        pe_sampler *sampler = new_sampler(plain(temperatures[t], rng_u64()));
        double counts[8] = {0};
        double sum = 0.0;
        for (int i = 0; i < N_DRAWS; i++) {
            counts[pick(sampler, logits, 8) & 7u] += 1.0;
        }
        for (int i = 0; i < 8; i++) {
            sum += exp((double)logits[i] / (double)temperatures[t]);
        }
        double chi_square = 0.0;
        for (int i = 0; i < 8; i++) {
            const double expected =
                N_DRAWS * exp((double)logits[i] / (double)temperatures[t]) / sum;
            chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
        }
        CHECK(chi_square < 40.0, "temperature %g: %g", (double)temperatures[t], chi_square);
        pe_sampler_free(sampler);
    }
}

static void replay(void) {
    float logits[50];
    uint32_t picks[200];
    for (uint32_t i = 0; i < 50; i++) {
        logits[i] = rng_f32(-1.0f, 1.0f);
    }
    pe_sampler *a = new_sampler(plain(1.0f, 99));
    pe_sampler *b = new_sampler(plain(1.0f, 99));
    pe_sampler *c = new_sampler(plain(1.0f, 100));
    uint64_t middle = 0;
    uint32_t n_other = 0;
    for (uint32_t i = 0; i < 200; i++) {
        middle = i == 100 ? pe_sampler_state(a) : middle;
        picks[i] = pick(a, logits, 50);
        CHECK_U64(pick(b, logits, 50), picks[i]);
        n_other += pick(c, logits, 50) != picks[i];
    }
    CHECK(n_other > 150, "seed 100 differs %u times", n_other);
    pe_sampler_set_state(b, middle);
    for (uint32_t i = 100; i < 200; i++) {
        CHECK_U64(pick(b, logits, 50), picks[i]);
    }
    pe_sampler_free(a);
    pe_sampler_free(b);
    pe_sampler_free(c);
}

/* ---- bias and penalties ----------------------------------------------- */

static void bias(void) {
    const float logits[4] = {3.0f, 2.0f, 1.0f, 0.0f};
    const pe_sampler_params params = plain(0.0f, 1);
    const uint32_t tokens[4] = {0, 2, 1, 3};
    const float values[4] = {-INFINITY, 5.0f, 0.5f, -INFINITY};
    pe_sampler *sampler = NULL;
    CHECK_OK(pe_sampler_new(&sampler, &params, tokens, values, 2, err));
    CHECK_U64(pick(sampler, logits, 4), 2);
    uint32_t token;
    CHECK_FAILS(pe_sampler_pick(sampler, &token, logits, 2, err), PE_ERR_ARG, "below 2, found 2");
    pe_sampler_free(sampler);
    const pe_sampler_params warm = plain(50.0f, 1);
    CHECK_OK(pe_sampler_new(&sampler, &warm, tokens, values, 4, err));
    for (int i = 0; i < 500; i++) {
        token = pick(sampler, logits, 4);
        CHECK(token == 1 || token == 2, "banned token %u came", token);
    }
    pe_sampler_free(sampler);
    const float force[1] = {INFINITY};
    CHECK_OK(pe_sampler_new(&sampler, &warm, tokens + 3, force, 1, err));
    CHECK_U64(pick(sampler, logits, 4), 3);
    pe_sampler_free(sampler);
    const float ban[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    CHECK_OK(pe_sampler_new(&sampler, &params, tokens, ban, 4, err));
    CHECK_FAILS(pe_sampler_pick(sampler, &token, logits, 4, err), PE_ERR_ARG, "all 4 banned");
    pe_sampler_free(sampler);
    const float nan[1] = {NAN};
    CHECK_FAILS(pe_sampler_new(&sampler, &params, tokens + 1, nan, 1, err), PE_ERR_ARG, "token 2");
    CHECK(sampler == NULL, "left by a failure");
    const uint32_t twice[3] = {1, 2, 1};
    const float both[3] = {INFINITY, 0.0f, -INFINITY};
    CHECK_FAILS(pe_sampler_new(&sampler, &params, twice, both, 3, err), PE_ERR_ARG,
                "token once, found 1 twice");
    CHECK(sampler == NULL, "left by a failure");
}

/* The greedy pick shows each token's penalised logit against a row of rivals. */
static void penalties(void) {
    for (int round = 0; round < 400; round++) {
        enum { N = 12, MAX_HISTORY = 20 };
        float logits[N];
        uint32_t history[MAX_HISTORY];
        pe_sampler_params params = plain(0.0f, 1);
        params.repeat_penalty = round % 2 == 0 ? 1.0f : rng_f32(0.5f, 2.0f);
        params.presence_penalty = round % 3 == 0 ? 0.0f : rng_f32(-1.0f, 1.0f);
        params.frequency_penalty = round % 5 == 0 ? 0.0f : rng_f32(-1.0f, 1.0f);
        params.penalty_window = rng_below(10);
        pe_sampler *sampler = new_sampler(params);
        const uint32_t n_history = rng_below(MAX_HISTORY + 1);
        for (uint32_t i = 0; i < n_history; i++) {
            history[i] = rng_below(N + 2);  // some beyond the vocabulary
            pe_sampler_accept(sampler, history[i]);
        }
        for (uint32_t i = 0; i < N; i++) {
            logits[i] = rng_f32(-2.0f, 2.0f);
        }
        const uint32_t n_seen = PE_MIN(n_history, params.penalty_window);
        double best = (double)-INFINITY;
        double second = best;
        uint32_t expected = 0;
        for (uint32_t i = 0; i < N; i++) {
            uint32_t count = 0;
            for (uint32_t j = n_history - n_seen; j < n_history; j++) {
                count += history[j] == i;
            }
            double logit = (double)logits[i];
            if (count > 0) {
                const double r = (double)params.repeat_penalty;
                logit = logit > 0.0 ? logit / r : logit * r;
                logit -= (double)params.presence_penalty;
                logit -= (double)params.frequency_penalty * count;
            }
            second = fmax(second, fmin(logit, best));
            expected = logit > best ? i : expected;
            best = fmax(best, logit);
        }
        const uint32_t found = pick(sampler, logits, N);
        CHECK(found == expected || best - second < 1e-5, "found %u instead of %u", found, expected);
        pe_sampler_free(sampler);
    }
}

/* ---- refusals --------------------------------------------------------- */

static void check_refused(pe_sampler_params params, const char *fragment) {
    pe_sampler *sampler = NULL;
    CHECK_FAILS(pe_sampler_new(&sampler, &params, NULL, NULL, 0, err), PE_ERR_ARG, fragment);
    CHECK(sampler == NULL, "left by a failure");
}

#define REFUSED(field, value, fragment)                                                            \
    do {                                                                                           \
        pe_sampler_params bad = plain(1.0f, 1);                                                    \
        bad.field = (value);                                                                       \
        check_refused(bad, fragment);                                                              \
    } while (0)

static void refusals(void) {
    REFUSED(struct_bytes, 4, "versions");
    REFUSED(temperature, -0.1f, "temperature: expected 0 or more");
    REFUSED(temperature, NAN, "temperature");
    REFUSED(temperature, INFINITY, "temperature");
    REFUSED(top_p, 0.0f, "top_p: expected above 0 and up to 1");
    REFUSED(top_p, 1.01f, "top_p");
    REFUSED(top_p, NAN, "top_p");
    REFUSED(min_p, -0.01f, "min_p: expected 0 to 1");
    REFUSED(min_p, 1.5f, "min_p");
    REFUSED(repeat_penalty, 0.0f, "repeat_penalty: expected above 0");
    REFUSED(repeat_penalty, INFINITY, "repeat_penalty");
    REFUSED(presence_penalty, NAN, "presence_penalty");
    REFUSED(frequency_penalty, INFINITY, "frequency_penalty");
    REFUSED(penalty_window, 1048577u, "penalty_window");
    float logits[5] = {1.0f, 2.0f, 3.0f, NAN, 5.0f};
    uint32_t token = 77;
    pe_sampler *sampler = new_sampler(plain(1.0f, 1));
    CHECK_FAILS(pe_sampler_pick(sampler, &token, logits, 5, err), PE_ERR_NUMERIC, "token 3");
    logits[1] = -INFINITY;
    CHECK_FAILS(pe_sampler_pick(sampler, &token, logits, 5, err), PE_ERR_NUMERIC, "token 1");
    CHECK_FAILS(pe_sampler_pick(sampler, &token, logits, 0, err), PE_ERR_ARG, "none");
    CHECK_U64(token, 77);
    CHECK(pick(sampler, logits, 1) == 0, "a vocabulary of one");
    pe_sampler_free(sampler);
    pe_sampler_free(NULL);
}

/* ---- log-probabilities ------------------------------------------------ */

static void logprobs(void) {
    for (int round = 0; round < 300; round++) {
        const uint32_t n = 1 + rng_below(MAX_VOCAB);
        const uint32_t k = 1 + rng_below(n);
        const float width = round % 3 == 0 ? 1000.0f : 5.0f;
        float *logits = guarded(0, 2 * n * sizeof *logits);
        uint32_t *tokens = guarded(1, k * sizeof *tokens);
        float *top = guarded(2, k * sizeof *top);
        float found[2];
        for (uint32_t i = 0; i < 2 * n; i++) {
            logits[i] = round % 2 == 0 ? rng_f32(-width, width) : (float)rng_below(9);
        }
        const uint32_t targets[2] = {rng_below(n), rng_below(n)};
        CHECK_OK(pe_logprobs(found, logits, targets, 2, n, err));
        CHECK_OK(pe_top_logprobs(tokens, top, k, logits, n, err));
        double log_sum[2] = {0.0, 0.0};
        for (uint32_t row = 0; row < 2; row++) {
            const float *x = logits + row * n;
            double max = (double)x[0];
            double sum = 0.0;
            for (uint32_t i = 1; i < n; i++) {
                max = fmax(max, (double)x[i]);
            }
            for (uint32_t i = 0; i < n; i++) {
                sum += exp((double)x[i] - max);
            }
            log_sum[row] = log(sum) + max;
            const double expected = (double)x[targets[row]] - log_sum[row];
            CHECK(fabs((double)found[row] - expected) <=
                      1e-12 * (double)width + EPS * fabs(expected),
                  "found %.9g, in double %.9g", (double)found[row], expected);
        }
        for (uint32_t i = 0; i < k; i++) {
            uint32_t rank = 0;
            for (uint32_t j = 0; j < n; j++) {
                rank += before(logits, j, tokens[i]);
            }
            CHECK_U64(rank, i);
            const double expected = (double)logits[tokens[i]] - log_sum[0];
            CHECK(fabs((double)top[i] - expected) <= 1e-12 * (double)width + EPS * fabs(expected),
                  "found %.9g, in double %.9g", (double)top[i], expected);
        }
        check_guards();
    }
    float logits[4] = {1.0f, 2.0f, 3.0f, INFINITY};
    uint32_t token = 4;
    float out;
    CHECK_FAILS(pe_logprobs(&out, logits, &token, 1, 4, err), PE_ERR_ARG, "below 4, found 4");
    token = 0;
    CHECK_FAILS(pe_logprobs(&out, logits, &token, 1, 4, err), PE_ERR_NUMERIC, "token 3");
    CHECK_FAILS(pe_top_logprobs(&token, &out, 0, logits, 3, err), PE_ERR_ARG, "found 0");
    CHECK_FAILS(pe_top_logprobs(&token, &out, 4, logits, 3, err), PE_ERR_ARG, "1 to 3");
    CHECK_FAILS(pe_top_logprobs(&token, &out, 1, logits, 4, err), PE_ERR_NUMERIC, "token 3");
}

int main(void) {
    static const test_case tests[] = {
        TEST(greedy), TEST(truncation), TEST(distribution), TEST(replay),
        TEST(bias),   TEST(penalties),  TEST(refusals),     TEST(logprobs),
    };
    return run_tests(tests, PE_LEN(tests));
}
