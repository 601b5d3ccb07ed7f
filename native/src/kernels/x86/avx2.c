/* Kernels for AVX2 with FMA and F16C: eight rows, or eight positions, in lanes.
 *
 * Each gives the bits of its namesake in scalar.c; the order of its float
 * operations is argued there and in pe_kernels.h, not again here.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

/* The instruction sets are switched on for this file alone, so that the whole core
 * compiles with one set of flags. Everything but the last function is static: no
 * copy of an inline function that uses AVX2 can reach other files. */
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#endif

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

/* Floats per register, and weight rows of one tile. */
#define WIDTH 8

/* ---- shared ----------------------------------------------------------- */

INLINE __m256 exp_f32x8(__m256 x) {
    const __m256 magic = _mm256_set1_ps(PE_EXP_MAGIC);
    // The second operand is what a NaN comparison returns.
    x = _mm256_max_ps(_mm256_set1_ps(PE_EXP_MIN), x);
    x = _mm256_min_ps(_mm256_set1_ps(PE_EXP_MAX), x);
    const __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(PE_EXP_LOG2E), magic);
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    const __m256 n_f32 = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fmadd_ps(n_f32, _mm256_set1_ps(-PE_EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n_f32, _mm256_set1_ps(-PE_EXP_LN2_LO), r);
    __m256 p = _mm256_set1_ps(PE_EXP_P0);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PE_EXP_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PE_EXP_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PE_EXP_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PE_EXP_P4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PE_EXP_P5));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    const __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(scale));
}

/* ---- activations ------------------------------------------------------ */

static void quantize_acts_avx2(pe_act_block *out, const float *x, size_t n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256 magic = _mm256_set1_ps(0x1.8p+23f);
    for (size_t b = 0; b < n / PE_BLOCK; b++, x += PE_BLOCK) {
        __m256 v[4];
        __m256i max_i32x8 = _mm256_setzero_si256();
        for (size_t i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + WIDTH * i);
            max_i32x8 =
                _mm256_max_epu32(max_i32x8, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        __m128i m = _mm_max_epu32(_mm256_castsi256_si128(max_i32x8),
                                  _mm256_extracti128_si256(max_i32x8, 1));
        m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
        m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
        const uint32_t max_bits = (uint32_t)_mm_cvtsi128_si32(m);
        if (max_bits >= 0x7f800000u) {
            out[b] = (pe_act_block){.d = NAN};
            continue;
        }
        const float max = pe_f32_from_bits(max_bits);
        const __m256 inverse = _mm256_set1_ps(max >= 0x1p-119f ? 127.0f / max : 0.0f);
        __m256i q[4];
        for (size_t i = 0; i < 4; i++) {
            const __m256 rounded = _mm256_add_ps(_mm256_mul_ps(v[i], inverse), magic);
            q[i] = _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_castps_si256(magic));
        }
        // Lanes 0 and 1 of the 64-bit pairs end as the sums of both halves.
        const __m256i halves =
            _mm256_hadd_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
        const __m128i pairs =
            _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
        const __m128i sums = _mm_hadd_epi32(pairs, pairs);
        // Packing works within 128-bit halves; the permutation puts the 4-byte
        // groups back in order.
        const __m256i packed =
            _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        out[b].d = max / 127.0f;
        const __m128 floats = _mm_cvtepi32_ps(sums);
        out[b].sum = _mm_cvtss_f32(_mm_add_ss(floats, _mm_movehdup_ps(floats)));
        _mm_storel_pi((void *)out[b].half, floats);
        _mm256_storeu_si256((void *)out[b].q, _mm256_permutevar8x32_epi32(packed, order));
    }
}

/* ---- rows ------------------------------------------------------------- */

/* Writes the first n_valid of eight rows' results. */
INLINE void store_rows(float *out, __m256 values, size_t n_valid) {
    if (n_valid == WIDTH) {
        _mm256_storeu_ps(out, values);
        return;
    }
    float all[WIDTH];
    _mm256_storeu_ps(all, values);
    memcpy(out, all, n_valid * sizeof *out);
}

/* ---- products of quantized weights ------------------------------------ */

#define TILE_SUMS 8  // twice, where sums of pairs are widened within a unit
#define TILE_SUMS_TWO 6

#include "panels256.h"

/* Signed types have no offset here: they lend their sign to the activations. */
INLINE bool offset_in_start(panel_kind kind) {
    return kind.limit <= 127;
}

/* Fours whose products of pairs add up within 16 bits: 2 * limit * 127 * run < 2^15. */
INLINE size_t run_of(int limit) {
    return limit <= 15 ? 8 : limit <= 31 ? 4 : limit <= 63 ? 2 : 1;
}

/* Products added in pairs to 16 bits. maddubs multiplies unsigned by signed. Weights of the
 * signed types meet it as magnitudes, the activations, never -128, taking their sign:
 * 128 * 127 twice is still below 2^15. */
INLINE __m256i maddubs(__m256i w, __m256i x, int limit) {
    if (limit <= 127) {
        return _mm256_maddubs_epi16(w, x);
    }
    const __m256i sign = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(sign), _mm256_sign_epi8(x, sign));
}

INLINE void sum_fours(vec (*isum)[VECS], const vec *start, const panel *w, size_t u, size_t f,
                      size_t n_fours, const pe_act_block *const *x, size_t n_tile_cols,
                      size_t n_vecs, panel_kind kind) {
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t run = PE_MIN(run_of(kind.limit), n_fours);
#pragma GCC unroll 8
    for (size_t first = 0; first < n_fours; first += run) {
        __m256i pairs[MAX_TILE_COLS][VECS];
#pragma GCC unroll 8
        for (size_t i = first; i < first + run; i++) {
#pragma GCC unroll 2
            for (size_t v = 0; v < n_vecs; v++) {
                const __m256i q = _mm256_load_si256((const void *)w->q[u][f + i][8 * v]);
#pragma GCC unroll 6
                for (size_t c = 0; c < n_tile_cols; c++) {
                    const __m256i two =
                        maddubs(q, broadcast_four(x[c]->q + 4 * (f + i)), kind.limit);
                    pairs[c][v] = i == first ? two : _mm256_add_epi16(pairs[c][v], two);
                    // Else GCC adds up in a tree, for which all products wait in memory.
                    __asm__("" : "+x"(pairs[c][v]));
                }
            }
        }
#pragma GCC unroll 6
        for (size_t c = 0; c < n_tile_cols; c++) {
#pragma GCC unroll 2
            for (size_t v = 0; v < n_vecs; v++) {
                isum[c][v] = _mm256_add_epi32(first == 0 ? start[c] : isum[c][v],
                                              _mm256_madd_epi16(pairs[c][v], ones));
            }
        }
    }
}

INLINE vec dot_fours(vec start, const vec *fours, size_t n_fours, const int8_t *x, int limit) {
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t run = PE_MIN(run_of(limit), n_fours);
#pragma GCC unroll 8
    for (size_t first = 0; first < n_fours; first += run) {
        __m256i pairs;
#pragma GCC unroll 8
        for (size_t i = first; i < first + run; i++) {
            const __m256i two = maddubs(fours[i], broadcast_four(x + 4 * i), limit);
            pairs = i == first ? two : _mm256_add_epi16(pairs, two);
            __asm__("" : "+x"(pairs));  // see sum_fours
        }
        start = _mm256_add_epi32(start, _mm256_madd_epi16(pairs, ones));
    }
    return start;
}

INLINE __m256i dot_partial(__m256i w, __m256i x, pe_dtype dtype) {
    return _mm256_madd_epi16(maddubs(w, x, limit_of(dtype)), _mm256_set1_epi16(1));
}

INLINE bool subtracts_offset(pe_dtype dtype) {
    return limit_of(dtype) <= 127;
}

#define MATMUL_QUANT matmul_panels
#define MATMUL_STRIPS matmul_strips
// Six bits and two scales take more to unpack than memory takes: 11 GB/s where rows give 14.
#define GAINS_BY_STRIPS(dtype) ((dtype) != PE_DTYPE_Q6_K)
#define LEVEL avx2
#include "products.h"

/* ---- activation function ---------------------------------------------- */

static void silu_mul_avx2(float *out, const float *gate, const float *up, size_t n) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (size_t i = 0; i < n; i += WIDTH) {
        const size_t n_valid = PE_MIN(n - i, (size_t)WIDTH);
        float padded[2][WIDTH] = {{0}};
        const float *g_at = gate + i;
        const float *u_at = up + i;
        if (n_valid < WIDTH) {
            memcpy(padded[0], g_at, n_valid * sizeof *gate);
            memcpy(padded[1], u_at, n_valid * sizeof *up);
            g_at = padded[0];
            u_at = padded[1];
        }
        const __m256 g = _mm256_loadu_ps(g_at);
        const __m256 minus_g = _mm256_xor_ps(g, _mm256_set1_ps(-0.0f));
        const __m256 s = _mm256_div_ps(g, _mm256_add_ps(one, exp_f32x8(minus_g)));
        store_rows(out + i, _mm256_mul_ps(s, _mm256_loadu_ps(u_at)), n_valid);
    }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_avx2(pe_kernels *kernels) {
    kernels->isa = PE_ISA_AVX2;
    kernels->quantize_acts = quantize_acts_avx2;
    set_products_avx2(kernels);
    kernels->silu_mul = silu_mul_avx2;
}

#else

void pe_kernels_init_avx2(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
