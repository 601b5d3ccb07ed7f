/* The recurrences' kernels: every instruction set gives the scalar bits, and those are right. */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_kernels.h"

#define MAX_ROWS 70
#define MAX_N 160

static float state[2][MAX_ROWS * MAX_N];
static float expected[MAX_ROWS];

/* Several tokens through one head. */
static void scan(size_t n_rows, size_t n) {
    pe_kernels scalar;
    pe_kernels_init(&scalar, PE_ISA_SCALAR);
    FOR_EACH_ISA(isa) {
        pe_kernels kernels;
        pe_kernels_init(&kernels, isa);
        rng_seed(n_rows * 1000 + n);
        for (size_t i = 0; i < n_rows * n; i++) {
            state[0][i] = state[1][i] = rng_f32(-1.0f, 1.0f);
        }
        for (unsigned token = 0; token < 3; token++) {
            float *x = guarded(0, n_rows * sizeof *x);
            float *b = guarded(1, n * sizeof *b);
            float *c = guarded(2, n * sizeof *c);
            float *own = guarded(3, n_rows * n * sizeof *own);
            float *out = guarded(4, n_rows * sizeof *out);
            double sum = 0.0;
            const float decay = rng_f32(0.0f, 1.0f);
            for (size_t i = 0; i < n_rows; i++) {
                x[i] = rng_f32(-1.0f, 1.0f);
            }
            for (size_t i = 0; i < n; i++) {
                b[i] = i % 7 == 3 ? -0.0f : rng_f32(-1.0f, 1.0f);
                c[i] = rng_f32(-1.0f, 1.0f);
                sum += ((double)state[0][i] * (double)decay + (double)b[i] * (double)x[0]) *
                       (double)c[i];
            }
            memcpy(own, state[1], n_rows * n * sizeof *own);
            scalar.ssm_scan(expected, state[0], x, b, c, decay, n_rows, n);
            kernels.ssm_scan(out, own, x, b, c, decay, n_rows, n);
            memcpy(state[1], own, n_rows * n * sizeof *own);
            CHECK(memcmp(state[0], state[1], n_rows * n * sizeof *own) == 0,
                  "isa %d: state of %zu x %zu", (int)isa, n_rows, n);
            CHECK(first_difference(out, expected, n_rows) == n_rows, "isa %d: sums of %zu x %zu",
                  (int)isa, n_rows, n);
            CHECK(fabs(sum - (double)out[0]) <= 1e-5 * (double)n, "%g, expected %g", (double)out[0],
                  sum);
        }
        check_guards();
    }
}

static void ssm_scan(void) {
    static const size_t rows[] = {1, 2, 3, 4, 5, 64, 67};
    static const size_t widths[] = {1, 15, 16, 17, 24, 32, 100, 128};
    for (size_t r = 0; r < PE_LEN(rows); r++) {
        for (size_t w = 0; w < PE_LEN(widths); w++) {
            scan(rows[r], widths[w]);
        }
    }
}

int main(void) {
    static const test_case tests[] = {TEST(ssm_scan)};
    return run_tests(tests, PE_LEN(tests));
}
