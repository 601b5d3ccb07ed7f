/* The gated delta rule: every instruction set has the bits of scalar.c, which is within its
 * rounding errors of the formula in double; and what lies around it.
 */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_delta.h"

#define EPS 0x1p-24

static pe_kernels kernels[MAX_ISAS];  // by pe_isa

static void init_kernels(void) {
    FOR_EACH_ISA(isa) {
        pe_kernels_init(&kernels[isa], isa);
    }
}

#define MAX_DELTA_K 40
#define MAX_DELTA_V 150

/* The formula in double, from the same state; gives how large its terms are. */
static double delta_in_double(double *state, double *out, const float *q, const float *k,
                              const float *v, size_t d_k, size_t n_v, size_t j, double decay,
                              double share) {
    double told = 0.0;
    double size = fabs((double)v[j]);
    for (size_t i = 0; i < d_k; i++) {
        state[i * n_v + j] *= decay;
        told += (double)k[i] * state[i * n_v + j];
        size += fabs((double)k[i] * state[i * n_v + j]);
    }
    const double u = share * ((double)v[j] - told);
    out[j] = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < d_k; i++) {
        state[i * n_v + j] += (double)k[i] * u;
        out[j] += (double)q[i] * state[i * n_v + j];
        sum += fabs((double)q[i]) * (fabs(state[i * n_v + j]) + size);
    }
    return sum + size;
}

/* A sum of d_k terms is off by at most d_k EPS of their sizes; there are two, one of which
 * goes into the other. */
static void delta(void) {
    init_kernels();
    for (uint32_t round = 0; round < 600; round++) {
        const size_t d_k = 1 + rng_below(MAX_DELTA_K);
        const size_t n_v = round % 3 == 0 ? 16 * (1 + rng_below(9)) : 1 + rng_below(MAX_DELTA_V);
        const float decay = rng_f32(0.0f, 1.0f);
        const float share = rng_f32(0.0f, 1.0f);
        static float before[MAX_DELTA_K * MAX_DELTA_V];
        static float after[MAX_DELTA_K * MAX_DELTA_V];
        static double exact[MAX_DELTA_K * MAX_DELTA_V];
        float q[MAX_DELTA_K], k[MAX_DELTA_K], expected[MAX_DELTA_V];
        double y[MAX_DELTA_V];
        for (size_t i = 0; i < d_k * n_v; i++) {
            before[i] = rng_f32(-2.0f, 2.0f);
            exact[i] = (double)before[i];
        }
        for (size_t i = 0; i < d_k; i++) {
            q[i] = rng_f32(-1.0f, 1.0f);
            k[i] = rng_f32(-1.0f, 1.0f);
        }
        float *v = guarded(1, n_v * sizeof *v);
        for (size_t j = 0; j < n_v; j++) {
            v[j] = rng_f32(-3.0f, 3.0f);
        }
        v[rng_below((uint32_t)n_v)] = round % 16 == 2 ? NAN : 1.0f;
        FOR_EACH_ISA(isa) {
            float *state = guarded(0, d_k * n_v * sizeof *state);
            float *out = guarded(2, n_v * sizeof *out);
            memcpy(state, before, d_k * n_v * sizeof *state);
            if (round % 2 == 0) {
                kernels[isa].delta(state, out, q, k, v, d_k, n_v, decay, share);
            } else {
                memcpy(out, v, n_v * sizeof *out);
                kernels[isa].delta(state, out, q, k, out, d_k, n_v, decay, share);
            }
            for (size_t j = 0; j < n_v && isa == PE_ISA_SCALAR; j++) {
                const double size =
                    delta_in_double(exact, y, q, k, v, d_k, n_v, j, (double)decay, (double)share);
                const double bound = 2.0 * EPS * (double)(d_k + 3) * size;
                CHECK(isnan(y[j]) ? is_nan(out[j]) : fabs((double)out[j] - y[j]) <= bound,
                      "%zu rows, column %zu: found %g, in double %g", d_k, j, (double)out[j], y[j]);
                for (size_t i = 0; i < d_k; i++) {
                    const double s = exact[i * n_v + j];
                    CHECK(isnan(s) || fabs((double)state[i * n_v + j] - s) <= bound,
                          "state %zu %zu: found %g, in double %g", i, j, (double)state[i * n_v + j],
                          s);
                }
            }
            if (isa == PE_ISA_SCALAR) {
                memcpy(expected, out, n_v * sizeof *out);
                memcpy(after, state, d_k * n_v * sizeof *state);
            }
            CHECK_U64(first_difference(out, expected, n_v), n_v);
            CHECK_U64(first_difference(state, after, d_k * n_v), d_k * n_v);
        }
        check_guards();
    }
}

/* ---- around it --------------------------------------------------------- */

#define N_TOKENS 11

/* Each output by the definition, whatever way the tokens are cut. */
static void convolve(void) {
    init_kernels();
    for (uint32_t round = 0; round < 300; round++) {
        const size_t n_taps = 1 + rng_below(PE_DELTA_MAX_TAPS);
        const size_t n = 1 + rng_below(PE_DELTA_CHANNELS);
        const size_t stride = n + rng_below(3);
        const size_t n_past = n_taps - 1;
        static float all[(PE_DELTA_MAX_TAPS + N_TOKENS) * (PE_DELTA_CHANNELS + 2)];
        static float expected[N_TOKENS * (PE_DELTA_CHANNELS + 2)];
        float *taps = guarded(0, n * n_taps * sizeof *taps);
        for (size_t i = 0; i < PE_LEN(all); i++) {
            all[i] = rng_f32(-2.0f, 2.0f);
        }
        for (size_t i = 0; i < n * n_taps; i++) {
            taps[i] = rng_f32(-1.0f, 1.0f);
        }
        FOR_EACH_ISA(isa) {
            float *past = guarded(1, PE_MAX(n_past, (size_t)1) * n * sizeof *past);
            float *x = guarded(2, N_TOKENS * stride * sizeof *x);
            for (size_t i = 0; i < n_past; i++) {
                memcpy(past + i * n, all + i * stride, n * sizeof *past);
            }
            memcpy(x, all + n_past * stride, N_TOKENS * stride * sizeof *x);
            const size_t cut = rng_below(N_TOKENS + 1);
            pe_delta_convolve(&kernels[isa], x, stride, past, taps, n_taps, n, cut);
            pe_delta_convolve(&kernels[isa], x + cut * stride, stride, past, taps, n_taps, n,
                              N_TOKENS - cut);
            for (size_t t = 0; t < N_TOKENS && isa == PE_ISA_SCALAR; t++) {
                for (size_t c = 0; c < n; c++) {
                    double sum = 0.0;
                    for (size_t i = 0; i < n_taps; i++) {
                        sum += (double)taps[c * n_taps + i] * (double)all[(t + i) * stride + c];
                    }
                    const double y = sum / (1.0 + exp(-sum));
                    const double found = (double)x[t * stride + c];
                    CHECK(fabs(found - y) <= 4.0 * EPS * 2.0 * (double)(n_taps + 4),
                          "%zu taps, token %zu, channel %zu: found %g, in double %g", n_taps, t, c,
                          found, y);
                }
            }
            for (size_t i = 0; i < n_past; i++) {
                const float *row = all + (N_TOKENS + i) * stride;
                CHECK_U64(first_difference(past + i * n, row, n), n);
            }
            if (isa == PE_ISA_SCALAR) {
                memcpy(expected, x, N_TOKENS * stride * sizeof *x);
            }
            CHECK_U64(first_difference(x, expected, N_TOKENS * stride), N_TOKENS * stride);
        }
        check_guards();
    }
}

static void norm(void) {
    init_kernels();
    for (uint32_t round = 0; round < 300; round++) {
        const size_t d = 1 + rng_below(150);
        float before[150], expected[150];
        double sum = 0.0;
        for (size_t i = 0; i < d; i++) {
            before[i] = rng_f32(-1.0f, 1.0f) * (round % 5 == 0 ? 1e-4f : 1.0f);
            sum += (double)before[i] * (double)before[i];
        }
        FOR_EACH_ISA(isa) {
            float *x = guarded(0, d * sizeof *x);
            memcpy(x, before, d * sizeof *x);
            pe_delta_norm(&kernels[isa], x, d, 0.25f);
            for (size_t i = 0; i < d && isa == PE_ISA_SCALAR; i++) {
                const double y = (double)before[i] / sqrt(sum + 1e-6) * 0.25;
                expected[i] = x[i];
                CHECK(fabs((double)x[i] - y) <= (double)(d + 6) * EPS * fabs(y),
                      "found %g, in double %g", (double)x[i], y);
            }
            CHECK_U64(first_difference(x, expected, d), d);
        }
        check_guards();
    }
}

static void gates(void) {
    for (uint32_t round = 0; round < 20000; round++) {
        const float x = rng_f32(-50.0f, 50.0f);
        const float rate = -expf(rng_f32(-6.0f, 3.0f));
        const double softplus = (double)x > 30.0 ? (double)x : log1p(exp((double)x));
        const double decay = exp((double)rate * softplus);
        const double share = 1.0 / (1.0 + exp(-(double)x));
        CHECK(fabs((double)pe_delta_decay(x, rate) - decay) <= 1.01 * EPS * decay + 0x1p-140,
              "decay(%g, %g): found %g, in double %g", (double)x, (double)rate,
              (double)pe_delta_decay(x, rate), decay);
        CHECK(fabs((double)pe_delta_share(x) - share) <= 1.01 * EPS * share,
              "share(%g): found %g, in double %g", (double)x, (double)pe_delta_share(x), share);
    }
    CHECK(is_nan(pe_delta_decay(NAN, -1.0f)), "decay of NaN: %g",
          (double)pe_delta_decay(NAN, -1.0f));
    CHECK(is_nan(pe_delta_share(NAN)), "share of NaN: %g", (double)pe_delta_share(NAN));
    CHECK(pe_delta_decay(INFINITY, -1.0f) == 0.0f, "decay of infinity");
    CHECK(pe_delta_decay(-INFINITY, -1.0f) == 1.0f, "decay of -infinity");
    CHECK(pe_delta_share(-INFINITY) == 0.0f, "share of -infinity");
}

int main(void) {
    static const test_case tests[] = {TEST(delta), TEST(convolve), TEST(norm), TEST(gates)};
    return run_tests(tests, PE_LEN(tests));
}
