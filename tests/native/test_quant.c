/* Tensor formats: blocks written by hand against their bit maps, rounding, refusals;
 * and the conversions of halves, all 65,536 of them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "pe_dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- blocks by hand --------------------------------------------------- */

static void check_decoded(const char *what, float found, float expected) {
    CHECK(memcmp(&found, &expected, sizeof found) == 0, "%s: found %g instead of %g", what,
          (double)found, (double)expected);
}

static void decode_q4(void) {
    uint8_t block[20] = {0x00, 0x38};  // d = 0.5
    float out[32];
    for (size_t i = 0; i < 16; i++) {
        block[2 + i] = (uint8_t)(i | (15 - i) << 4);
    }
    CHECK_OK(pe_dequantize(out, PE_DTYPE_Q4_0, block, 32, err));
    for (int i = 0; i < 16; i++) {
        check_decoded("low nibble", out[i], 0.5f * (float)(i - 8));
        check_decoded("high nibble", out[i + 16], 0.5f * (float)(7 - i));
    }
    memmove(block + 4, block + 2, 16);
    block[2] = 0x00;
    block[3] = 0xc5;  // m = -5
    CHECK_OK(pe_dequantize(out, PE_DTYPE_Q4_1, block, 32, err));
    for (int i = 0; i < 16; i++) {
        check_decoded("low nibble", out[i], 0.5f * (float)i - 5.0f);
        check_decoded("high nibble", out[i + 16], 0.5f * (float)(15 - i) - 5.0f);
    }
}

static void decode_q8_0(void) {
    uint8_t blocks[68] = {0x00, 0xb4};  // d = -0.25, then a block with d = 2
    blocks[35] = 0x40;
    float out[64];
    for (size_t i = 0; i < 32; i++) {
        blocks[2 + i] = (uint8_t)(i * 8);
        blocks[36 + i] = (uint8_t)(255 - i);
    }
    CHECK_OK(pe_dequantize(out, PE_DTYPE_Q8_0, blocks, 64, err));
    for (int i = 0; i < 32; i++) {
        check_decoded("first", out[i], -0.25f * (float)(i < 16 ? i * 8 : i * 8 - 256));
        check_decoded("second", out[32 + i], 2.0f * (float)(-1 - i));
    }
}

/* Each weight's six bits alone, with a scale that tells its sub-block. */
static void decode_q6_k(void) {
    for (size_t j = 0; j < 256; j++) {
        uint8_t block[210] = {0};
        float out[256];
        const size_t in_half = j % 128;
        block[j / 128 * 64 + in_half % 64] |= (uint8_t)(in_half < 64 ? 0x0d : 0xd0);
        block[128 + j / 128 * 32 + in_half % 32] |= (uint8_t)(2 << in_half / 32 * 2);
        for (size_t s = 0; s < 16; s++) {
            block[192 + s] = (uint8_t)(s * 16 - 128);
        }
        block[209] = 0x3c;  // d = 1
        CHECK_OK(pe_dequantize(out, PE_DTYPE_Q6_K, block, 256, err));
        for (size_t i = 0; i < 256; i++) {
            const int scale = (int)(i / 16) * 16 - 128;
            check_decoded("q6_k", out[i], (float)scale * (float)((i == j ? 0x2d : 0) - 32));
        }
    }
}

static void encode_by_hand(void) {
    float x[32];
    uint8_t block[34];
    // Q8_0 with d = 1: integers stay, halves go away from zero.
    for (int i = 0; i < 32; i++) {
        x[i] = i == 31 ? -127.0f : (float)(i - 16) * 0.5f;
    }
    CHECK_OK(pe_quantize(block, PE_DTYPE_Q8_0, x, 32, err));
    CHECK(block[0] == 0x00 && block[1] == 0x3c, "d %02x%02x", block[1], block[0]);
    for (int i = 0; i < 31; i++) {
        const int away = i >= 16 ? (i - 16 + 1) / 2 : -((16 - i + 1) / 2);
        CHECK_U64((int8_t)block[2 + i], away);
    }
    CHECK_U64((int8_t)block[33], -127);
    // Q4_0: the widest is -8; of equals the first decides the sign of d.
    for (int i = 0; i < 32; i++) {
        x[i] = (float)(i % 16 - 8);
    }
    x[20] = 3.49f;
    x[21] = 3.5f;
    CHECK_OK(pe_quantize(block, PE_DTYPE_Q4_0, x, 32, err));
    CHECK(block[0] == 0x00 && block[1] == 0x3c, "d %02x%02x", block[1], block[0]);
    for (int i = 0; i < 16; i++) {
        CHECK_U64(block[2 + i] & 15, i);
        CHECK_U64(block[2 + i] >> 4, i == 4 ? 11 : i == 5 ? 12 : i);
    }
    x[0] = 8.0f;  // before the -8 of x[16]
    CHECK_OK(pe_quantize(block, PE_DTYPE_Q4_0, x, 32, err));
    CHECK(block[1] == 0xbc, "d %02x%02x", block[1], block[0]);
    CHECK_U64(block[2], 0xf0);  // 8 is q 0; -8 would be q 16 and is held to 15
    // Q4_1: from -3 in steps of 1.
    for (int i = 0; i < 32; i++) {
        x[i] = (float)(i % 16) - 3.0f + (i > 16 && i < 31 ? 0.4f : 0.0f);
    }
    CHECK_OK(pe_quantize(block, PE_DTYPE_Q4_1, x, 32, err));
    CHECK(block[1] == 0x3c && block[2] == 0x00 && block[3] == 0xc2, "d %02x m %02x%02x", block[1],
          block[3], block[2]);
    for (int i = 0; i < 16; i++) {
        CHECK_U64(block[4 + i], i * 17);
    }
}

static void encode_zeros(void) {
    static const struct {
        uint32_t dtype;
        size_t n_bytes;
        uint8_t second, quants;
    } table[] = {
        {PE_DTYPE_Q4_0, 18, 0x80, 0x88},  // d is -0: zero over -8
        {PE_DTYPE_Q4_1, 20, 0, 0},
        {PE_DTYPE_Q8_0, 34, 0, 0},
    };
    const float x[32] = {0};
    for (size_t t = 0; t < PE_LEN(table); t++) {
        uint8_t *block = guarded(0, table[t].n_bytes);
        CHECK_OK(pe_quantize(block, table[t].dtype, x, 32, err));
        CHECK_U64(block[1], table[t].second);
        for (size_t i = table[t].dtype == PE_DTYPE_Q4_1 ? 4 : 2; i < table[t].n_bytes; i++) {
            CHECK_U64(block[i], table[t].quants);
        }
        float out[32];
        CHECK_OK(pe_dequantize(out, table[t].dtype, block, 32, err));
        for (size_t i = 0; i < 32; i++) {
            CHECK(out[i] == 0.0f, "found %g", (double)out[i]);
        }
    }
}

/* Every type's blocks end where they should; zeros come back as zeros. */
static void encode_all(void) {
    for (uint32_t dtype = 0; dtype < PE_DTYPE_END; dtype++) {
        const pe_dtype_traits *traits = pe_dtype_find(dtype);
        if (traits == NULL || traits->pack_block == NULL) {
            continue;
        }
        const pe_dtype_info info = traits->info;
        CHECK(info.can_quantize && info.can_compute, "%s", info.name);
        const size_t n = 2 * info.block_weights;
        float *x = guarded(0, n * sizeof *x);
        float *out = guarded(1, n * sizeof *out);
        for (uint32_t round = 0; round < 200; round++) {
            const float width = round == 0 ? 0.0f : ldexpf(1.0f, (int)rng_below(20) - 6);
            for (size_t i = 0; i < n; i++) {
                x[i] = rng_below(3) == 0 ? 0.0f : rng_f32(-width, width);
            }
            uint8_t *blocks = guarded(2, 2 * info.block_bytes);
            CHECK_OK(pe_quantize(blocks, dtype, x, n, err));
            CHECK_OK(pe_dequantize(out, dtype, blocks, n, err));
            for (size_t i = 0; i < n; i++) {
                // The coarsest, Q2_K, has steps of up to two thirds of the width.
                CHECK(fabsf(out[i] - x[i]) <= 0.5f * width, "%s: %g became %g of width %g",
                      info.name, (double)x[i], (double)out[i], (double)width);
            }
            check_guards();
        }
    }
}

/* A weight comes back within half a step, or a whole one where Q4_0 clips; the step
 * is kept to 11 bits. */
static void round_trip(void) {
    for (uint32_t round = 0; round < 3000; round++) {
        const uint32_t dtype = round % 3 == 0   ? PE_DTYPE_Q4_0
                               : round % 3 == 1 ? PE_DTYPE_Q4_1
                                                : PE_DTYPE_Q8_0;
        pe_dtype_info info;
        CHECK_OK(pe_dtype_describe(&info, dtype, err));
        float *x = guarded(0, 64 * sizeof *x);
        float *out = guarded(1, 64 * sizeof *out);
        uint8_t *blocks = guarded(2, 2 * info.block_bytes);
        const float width = ldexpf(1.0f, (int)rng_below(14) - 2);
        for (size_t i = 0; i < 64; i++) {
            x[i] = rng_f32(-width, width);
        }
        CHECK_OK(pe_quantize(blocks, dtype, x, 64, err));
        CHECK_OK(pe_dequantize(out, dtype, blocks, 64, err));
        for (size_t i = 0; i < 64; i++) {
            const float step = dtype == PE_DTYPE_Q4_0   ? width / 8.0f
                               : dtype == PE_DTYPE_Q4_1 ? width / 15.0f
                                                        : width / 254.0f;
            CHECK(fabsf(out[i] - x[i]) <= step * 1.001f + width * 0x1p-10f,
                  "%s: %g became %g of width %g", info.name, (double)x[i], (double)out[i],
                  (double)width);
        }
        check_guards();
    }
}

/* ---- refusals --------------------------------------------------------- */

static void refusals(void) {
    float x[64];
    uint8_t out[256];
    float decoded[64];
    static const uint32_t block_types[] = {PE_DTYPE_Q4_0, PE_DTYPE_Q4_1, PE_DTYPE_Q5_0,
                                           PE_DTYPE_Q5_1, PE_DTYPE_Q8_0, PE_DTYPE_IQ4_NL};
    for (size_t t = 0; t < PE_LEN(block_types); t++) {
        const uint32_t dtype = block_types[t];
        for (size_t i = 0; i < 64; i++) {
            x[i] = (float)i;
        }
        CHECK_FAILS(pe_quantize(out, dtype, x, 33, err), PE_ERR_ARG, "whole blocks of 32");
        CHECK_FAILS(pe_dequantize(decoded, dtype, out, 31, err), PE_ERR_ARG, "found 31 weights");
        x[37] = NAN;
        CHECK_FAILS(pe_quantize(out, dtype, x, 64, err), PE_ERR_NUMERIC, "weight 37");
        x[37] = 1.0f;
        x[63] = -INFINITY;
        CHECK_FAILS(pe_quantize(out, dtype, x, 64, err), PE_ERR_NUMERIC, "weight 63");
        x[63] = 1e30f;
        CHECK_FAILS(pe_quantize(out, dtype, x, 64, err), PE_ERR_NUMERIC, "weights 32 to 63");
    }
    static const uint32_t super_types[] = {PE_DTYPE_Q2_K, PE_DTYPE_Q3_K, PE_DTYPE_Q4_K,
                                           PE_DTYPE_Q5_K, PE_DTYPE_Q6_K, PE_DTYPE_IQ4_XS};
    static const float too_large[] = {3e9f, 1e13f, 1e20f, 3.4e38f};  // sums overflow at last
    for (size_t t = 0; t < PE_LEN(super_types); t++) {
        float wide[512] = {0};
        uint8_t blocks[2 * sizeof(pe_block_q6_k)];
        for (size_t v = 0; v < PE_LEN(too_large); v++) {
            wide[260] = too_large[v];
            wide[500] = -1.0f;
            CHECK_FAILS(pe_quantize(blocks, super_types[t], wide, 512, err), PE_ERR_NUMERIC,
                        "weights 256 to 511");
        }
        wide[511] = NAN;
        CHECK_FAILS(pe_quantize(blocks, super_types[t], wide, 512, err), PE_ERR_NUMERIC,
                    "weight 511");
    }
    // The last scale that fits fp16, and the next; for Q4_1 the minimum too.
    x[63] = 65519.0f * 127.0f;
    CHECK_OK(pe_quantize(out, PE_DTYPE_Q8_0, x, 64, err));
    x[63] = 65520.0f * 127.0f;
    CHECK_FAILS(pe_quantize(out, PE_DTYPE_Q8_0, x, 64, err), PE_ERR_NUMERIC, "fits fp16");
    for (size_t i = 0; i < 32; i++) {
        x[i] = 70000.0f;
    }
    CHECK_FAILS(pe_quantize(out, PE_DTYPE_Q4_1, x, 32, err), PE_ERR_NUMERIC, "weights 0 to 31");
    CHECK_OK(pe_quantize(out, PE_DTYPE_Q4_0, x, 32, err));
    x[0] = 3.4e38f;
    x[1] = -3.4e38f;  // their difference overflows
    CHECK_FAILS(pe_quantize(out, PE_DTYPE_Q4_1, x, 32, err), PE_ERR_NUMERIC, "fits fp16");

    CHECK_FAILS(pe_quantize(out, 9, x, 32, err), PE_ERR_UNSUPPORTED, "Q8_1");
    CHECK_FAILS(pe_quantize(out, PE_DTYPE_Q6_K, x, 32, err), PE_ERR_ARG, "whole blocks of 256");
    CHECK_FAILS(pe_dequantize(decoded, PE_DTYPE_Q6_K, out, 128, err), PE_ERR_ARG, "256");
    CHECK_FAILS(pe_dequantize(decoded, 16, out, 256, err), PE_ERR_UNSUPPORTED, "IQ2_XXS");
    CHECK_FAILS(pe_quantize(out, 99, x, 32, err), PE_ERR_UNSUPPORTED, "99");
    static const uint32_t holes[] = {4, 5, 31, 36, 38, 42, UINT32_MAX};
    pe_dtype_info info;
    for (size_t i = 0; i < PE_LEN(holes); i++) {
        CHECK_FAILS(pe_dtype_describe(&info, holes[i], err), PE_ERR_UNSUPPORTED, "tensor type");
    }
    CHECK(pe_quantize(out, 99, x, 32, NULL) == PE_ERR_UNSUPPORTED, "without an error record");
    CHECK_OK(pe_quantize(out, PE_DTYPE_Q8_0, x, 0, err));
    // Float types take what is not a number.
    const float odd[2] = {NAN, INFINITY};
    CHECK_OK(pe_quantize(out, PE_DTYPE_F16, odd, 2, err));
    CHECK(memcmp(out, "\x00\x7e\x00\x7c", 4) == 0, "found %02x%02x", out[1], out[0]);
    CHECK_OK(pe_quantize(out, PE_DTYPE_BF16, odd, 2, err));
    CHECK(memcmp(out, "\xc0\x7f\x80\x7f", 4) == 0, "found %02x%02x", out[1], out[0]);
}

/* ---- halves ----------------------------------------------------------- */

/* The processor's own conversions, the judge of ours. */
#if defined(__x86_64__)
static bool has_judge(void) {
    return __builtin_cpu_supports("avx2") != 0;  // never without F16C; clang 14 cannot ask for that
}
__attribute__((target("f16c"))) static float judge_widen(uint16_t h) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}
__attribute__((target("f16c"))) static uint16_t judge_narrow(float x) {
    return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
static bool has_judge(void) {
    return true;
}
static float judge_widen(uint16_t bits) {
    __fp16 h;
    memcpy(&h, &bits, sizeof h);
    return (float)h;
}
static uint16_t judge_narrow(float x) {
    const __fp16 h = (__fp16)x;
    uint16_t bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}
#else
static bool has_judge(void) {
    return false;
}
static float judge_widen(uint16_t h) {
    return (float)h;
}
static uint16_t judge_narrow(float x) {
    return (uint16_t)x;
}
#endif

static float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void halves(void) {
    for (uint32_t h = 0; h <= 0xffff; h++) {
        const float x = pe_f16_to_f32((pe_f16)h);
        const uint32_t quiet = (h & 0x7fffu) > 0x7c00u ? 0x0200u : 0;
        CHECK_U64(pe_f16_from_f32(x), h | quiet);
        CHECK_U64(to_bits(pe_bf16_to_f32((pe_bf16)h)), h << 16);
        CHECK_U64(pe_bf16_from_f32(from_bits(h << 16)), (h & 0x7fffu) > 0x7f80u ? h | 0x40 : h);
        if (has_judge()) {
            CHECK_U64(to_bits(x), to_bits(judge_widen((uint16_t)h)));
        }
        if ((h & 0x7fffu) < 0x7c00u) {
            const double exponent = h >> 10 & 31;
            const double value = ldexp((h & 0x3ff) + (exponent > 0 ? 1024.0 : 0.0),
                                       (int)(exponent > 0 ? exponent : 1) - 25);
            CHECK(fabs((double)x) == value && (signbit(x) != 0) == (h > 0x7fff), "%04x: %g", h,
                  (double)x);
        }
    }
}

/* Between two neighbours the nearer wins, in the middle the even one. */
static void ties(void) {
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const float low = pe_f16_to_f32((pe_f16)h);
        const float high = h + 1 < 0x7c00 ? pe_f16_to_f32((pe_f16)(h + 1)) : 65536.0f;
        const float middle = low + (high - low) / 2.0f;
        const uint32_t even = h % 2 == 0 ? h : h + 1;
        CHECK_U64(pe_f16_from_f32(middle), even);
        CHECK_U64(pe_f16_from_f32(-middle), even | 0x8000u);
        CHECK_U64(pe_f16_from_f32(nextafterf(middle, 0.0f)), h);
        CHECK_U64(pe_f16_from_f32(nextafterf(middle, 1e9f)), h + 1);
    }
    for (uint32_t h = 0; h < 0x7f80; h++) {
        const uint32_t even = h % 2 == 0 ? h : h + 1;
        CHECK_U64(pe_bf16_from_f32(from_bits(h << 16 | 0x8000u)), even);
        CHECK_U64(pe_bf16_from_f32(from_bits(h << 16 | 0x80008000u)), even | 0x8000u);
        CHECK_U64(pe_bf16_from_f32(from_bits(h << 16 | 0x7fffu)), h);
        CHECK_U64(pe_bf16_from_f32(from_bits(h << 16 | 0x8001u)), h + 1);
    }
    for (uint32_t i = 0; has_judge() && i < 2000000; i++) {
        const uint32_t bits = (uint32_t)(rng_u64() >> 32);
        CHECK_U64(pe_f16_from_f32(from_bits(bits)), judge_narrow(from_bits(bits)));
    }
}

int main(void) {
    static const test_case tests[] = {
        TEST(decode_q4),    TEST(decode_q8_0), TEST(decode_q6_k), TEST(encode_by_hand),
        TEST(encode_zeros), TEST(encode_all),  TEST(round_trip),  TEST(refusals),
        TEST(halves),       TEST(ties),
    };
    return run_tests(tests, PE_LEN(tests));
}
