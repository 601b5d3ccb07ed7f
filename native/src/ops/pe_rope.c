#include "pe_rope.h"

#include "pe_math.h"

#define TWO_PI 6.283185307179586

/* Which pair, counted with fractions, makes so many turns over the rule's context. */
static double pair_of_turns(const pe_rope_rule *rule, uint32_t n_pairs, float turns) {
    return n_pairs * pe_log(rule->n_ctx / ((double)turns * TWO_PI)) / pe_log((double)rule->base);
}

/* Largest integer not above x, |x| < 2^31. */
static double floor_of(double x) {
    const double whole = (double)(int64_t)x;
    return whole > x ? whole - 1.0 : whole;
}

/* Shares of the stretched frequency: 0 up to pair low, 1 from high on. */
typedef struct ramp {
    double low;
    double high;
} ramp;

static ramp yarn_ramp(const pe_rope_rule *rule, uint32_t n_pairs) {
    ramp r = {.low = pair_of_turns(rule, n_pairs, rule->beta_fast),
              .high = pair_of_turns(rule, n_pairs, rule->beta_slow)};
    if (rule->truncates) {
        r.low = floor_of(r.low);
        r.high = -floor_of(-r.high);
    }
    const double last = 2.0 * n_pairs - 1.0;
    r.low = PE_MAX(r.low, 0.0);
    r.high = PE_MIN(r.high, last);
    r.high = r.high == r.low ? r.high + 0.001 : r.high;
    return r;
}

void pe_rope_freqs(float *out, uint32_t n_pairs, const pe_rope_rule *rule) {
    const double log_base = pe_log((double)rule->base);
    const ramp yarn = rule->is_yarn ? yarn_ramp(rule, n_pairs) : (ramp){0};
    for (uint32_t i = 0; i < n_pairs; i++) {
        const double kept = pe_exp(-log_base * i / n_pairs);
        double freq = kept / (double)rule->factor;
        if (rule->is_yarn) {
            const double rise = (i - yarn.low) / (yarn.high - yarn.low);
            const double share = PE_MIN(PE_MAX(rise, 0.0), 1.0);
            freq = freq * share + kept * (1.0 - share);
        }
        out[i] = (float)(rule->factors != NULL ? freq / (double)rule->factors[i] : freq);
    }
}

void pe_rope_angles(float *out, const float *freqs, uint32_t n_pairs, uint32_t position,
                    float magnitude) {
    for (uint32_t i = 0; i < n_pairs; i++) {
        double sine;
        double cosine;
        pe_sincos((double)((float)position * freqs[i]), &sine, &cosine);
        out[2 * i] = (float)cosine * magnitude;
        out[2 * i + 1] = (float)sine * magnitude;
    }
}

static void rotate(float *first, float *second, const float *angles) {
    const float a = *first;
    const float b = *second;
    *first = a * angles[0] - b * angles[1];
    *second = b * angles[0] + a * angles[1];
}

void pe_rope_rotate_pairs(float *head, const float *angles, uint32_t n_pairs) {
    for (uint32_t i = 0; i < n_pairs; i++) {
        rotate(&head[2 * i], &head[2 * i + 1], angles + 2 * (size_t)i);
    }
}

void pe_rope_rotate_halves(float *head, const float *angles, uint32_t n_pairs) {
    for (uint32_t i = 0; i < n_pairs; i++) {
        rotate(&head[i], &head[i + n_pairs], angles + 2 * (size_t)i);
    }
}
