/* The double-precision functions against the C library's long double ones. */
#include <math.h>

#include "harness.h"
#include "pe_base.h"
#include "pe_math.h"
#include "pe_rope.h"

#define BOUND 1e-13L

static void check_exp(double x) {
    const long double expected = expl((long double)x);
    const long double error = fabsl((long double)pe_exp(x) - expected);
    CHECK(error <= BOUND * expected, "pe_exp(%.17g) = %.17g", x, pe_exp(x));
}

static void exponential(void) {
    for (int i = -700000; i <= 700000; i += 7) {
        check_exp(i * 0.001);
    }
    for (int i = 0; i < 100000; i++) {
        check_exp((double)rng_f32(-1.0f, 1.0f) * ldexp(1.0, -(i % 60)));
        check_exp((i - 50000) % 1000 * 0.6931471805599453 / 2.0);  // ends of the reduced range
    }
    check_exp(0.0);
    check_exp(-700.0);
    check_exp(700.0);
    CHECK(pe_exp(0.0) == 1.0, "found %.17g", pe_exp(0.0));
    CHECK(pe_exp(-700.1) == 0.0, "found %g", pe_exp(-700.1));
    CHECK(pe_exp((double)-INFINITY) == 0.0, "found %g", pe_exp((double)-INFINITY));
    CHECK(pe_exp(700.1) == (double)INFINITY, "found %g", pe_exp(700.1));
    CHECK(isnan(pe_exp((double)NAN)), "found %g", pe_exp((double)NAN));
}

static void check_log(double x) {
    const long double expected = logl((long double)x);
    const long double error = fabsl((long double)pe_log(x) - expected);
    CHECK(error <= BOUND * fabsl(expected), "pe_log(%.17g) = %.17g", x, pe_log(x));
}

static void logarithm(void) {
    for (int exponent = -1022; exponent <= 1023; exponent++) {
        for (int i = 0; i < 64; i++) {
            check_log(ldexp(1.0 + (double)rng_below(1u << 30) * 0x1p-30, exponent));
        }
    }
    for (int i = 1; i < 50; i++) {  // both sides of 1 and of the fold at sqrt 2
        check_log(1.0 + ldexp(1.0, -i));
        check_log(1.0 - ldexp(1.0, -i));
        check_log(0x1.6a09e667f3bcdp+0 + ldexp((double)(i - 25), -52));
    }
    CHECK(pe_log(1.0) == 0.0, "found %g", pe_log(1.0));
}

static void check_sincos(double angle) {
    double s;
    double c;
    pe_sincos(angle, &s, &c);
    CHECK(fabsl((long double)s - sinl((long double)angle)) <= BOUND, "sin(%.17g) = %.17g", angle,
          s);
    CHECK(fabsl((long double)c - cosl((long double)angle)) <= BOUND, "cos(%.17g) = %.17g", angle,
          c);
}

static void sine_and_cosine(void) {
    for (int i = -200000; i <= 200000; i++) {
        check_sincos(i * 0.001);
        check_sincos(i * 0.7853981633974483);  // where the quarter turn changes
    }
    for (int i = 0; i < 200000; i++) {
        // Up to the largest angle that a position can give: 2^18, and every power below.
        check_sincos((double)rng_f32(-1.0f, 1.0f) * ldexp(1.0, i % 50 - 32));
    }
    check_sincos(0.0);
}

/* Positions go to 2^28, and the fastest frequency is 1. */
static void sine_and_cosine_of_large_angles(void) {
    for (int i = 0; i < 200000; i++) {
        check_sincos((double)rng_f32(-1.0f, 1.0f) * ldexp(1.0, 18 + i % 11));
    }
    check_sincos(268435455.0);
    check_sincos(-268435455.5);
}

/* Frequencies and angles against their formulas; one rounding to float. */
static void rope_tables(void) {
    static const float bases[] = {10000.0f, 500000.0f, 1.0f, 1e6f};
    for (size_t b = 0; b < PE_LEN(bases); b++) {
        for (uint32_t n_pairs = 1; n_pairs <= 64; n_pairs += 21) {
            float freqs[64];
            float scaled[64];
            float factors[64];
            float angles[128];
            for (uint32_t i = 0; i < n_pairs; i++) {
                factors[i] = rng_f32(1.0f, 8.0f);
            }
            pe_rope_rule rule = {.base = bases[b], .factor = 4.0f};
            pe_rope_freqs(freqs, n_pairs, &rule);
            rule.factors = factors;
            pe_rope_freqs(scaled, n_pairs, &rule);
            const uint32_t position = rng_below(8192);
            pe_rope_angles(angles, freqs, n_pairs, position, 1.0f);
            for (uint32_t i = 0; i < n_pairs; i++) {
                const double freq = pow((double)bases[b], -(double)i / n_pairs) / 4.0;
                const double angle = (double)((float)position * freqs[i]);
                CHECK(fabs((double)freqs[i] - freq) <= 0x1.01p-24 * freq, "pair %u: %g", i, freq);
                CHECK(fabs((double)scaled[i] * (double)factors[i] - freq) <= 0x1p-23 * freq,
                      "pair %u: %g", i, freq);
                CHECK(fabs((double)angles[2 * i] - cos(angle)) <= 0x1.01p-25, "pair %u", i);
                CHECK(fabs((double)angles[2 * i + 1] - sin(angle)) <= 0x1.01p-25, "pair %u", i);
            }
        }
    }
    float head[6] = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
    const float quarter[4] = {0.0f, 1.0f, -1.0f, 0.0f};  // turn by 90 and by 180 degrees
    pe_rope_rotate_pairs(head, quarter, 2);
    const float turned[6] = {-2.0f, 1.0f, -3.0f, -4.0f, 5.0f, 6.0f};
    CHECK_U64(first_difference(head, turned, 6), 6);
    float halves[6] = {1.0f, 3.0f, 2.0f, 4.0f, 5.0f, 6.0f};
    pe_rope_rotate_halves(halves, quarter, 2);
    const float turned_halves[6] = {-2.0f, -3.0f, 1.0f, -4.0f, 5.0f, 6.0f};
    CHECK_U64(first_difference(halves, turned_halves, 6), 6);
}

/* YaRN keeps what turns beta_fast times over the trained context or more often, divides
 * what turns beta_slow times or less often, and is between in between. */
static void yarn_frequencies(void) {
    const pe_rope_rule plain = {.base = 10000.0f, .factor = 1.0f};
    pe_rope_rule rule = {.base = 10000.0f,
                         .factor = 8.0f,
                         .is_yarn = true,
                         .beta_fast = 32.0f,
                         .beta_slow = 1.0f,
                         .n_ctx = 4096};
    float kept[64];
    float whole[64];
    float mixed[64];
    pe_rope_freqs(kept, 64, &plain);
    pe_rope_freqs(mixed, 64, &rule);
    rule.truncates = true;
    pe_rope_freqs(whole, 64, &rule);
    // Pairs of 32 turns and of 1 turn: 64 ln(4096 / (2 pi t)) / ln 10000 = 20.94 and 45.03.
    for (uint32_t i = 0; i < 64; i++) {
        const double share = i <= 20.944 ? 0.0 : i >= 45.027 ? 1.0 : (i - 20.944) / 24.083;
        const double coarse = i <= 20 ? 0.0 : i >= 46 ? 1.0 : (i - 20.0) / 26.0;
        const double freq = (double)kept[i];
        CHECK(fabs((double)mixed[i] / freq - (1.0 - share * 7.0 / 8.0)) < 1e-4, "pair %u", i);
        CHECK(fabs((double)whole[i] / freq - (1.0 - coarse * 7.0 / 8.0)) < 1e-6, "pair %u", i);
    }
    float angles[2];
    pe_rope_angles(angles, kept, 1, 0, 1.5f);
    CHECK(angles[0] == 1.5f && angles[1] == 0.0f, "magnitude: %g %g", (double)angles[0],
          (double)angles[1]);
}

int main(void) {
    static const test_case tests[] = {
        TEST(exponential),     TEST(logarithm),
        TEST(sine_and_cosine), TEST(sine_and_cosine_of_large_angles),
        TEST(rope_tables),     TEST(yarn_frequencies),
    };
    return run_tests(tests, PE_LEN(tests));
}
