/* From logits to a token: bias, penalties, truncation, temperature, one draw.
 *
 * All comparisons are by (logit, then lower id), a total order, and all sums run in
 * that order, so the same seed gives the same tokens on every machine.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "pe_math.h"
#include "pe_mem.h"
#include "pe_status.h"

typedef struct candidate {
    float logit;
    uint32_t token;
} candidate;

struct pe_sampler {
    pe_sampler_params params;
    uint64_t state;
    uint32_t *bias_tokens;
    float *bias_values;
    uint32_t n_biases;
    uint32_t *history;  // ring of the last penalty_window accepted tokens
    uint64_t n_accepted;
    candidate *candidates;  // room for n_room
    uint32_t *counts;       // beside candidates: of each token in history; zero between picks
    uint32_t n_room;
};

/* Penalty windows above this are refused: they are memory and time per token. */
#define MAX_PENALTY_WINDOW 1048576u

/* ---- parameters ------------------------------------------------------- */

static pe_status check(bool ok, const char *name, const char *expected, double found,
                       pe_error *err) {
    return ok ? PE_OK
              : pe_fail(err, PE_ERR_ARG, "%s: expected %s, found %g", name, expected, found);
}

static pe_status check_params(const pe_sampler_params *p, pe_error *err) {
    if (p->struct_bytes != sizeof *p) {
        return pe_fail(err, PE_ERR_ARG,
                       "pe_sampler_params: expected %zu bytes, found %u: caller and library are of"
                       " different versions",
                       sizeof *p, p->struct_bytes);
    }
    const float t = p->temperature;
    PE_TRY(check(t >= 0.0f && pe_f32_is_finite(t), "temperature", "0 or more", (double)t, err));
    PE_TRY(check(p->top_p > 0.0f && p->top_p <= 1.0f, "top_p", "above 0 and up to 1",
                 (double)p->top_p, err));
    PE_TRY(check(p->min_p >= 0.0f && p->min_p <= 1.0f, "min_p", "0 to 1", (double)p->min_p, err));
    PE_TRY(check(p->repeat_penalty > 0.0f && pe_f32_is_finite(p->repeat_penalty), "repeat_penalty",
                 "above 0", (double)p->repeat_penalty, err));
    PE_TRY(check(pe_f32_is_finite(p->presence_penalty), "presence_penalty", "a number",
                 (double)p->presence_penalty, err));
    PE_TRY(check(pe_f32_is_finite(p->frequency_penalty), "frequency_penalty", "a number",
                 (double)p->frequency_penalty, err));
    if (p->penalty_window > MAX_PENALTY_WINDOW) {
        return pe_fail(err, PE_ERR_ARG, "penalty_window: expected at most %u, found %u",
                       MAX_PENALTY_WINDOW, p->penalty_window);
    }
    return PE_OK;
}

static int compare_ids(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a;
    const uint32_t y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* NaN is refused; infinities ban or force a token. A token named twice could be
 * both, and their sum is NaN. sorted has room for n ids. */
static pe_status check_biases(uint32_t *sorted, const uint32_t *tokens, const float *values,
                              uint32_t n, pe_error *err) {
    for (uint32_t i = 0; i < n; i++) {
        if (values[i] != values[i]) {
            return pe_fail(err, PE_ERR_ARG, "logit_bias of token %u: expected a number, found NaN",
                           tokens[i]);
        }
        sorted[i] = tokens[i];
    }
    qsort(sorted, n, sizeof *sorted, compare_ids);
    for (uint32_t i = 1; i < n; i++) {
        if (sorted[i] == sorted[i - 1]) {
            return pe_fail(err, PE_ERR_ARG, "logit_bias: expected each token once, found %u twice",
                           sorted[i]);
        }
    }
    return PE_OK;
}

pe_status pe_sampler_new(pe_sampler **out_sampler, const pe_sampler_params *params,
                         const uint32_t *bias_tokens, const float *bias_values, uint32_t n_biases,
                         pe_error *err) {
    *out_sampler = NULL;
    PE_TRY(check_params(params, err));
    pe_sampler *s = pe_mem_zalloc(1, sizeof *s);
    if (s != NULL) {
        s->bias_tokens = pe_mem_alloc(n_biases, sizeof *s->bias_tokens);
        s->bias_values = pe_mem_alloc(n_biases, sizeof *s->bias_values);
        s->history = pe_mem_alloc(params->penalty_window, sizeof *s->history);
    }
    if (s == NULL || s->bias_tokens == NULL || s->bias_values == NULL || s->history == NULL) {
        pe_sampler_free(s);
        return pe_fail(err, PE_ERR_NOMEM, "sampler: no memory");
    }
    // The array serves the check first, and is then filled in the caller's order.
    const pe_status status = check_biases(s->bias_tokens, bias_tokens, bias_values, n_biases, err);
    if (status != PE_OK) {
        pe_sampler_free(s);
        return status;
    }
    s->params = *params;
    s->state = params->seed;
    s->n_biases = n_biases;
    if (n_biases > 0) {
        memcpy(s->bias_tokens, bias_tokens, n_biases * sizeof *bias_tokens);
        memcpy(s->bias_values, bias_values, n_biases * sizeof *bias_values);
    }
    *out_sampler = s;
    return PE_OK;
}

void pe_sampler_free(pe_sampler *sampler) {
    if (sampler == NULL) {
        return;
    }
    pe_mem_free(sampler->bias_tokens);
    pe_mem_free(sampler->bias_values);
    pe_mem_free(sampler->history);
    pe_mem_free(sampler->candidates);
    pe_mem_free(sampler->counts);
    pe_mem_free(sampler);
}

void pe_sampler_accept(pe_sampler *sampler, uint32_t token) {
    if (sampler->params.penalty_window > 0) {
        sampler->history[sampler->n_accepted++ % sampler->params.penalty_window] = token;
    }
}

uint64_t pe_sampler_state(const pe_sampler *sampler) {
    return sampler->state;
}

void pe_sampler_set_state(pe_sampler *sampler, uint64_t state) {
    sampler->state = state;
}

/* SplitMix64 (Steele, Lea, Flood 2014): 64 bits of state, any seed is good. The top
 * 53 bits become a number in [0, 1). */
static double draw(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

/* ---- the steps -------------------------------------------------------- */

static pe_status check_logits(const float *logits, uint32_t n_vocab, pe_error *err) {
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (!pe_f32_is_finite(logits[i])) {
            return pe_fail(err, PE_ERR_NUMERIC,
                           "logits: expected finite numbers, found %g for token %u",
                           (double)logits[i], i);
        }
    }
    return PE_OK;
}

/* Divides positive logits of seen tokens by repeat_penalty and multiplies negative
 * ones (CTRL, arXiv:1909.05858), then subtracts presence + frequency * count (the
 * OpenAI API's definition). Tokens that a bias forced or banned stay so. */
static void penalize(pe_sampler *s, candidate *c, uint32_t n_vocab) {
    const pe_sampler_params *p = &s->params;
    if (p->repeat_penalty == 1.0f && p->presence_penalty == 0.0f && p->frequency_penalty == 0.0f) {
        return;
    }
    const uint64_t n = PE_MIN(s->n_accepted, p->penalty_window);
    for (uint64_t i = 0; i < n; i++) {
        if (s->history[i] < n_vocab) {
            s->counts[s->history[i]]++;
        }
    }
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t token = s->history[i];
        if (token >= n_vocab || s->counts[token] == 0) {
            continue;  // outside this vocabulary, or penalized already
        }
        float *logit = &c[token].logit;
        if (pe_f32_is_finite(*logit)) {
            *logit = *logit > 0.0f ? *logit / p->repeat_penalty : *logit * p->repeat_penalty;
            *logit -= p->presence_penalty + p->frequency_penalty * (float)s->counts[token];
        }
        s->counts[token] = 0;
    }
}

/* Whether a comes before b: the larger logit, the lower id on a tie. */
static bool before(const candidate *a, const candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static int compare(const void *a, const void *b) {
    return before(a, b) ? -1 : 1;
}

/* Restores the heap (worst on top) below position i of c's first n. */
static void sift_down(candidate *c, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t worst = i;
        for (uint32_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++) {
            worst = before(&c[worst], &c[child]) ? child : worst;
        }
        if (worst == i) {
            return;
        }
        const candidate swap = c[i];
        c[i] = c[worst];
        c[worst] = swap;
        i = worst;
    }
}

/* Brings the k first of n to the front, in order. */
static void sort_first(candidate *c, uint32_t n, uint32_t k) {
    if (k < n) {
        for (uint32_t i = k / 2; i-- > 0;) {
            sift_down(c, k, i);
        }
        for (uint32_t i = k; i < n; i++) {
            if (before(&c[i], &c[0])) {
                c[0] = c[i];
                sift_down(c, k, 0);
            }
        }
    }
    qsort(c, PE_MIN(k, n), sizeof *c, compare);
}

/* Shortens the sorted list to the smallest head that holds top_p of the mass, then
 * to tokens of at least min_p times the first one's probability. */
static uint32_t keep_head(const pe_sampler_params *p, const candidate *c, uint32_t n) {
    if (p->top_p < 1.0f) {
        double total = 0.0;
        for (uint32_t i = 0; i < n; i++) {
            total += pe_exp((double)(c[i].logit - c[0].logit));
        }
        double mass = 0.0;
        for (uint32_t i = 0; i < n; i++) {
            mass += pe_exp((double)(c[i].logit - c[0].logit));
            if (mass >= (double)p->top_p * total) {
                n = i + 1;
            }
        }
    }
    if (p->min_p > 0.0f) {
        uint32_t kept = 1;
        while (kept < n && pe_exp((double)(c[kept].logit - c[0].logit)) >= (double)p->min_p) {
            kept++;
        }
        n = kept;
    }
    return n;
}

static uint32_t draw_one(pe_sampler *s, const candidate *c, uint32_t n) {
    const double temperature = (double)s->params.temperature;
    double total = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        total += pe_exp((double)(c[i].logit - c[0].logit) / temperature);
    }
    const double target = draw(&s->state) * total;
    double mass = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        mass += pe_exp((double)(c[i].logit - c[0].logit) / temperature);
        if (mass > target) {
            return c[i].token;
        }
    }
    return c[n - 1].token;
}

static pe_status make_room(pe_sampler *s, uint32_t n_vocab, pe_error *err) {
    if (s->n_room >= n_vocab) {
        return PE_OK;
    }
    candidate *room = pe_mem_alloc(n_vocab, sizeof *room);
    uint32_t *counts = pe_mem_zalloc(n_vocab, sizeof *counts);
    if (room == NULL || counts == NULL) {
        pe_mem_free(room);
        pe_mem_free(counts);
        return pe_fail(err, PE_ERR_NOMEM, "sampler: no memory for %u candidates", n_vocab);
    }
    pe_mem_free(s->candidates);
    pe_mem_free(s->counts);
    s->candidates = room;
    s->counts = counts;
    s->n_room = n_vocab;
    return PE_OK;
}

pe_status pe_sampler_pick(pe_sampler *sampler, uint32_t *out_token, const float *logits,
                          uint32_t n_vocab, pe_error *err) {
    const pe_sampler_params *p = &sampler->params;
    if (n_vocab == 0) {
        return pe_fail(err, PE_ERR_ARG, "logits: expected one or more, found none");
    }
    PE_TRY(check_logits(logits, n_vocab, err));
    PE_TRY(make_room(sampler, n_vocab, err));
    candidate *c = sampler->candidates;
    for (uint32_t i = 0; i < n_vocab; i++) {
        c[i] = (candidate){.logit = logits[i], .token = i};
    }
    for (uint32_t i = 0; i < sampler->n_biases; i++) {
        if (sampler->bias_tokens[i] >= n_vocab) {
            return pe_fail(err, PE_ERR_ARG, "logit_bias: expected token ids below %u, found %u",
                           n_vocab, sampler->bias_tokens[i]);
        }
        c[sampler->bias_tokens[i]].logit += sampler->bias_values[i];
    }
    penalize(sampler, c, n_vocab);
    const bool greedy = p->temperature == 0.0f;
    const uint32_t k = greedy ? 1 : p->top_k > 0 ? PE_MIN(p->top_k, n_vocab) : n_vocab;
    sort_first(c, n_vocab, k);
    if (!pe_f32_is_finite(c[0].logit)) {
        // Forced by a bias of +infinity, or every token banned by -infinity.
        if (!(c[0].logit > 0.0f)) {
            return pe_fail(err, PE_ERR_ARG,
                           "logit_bias: expected to leave a token, found all %u"
                           " banned",
                           n_vocab);
        }
        *out_token = c[0].token;
        return PE_OK;
    }
    *out_token = greedy ? c[0].token : draw_one(sampler, c, keep_head(p, c, k));
    return PE_OK;
}

/* ---- log-probabilities ------------------------------------------------ */

/* log sum exp of a row, in double, in order of ids. */
static double log_sum_exp(const float *logits, uint32_t n_vocab) {
    float max = logits[0];
    for (uint32_t i = 1; i < n_vocab; i++) {
        max = PE_MAX(max, logits[i]);
    }
    double sum = 0.0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        sum += pe_exp((double)logits[i] - (double)max);
    }
    return (double)max + pe_log(sum);
}

pe_status pe_logprobs(float *out_logprobs, const float *logits, const uint32_t *targets,
                      uint64_t n_rows, uint32_t n_vocab, pe_error *err) {
    for (uint64_t i = 0; i < n_rows; i++) {
        const float *row = logits + i * n_vocab;
        if (targets[i] >= n_vocab) {
            return pe_fail(err, PE_ERR_ARG, "target %" PRIu64 ": expected an id below %u, found %u",
                           i, n_vocab, targets[i]);
        }
        PE_TRY(check_logits(row, n_vocab, err));
        out_logprobs[i] = (float)((double)row[targets[i]] - log_sum_exp(row, n_vocab));
    }
    return PE_OK;
}

pe_status pe_top_logprobs(uint32_t *out_tokens, float *out_logprobs, uint32_t k,
                          const float *logits, uint32_t n_vocab, pe_error *err) {
    if (k == 0 || k > n_vocab) {
        return pe_fail(err, PE_ERR_ARG, "logprobs: expected 1 to %u, found %u", n_vocab, k);
    }
    PE_TRY(check_logits(logits, n_vocab, err));
    candidate *c = pe_mem_alloc(n_vocab, sizeof *c);
    if (c == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "logprobs: no memory for %u candidates", n_vocab);
    }
    for (uint32_t i = 0; i < n_vocab; i++) {
        c[i] = (candidate){.logit = logits[i], .token = i};
    }
    sort_first(c, n_vocab, k);
    const double log_sum = log_sum_exp(logits, n_vocab);
    for (uint32_t i = 0; i < k; i++) {
        out_tokens[i] = c[i].token;
        out_logprobs[i] = (float)((double)c[i].logit - log_sum);
    }
    pe_mem_free(c);
    return PE_OK;
}
