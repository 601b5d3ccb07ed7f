/* Grids: their values are those of their blocks, bit for bit; the search against an
 * exhaustive one, against the plain encoder, and at the ends of what floats can be.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "pe_grid.h"
#include "pe_lattice.h"

static const uint32_t TYPES[] = {
    PE_DTYPE_Q4_0,   PE_DTYPE_Q4_1,   PE_DTYPE_Q5_0,  PE_DTYPE_Q5_1, PE_DTYPE_Q8_0,
    PE_DTYPE_Q2_K,   PE_DTYPE_Q3_K,   PE_DTYPE_Q4_K,  PE_DTYPE_Q5_K, PE_DTYPE_Q6_K,
    PE_DTYPE_IQ4_NL, PE_DTYPE_IQ4_XS, PE_DTYPE_MXFP4,
};
#define N_TYPES (sizeof TYPES / sizeof TYPES[0])

static float bell(void) {
    float sum = 0.0f;
    for (int k = 0; k < 6; k++) {
        sum += rng_f32(-1.0f, 1.0f);
    }
    return sum;
}

static void random_block(float *w, float *h, size_t n) {
    for (size_t i = 0; i < n; i++) {
        w[i] = 0.02f * bell();
        const float root = bell();
        h[i] = root * root * root * root;
    }
}

/* Random bytes whose halves are numbers, and decoding, rounding and encoding of them. */
static void same_bits(void) {
    for (size_t t = 0; t < N_TYPES; t++) {
        pe_dtype_info info;
        CHECK_OK(pe_dtype_describe(&info, TYPES[t], err));
        int n_grids = 0;
        for (int turn = 0; turn < 400; turn++) {
            _Alignas(4) uint8_t block[256];
            _Alignas(4) uint8_t again[256];
            for (size_t k = 0; k < info.block_bytes; k++) {
                block[k] = (uint8_t)rng_u64();
            }
            pe_grid grid;
            int8_t levels[256];
            if (!pe_grid_decode(&grid, levels, TYPES[t], block)) {
                continue;
            }
            n_grids++;
            CHECK_U64(grid.n_weights, info.block_weights);
            pe_grid_encode(again, &grid, levels);
            float values[256];
            float found[256];
            CHECK_OK(pe_dequantize(values, TYPES[t], block, info.block_weights, err));
            CHECK_OK(pe_dequantize(found, TYPES[t], again, info.block_weights, err));
            CHECK(TYPES[t] == PE_DTYPE_MXFP4 || memcmp(block, again, info.block_bytes) == 0, "%s",
                  info.name);
            for (size_t i = 0; i < info.block_weights; i++) {
                const float value = pe_grid_value(&grid, i, levels[i]);
                CHECK(memcmp(&value, &values[i], 4) == 0 && memcmp(&value, &found[i], 4) == 0,
                      "%s: weight %zu is %g, not %g", info.name, i, (double)value,
                      (double)values[i]);
                int level;
                const float nearest = pe_grid_round(&grid, i, value, &level);
                const float inverse = grid.inverse[i >> grid.sub_shift];
                CHECK(levels[i] == -128 || inverse == 0.0f || nearest == value,
                      "%s: %g rounds to %g", info.name, (double)value, (double)nearest);
            }
        }
        CHECK(n_grids > 300, "%s: %d grids", info.name, n_grids);
    }
}

static void rounds_to_nearest(void) {
    float w[256];
    float h[256];
    for (size_t t = 0; t < N_TYPES; t++) {
        pe_grid grid;
        random_block(w, h, 256);
        CHECK(pe_grid_fit(&grid, TYPES[t], w, h), "type %u", TYPES[t]);
        for (size_t i = 0; i < grid.n_weights; i++) {
            int level;
            const float x = 1.5f * w[i];
            const float found = fabsf(x - pe_grid_round(&grid, i, x, &level));
            for (int k = grid.low; k <= grid.high; k++) {
                int of_value;
                const float value = pe_grid_value(&grid, i, k);
                pe_grid_round(&grid, i, value, &of_value);
                if (grid.table == NULL || of_value == k) {
                    CHECK(found <= fabsf(x - value) + 1e-6f * fabsf(x), "type %u: %g", TYPES[t],
                          (double)x);
                }
            }
        }
    }
}

/* The error of the best fp16 scale of either sign, by trying all of them that matter. */
static double least_error(uint32_t dtype, const float *w, const float *h) {
    double least = INFINITY;
    for (uint32_t d = 0; d < 0x7c00; d++) {
        for (uint32_t sign = 0; sign < 2; sign++) {
            pe_grid grid;
            pe_grid_init(&grid, dtype);
            grid.d = (pe_f16)(d | sign << 15);
            const float step = pe_f16_to_f32((pe_f16)d);
            if (step > 2e-4f && step < 0.2f) {
                pe_grid_derive(&grid);
                const double error = pe_grid_error(&grid, w, h);
                least = error < least ? error : least;
            }
        }
    }
    return least;
}

static void exact_scales(void) {
    static const uint32_t types[] = {PE_DTYPE_Q4_0, PE_DTYPE_Q5_0};
    double found = 0.0;
    double best = 0.0;
    for (int turn = 0; turn < 40; turn++) {
        float w[32];
        float h[32];
        random_block(w, h, 32);
        pe_grid grid;
        const uint32_t dtype = types[turn % 2];
        CHECK(pe_grid_fit(&grid, dtype, w, h), "no grid");
        const double error = pe_grid_error(&grid, w, h);
        const double least = least_error(dtype, w, h);
        // What is exact is the search over floats; fp16 then moves the scale by 2^-12.
        CHECK(error <= least * 1.003, "%d: %g, best %g", turn, error, least);
        found += error;
        best += least;
    }
    CHECK(found <= best * 1.0002, "%g, best %g", found, best);
}

/* No block is worse than the plain encoder's, and all together are better by so much. */
static void beats_plain(void) {
    static const double at_most[N_TYPES] = {0.95, 0.85, 0.95, 0.85, 0.9,  0.85, 0.95,
                                            0.96, 0.95, 0.9,  0.96, 0.96, 0.99};
    for (size_t t = 0; t < N_TYPES; t++) {
        double sum[2] = {0.0, 0.0};
        for (int turn = 0; turn < 60; turn++) {
            float w[256];
            float h[256];
            random_block(w, h, 256);
            const float *weight = turn % 2 == 0 ? NULL : h;
            pe_grid grid;
            CHECK(pe_grid_fit(&grid, TYPES[t], w, weight), "type %u", TYPES[t]);
            _Alignas(4) uint8_t block[256];
            float plain[256];
            CHECK_OK(pe_quantize(block, TYPES[t], w, grid.n_weights, err));
            CHECK_OK(pe_dequantize(plain, TYPES[t], block, grid.n_weights, err));
            double error = 0.0;
            for (size_t i = 0; i < grid.n_weights; i++) {
                const double off = (double)w[i] - (double)plain[i];
                error += (weight == NULL ? 1.0 : (double)h[i]) * off * off;
            }
            const double found = pe_grid_error(&grid, w, weight);
            CHECK(found <= error * 1.000001, "type %u: %g, plain %g", TYPES[t], found, error);
            sum[0] += found;
            sum[1] += error;
        }
        CHECK(sum[0] < at_most[t] * sum[1], "type %u: %g of %g", TYPES[t], sum[0], sum[1]);
    }
}

/* Weights of a random grid of super-blocks: turns of integers, then d and m, come close to
 * it, where the plain encoder's first guess at d and m stays. */
static void turns(void) {
    static const uint32_t types[] = {PE_DTYPE_Q2_K, PE_DTYPE_Q3_K, PE_DTYPE_Q4_K,
                                     PE_DTYPE_Q5_K, PE_DTYPE_Q6_K, PE_DTYPE_IQ4_XS};
    static const double at_most[] = {0.1, 0.4, 0.8, 0.95, 0.15, 0.9};
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        double sum[2] = {0.0, 0.0};
        for (int turn = 0; turn < 30; turn++) {
            pe_grid grid;
            pe_grid_init(&grid, types[t]);
            grid.d = pe_f16_from_f32(rng_f32(0.001f, 0.002f));
            grid.m = pe_f16_from_f32(rng_f32(0.001f, 0.002f));
            for (size_t s = 0; s < grid.n_subs; s++) {
                grid.scale[s] = (int8_t)(4 + rng_below(11));
                grid.min[s] = (uint8_t)rng_below(16);
            }
            pe_grid_derive(&grid);
            float w[256];
            for (size_t i = 0; i < 256; i++) {
                int level;
                w[i] = pe_grid_round(&grid, i, rng_f32(-0.3f, 0.3f), &level);
            }
            pe_grid found;
            CHECK(pe_grid_fit(&found, types[t], w, NULL), "type %u", types[t]);
            _Alignas(4) uint8_t block[256];
            float plain[256];
            CHECK_OK(pe_quantize(block, types[t], w, 256, err));
            CHECK_OK(pe_dequantize(plain, types[t], block, 256, err));
            for (size_t i = 0; i < 256; i++) {
                sum[1] += pow((double)w[i] - (double)plain[i], 2.0);
            }
            sum[0] += pe_grid_error(&found, w, NULL);
        }
        CHECK(sum[0] < at_most[t] * sum[1], "type %u: %g of %g", types[t], sum[0], sum[1]);
    }
}

static void ends_of_floats(void) {
    float w[256];
    float h[256];
    for (size_t t = 0; t < N_TYPES; t++) {
        pe_grid grid;
        random_block(w, h, 256);
        float zeros[256] = {0.0f};
        CHECK(pe_grid_fit(&grid, TYPES[t], zeros, h) && pe_grid_error(&grid, zeros, h) == 0.0,
              "type %u", TYPES[t]);
        CHECK(pe_grid_fit(&grid, TYPES[t], w, zeros), "type %u", TYPES[t]);
        pe_grid equal;
        CHECK(pe_grid_fit(&equal, TYPES[t], w, NULL), "type %u", TYPES[t]);
        CHECK(memcmp(equal.step, grid.step, sizeof grid.step) == 0, "zero weights count as one");
        for (int e = -149; e < 128; e += 7) {
            float x[256];
            float g[256];
            for (size_t i = 0; i < 256; i++) {
                x[i] = ldexpf(w[i], e);
                g[i] = ldexpf(h[i] + 1.0f, -e / 2);
            }
            if (pe_grid_fit(&grid, TYPES[t], x, g)) {
                for (size_t s = 0; s < grid.n_subs; s++) {
                    CHECK(is_finite(grid.step[s]) && is_finite(grid.offset[s]), "type %u",
                          TYPES[t]);
                }
            } else {
                CHECK(e > 10, "type %u: refused at 2^%d", TYPES[t], e);
            }
        }
        const float keep = w[7];
        w[7] = NAN;
        CHECK(!pe_grid_fit(&grid, TYPES[t], w, h), "no grid");
        w[7] = INFINITY;
        CHECK(!pe_grid_fit(&grid, TYPES[t], w, h), "no grid");
        w[7] = 3e38f;
        CHECK(TYPES[t] == PE_DTYPE_MXFP4 || !pe_grid_fit(&grid, TYPES[t], w, h), "no grid");
        w[7] = keep;
        h[3] = -1.0f;
        CHECK(!pe_grid_fit(&grid, TYPES[t], w, h), "no grid");
        h[3] = NAN;
        CHECK(!pe_grid_fit(&grid, TYPES[t], w, h), "no grid");
    }
    pe_grid grid;
    CHECK(!pe_grid_init(&grid, PE_DTYPE_F16) && !pe_grid_init(&grid, 99), "unexpected");
}

static void whole_rows(void) {
    float w[2 * 64];
    float importance[64];
    uint8_t out[4 * 18];
    random_block(w, importance, 64);
    random_block(w + 64, importance, 64);
    CHECK_OK(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, importance, 2, 64, err));
    for (size_t b = 0; b < 4; b++) {  // each block with the importance of its columns
        pe_grid grid;
        pe_f16 d;
        const float *h = importance + (b % 2) * 32;
        CHECK(pe_grid_fit(&grid, PE_DTYPE_Q4_0, w + 32 * b, h), "unexpected");
        memcpy(&d, out + 18 * b, 2);
        CHECK_U64(d, grid.d);
    }
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, importance, 2, 63, err), PE_ERR_ARG,
                "rows of whole blocks of 32 weights, found rows of 63");
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_F16, w, importance, 2, 64, err),
                PE_ERR_UNSUPPORTED, "F16");
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, importance, 1ull << 62, 64, err),
                PE_ERR_ARG, "size in memory");
    importance[5] = -1.0f;
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, importance, 2, 64, err), PE_ERR_ARG,
                "importance 5: expected 0 or more, found -1");
    importance[5] = NAN;
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, importance, 2, 64, err), PE_ERR_NUMERIC,
                "importance 5");
    w[77] = INFINITY;
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, NULL, 2, 64, err), PE_ERR_NUMERIC,
                "weight 77: expected a number, found inf");
    w[77] = 1e9f;
    CHECK_FAILS(pe_quantize_weighted(out, PE_DTYPE_Q4_0, w, NULL, 2, 64, err), PE_ERR_NUMERIC,
                "weights 64 to 95");
}

static float stored(float x, uint32_t source) {
    if (source == PE_DTYPE_F32) {
        return x;
    }
    return source == PE_DTYPE_F16 ? pe_f16_to_f32(pe_f16_from_f32(x))
                                  : pe_bf16_to_f32(pe_bf16_from_f32(x));
}

/* Random grids, of few levels too, are found again; with one weight moved they are not. */
static void lattices(void) {
    static const uint32_t sources[] = {PE_DTYPE_F32, PE_DTYPE_F16, PE_DTYPE_BF16};
    for (size_t t = 0; t < 5; t++) {
        for (int turn = 0; turn < 600; turn++) {
            const uint32_t source = sources[turn % 3];
            pe_grid grid;
            pe_grid_init(&grid, TYPES[t]);
            grid.d = pe_f16_from_f32(rng_f32(0.001f, 0.02f));
            grid.d = (pe_f16)(grid.d | (grid.has_min ? 0 : rng_below(2) << 15));
            grid.m = grid.has_min ? pe_f16_from_f32(rng_f32(-0.1f, 0.05f)) : 0;
            pe_grid_derive(&grid);
            const int n_levels = grid.high - grid.low + 1;
            const int used = 2 + (int)rng_below((uint32_t)n_levels - 1);
            float w[32];
            for (size_t i = 0; i < 32; i++) {
                const int level = grid.low + (n_levels - used) / 2 + (int)rng_below((uint32_t)used);
                w[i] = stored(pe_grid_value(&grid, i, level), source);
            }
            pe_grid found;
            int8_t levels[32];
            const bool is_found = pe_lattice_find(&found, levels, TYPES[t], w, source);
            CHECK(is_found, "type %u, source %u, %d levels", TYPES[t], source, used);
            for (size_t i = 0; is_found && i < 32; i++) {
                const float value = stored(pe_grid_value(&found, i, levels[i]), source);
                CHECK(value == w[i], "type %u: %g is not %g", TYPES[t], (double)value,
                      (double)w[i]);
            }
            w[rng_below(32)] += 0.37f * fabsf(grid.step[0]);
            if (used > 8) {
                CHECK(!pe_lattice_find(&found, levels, TYPES[t], w, source) ||
                          TYPES[t] == PE_DTYPE_Q8_0,
                      "type %u, source %u, %d levels", TYPES[t], source, used);
            }
        }
        float w[32] = {0.0f};
        pe_grid found;
        int8_t levels[32];
        CHECK(pe_lattice_find(&found, levels, TYPES[t], w, PE_DTYPE_F32), "zeros");
        w[3] = NAN;
        CHECK(!pe_lattice_find(&found, levels, TYPES[t], w, PE_DTYPE_F32), "NaN");
        for (size_t i = 0; i < 32; i++) {
            w[i] = bell();
        }
        CHECK(!pe_lattice_find(&found, levels, TYPES[t], w, PE_DTYPE_BF16), "any weights");
    }
}

int main(void) {
    static const test_case tests[] = {
        TEST(same_bits),      TEST(rounds_to_nearest), TEST(exact_scales), TEST(beats_plain),
        TEST(ends_of_floats), TEST(whole_rows),        TEST(lattices),     TEST(turns),
    };
    return run_tests(tests, sizeof tests / sizeof tests[0]);
}
