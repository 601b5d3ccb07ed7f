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

/* Sum of 8 lanes: i and i + 4, i and i + 2, 0 and 1. */
INLINE float add_lanes(__m256 v_f32x8) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(v_f32x8), _mm256_extractf128_ps(v_f32x8, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    v = _mm_add_ss(v, _mm_movehdup_ps(v));
    return _mm_cvtss_f32(v);
}

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

/* Eight numbers of a float type, widened; i counts elements. */
INLINE __m256 load_f32x8(const void *data, size_t i, pe_dtype dtype) {
    if (dtype == PE_DTYPE_F32) {
        return _mm256_loadu_ps((const float *)data + i);
    }
    const __m128i halves = _mm_loadu_si128((const void *)((const uint16_t *)data + i));
    if (dtype == PE_DTYPE_F16) {
        return _mm256_cvtph_ps(halves);
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
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
        const __m256i sum_i32x8 =
            _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum_i32x8),
                                  _mm256_extracti128_si256(sum_i32x8, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        // Packing works within 128-bit halves; the permutation puts the 4-byte
        // groups back in order.
        const __m256i packed =
            _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        out[b].d = max / 127.0f;
        out[b].sum = _mm_cvtsi128_si32(s);
        _mm256_storeu_si256((void *)out[b].q, _mm256_permutevar8x32_epi32(packed, order));
    }
}

/* ---- products of quantized weights ------------------------------------ */

/* What the tile needs to know of a format: where its blocks are and how 32 weights
 * of it become bytes. All of it folds away: dtype is a constant in every caller. */

/* Bytes from one run of 32 weights to the next; Q6_K's lie inside a super-block. */
INLINE const uint8_t *block_of(const uint8_t *row, size_t b, pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return row + b * sizeof(pe_block_q4_0);
    case PE_DTYPE_Q4_1: return row + b * sizeof(pe_block_q4_1);
    case PE_DTYPE_Q8_0: return row + b * sizeof(pe_block_q8_0);
    default: return row + b / 8 * sizeof(pe_block_q6_k);
    }
}

INLINE uint16_t scale_of(const uint8_t *block, pe_dtype dtype) {
    const size_t at = dtype == PE_DTYPE_Q6_K ? offsetof(pe_block_q6_k, d) : 0;
    uint16_t bits;
    memcpy(&bits, block + at, sizeof bits);
    return bits;
}

/* The weights' integers: unsigned for Q4_0 (with offset 8) and Q4_1, else signed. */
INLINE __m256i bytes_of(const uint8_t *block, size_t b, pe_dtype dtype) {
    const __m256i low4 = _mm256_set1_epi8(15);
    if (dtype == PE_DTYPE_Q8_0) {
        return _mm256_loadu_si256((const void *)((const pe_block_q8_0 *)block)->q);
    }
    if (dtype == PE_DTYPE_Q6_K) {
        const pe_block_q6_k *super = (const void *)block;
        const size_t half = b % 8 / 4;
        const size_t n = b % 4;
        __m256i low = _mm256_loadu_si256((const void *)(super->low + 64 * half + 32 * (n % 2)));
        __m256i high = _mm256_loadu_si256((const void *)(super->high + 32 * half));
        low = _mm256_and_si256(n / 2 != 0 ? _mm256_srli_epi16(low, 4) : low, low4);
        high = _mm256_srl_epi16(high, _mm_cvtsi32_si128((int)(2 * n)));
        high = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4);
        return _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
    }
    const uint8_t *nibbles = dtype == PE_DTYPE_Q4_0 ? ((const pe_block_q4_0 *)block)->q
                                                    : ((const pe_block_q4_1 *)block)->q;
    const __m128i packed = _mm_loadu_si128((const void *)nibbles);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), low4);
}

/* What the sums of 16-bit pairs are multiplied with: sub-block scales, or 1. */
INLINE __m256i pair_scales(const uint8_t *block, size_t b, pe_dtype dtype) {
    if (dtype != PE_DTYPE_Q6_K) {
        return _mm256_set1_epi16(1);
    }
    const int8_t *scale = ((const pe_block_q6_k *)block)->scale + 2 * (b % 8);
    return _mm256_set_m128i(_mm_set1_epi16(scale[1]), _mm_set1_epi16(scale[0]));
}

/* Eight partial int32 sums of 32 products. maddubs multiplies unsigned by signed
 * and adds pairs in 16 bits: 2 * 128 * 127 < 2^15 holds for every format. Signed
 * weights lend their sign to the activations, which are never -128; a weight of
 * -128 becomes the unsigned 128. */
INLINE __m256i dot_partial(__m256i w, __m256i scales, __m256i x, pe_dtype dtype) {
    const bool is_signed = dtype == PE_DTYPE_Q8_0 || dtype == PE_DTYPE_Q6_K;
    const __m256i pairs = is_signed
                              ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                              : _mm256_maddubs_epi16(w, x);
    return _mm256_madd_epi16(pairs, scales);
}

/* Eight rows against n_tile_cols columns (a constant, at most 4). */
INLINE void tile_q8(__m256 *acc, const uint8_t *const *rows, const uint8_t *acts, size_t act_bytes,
                    size_t n_tile_cols, size_t n_k, pe_dtype dtype) {
    for (size_t c = 0; c < n_tile_cols; c++) {
        acc[c] = _mm256_setzero_ps();
    }
    for (size_t b = 0; b < n_k / PE_BLOCK; b++) {
        // pairs[c][i]: rows 2 i and 2 i + 1, added horizontally once.
        __m256i pairs[4][WIDTH / 2];
        uint16_t d[WIDTH];
        uint16_t m[WIDTH];
        for (size_t r = 0; r < WIDTH; r += 2) {
            const uint8_t *even = block_of(rows[r], b, dtype);
            const uint8_t *odd = block_of(rows[r + 1], b, dtype);
            const __m256i w_even = bytes_of(even, b, dtype);
            const __m256i w_odd = bytes_of(odd, b, dtype);
            const __m256i s_even = pair_scales(even, b, dtype);
            const __m256i s_odd = pair_scales(odd, b, dtype);
            d[r] = scale_of(even, dtype);
            d[r + 1] = scale_of(odd, dtype);
            if (dtype == PE_DTYPE_Q4_1) {
                m[r] = ((const pe_block_q4_1 *)even)->m;
                m[r + 1] = ((const pe_block_q4_1 *)odd)->m;
            }
            for (size_t c = 0; c < n_tile_cols; c++) {
                const pe_act_block *x = (const pe_act_block *)(acts + c * act_bytes) + b;
                const __m256i q = _mm256_loadu_si256((const void *)x->q);
                pairs[c][r / 2] = _mm256_hadd_epi32(dot_partial(w_even, s_even, q, dtype),
                                                    dot_partial(w_odd, s_odd, q, dtype));
            }
        }
        const __m256 dw = _mm256_cvtph_ps(_mm_loadu_si128((const void *)d));
        for (size_t c = 0; c < n_tile_cols; c++) {
            const pe_act_block *x = (const pe_act_block *)(acts + c * act_bytes) + b;
            const __m256i rows0123 = _mm256_hadd_epi32(pairs[c][0], pairs[c][1]);
            const __m256i rows4567 = _mm256_hadd_epi32(pairs[c][2], pairs[c][3]);
            __m256i isum = _mm256_add_epi32(_mm256_permute2x128_si256(rows0123, rows4567, 0x20),
                                            _mm256_permute2x128_si256(rows0123, rows4567, 0x31));
            if (dtype == PE_DTYPE_Q4_0) {  // sum of (q - 8) a = sum of q a - 8 sum of a
                isum = _mm256_sub_epi32(isum, _mm256_set1_epi32(8 * x->sum));
            }
            acc[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum),
                                     _mm256_mul_ps(dw, _mm256_set1_ps(x->d)), acc[c]);
            if (dtype == PE_DTYPE_Q4_1) {
                const __m256 mw = _mm256_cvtph_ps(_mm_loadu_si128((const void *)m));
                acc[c] = _mm256_fmadd_ps(mw, _mm256_set1_ps(x->d * (float)x->sum), acc[c]);
            }
        }
    }
}

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

/* Rows past the last are the last one again; their results are dropped. */
INLINE size_t tile_rows(const uint8_t **rows, const void *weights, size_t row_bytes, size_t r,
                        size_t n_rows, size_t n_tile_rows) {
    for (size_t i = 0; i < n_tile_rows; i++) {
        rows[i] = (const uint8_t *)weights + PE_MIN(r + i, n_rows - 1) * row_bytes;
    }
    return PE_MIN(n_rows - r, n_tile_rows);
}

INLINE void matmul_q8(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                      size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols, size_t n_k,
                      pe_dtype dtype) {
    for (size_t r = 0; r < n_rows; r += WIDTH) {
        const uint8_t *rows[WIDTH];
        const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, WIDTH);
        size_t c = 0;
        while (c < n_cols) {
            const uint8_t *x = (const uint8_t *)acts + c * act_bytes;
            const size_t n_tile_cols = n_cols - c >= 4 ? 4 : 1;
            __m256 acc[4];
            if (n_tile_cols == 4) {
                tile_q8(acc, rows, x, act_bytes, 4, n_k, dtype);
            } else {
                tile_q8(acc, rows, x, act_bytes, 1, n_k, dtype);
            }
            for (size_t i = 0; i < n_tile_cols; i++) {
                store_rows(out + (c + i) * out_stride + r, acc[i], n_valid);
            }
            c += n_tile_cols;
        }
    }
}

/* ---- products of float weights ---------------------------------------- */

/* Up to 16 numbers from k on, zeros behind them, in two registers. */
INLINE void load_tail(__m256 *out, const void *data, size_t k, size_t n_k, pe_dtype dtype) {
    uint32_t padded[PE_LANES] = {0};
    const size_t item_bytes = dtype == PE_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    memcpy(padded, (const uint8_t *)data + k * item_bytes, (n_k - k) * item_bytes);
    out[0] = load_f32x8(padded, 0, dtype);
    out[1] = load_f32x8(padded, WIDTH, dtype);
}

/* n_r rows against n_c columns, n_r * n_c <= 4 (constants). */
INLINE void tile_float(float *out, const uint8_t *const *rows, const uint8_t *acts,
                       size_t act_bytes, size_t n_r, size_t n_c, size_t n_k, pe_dtype dtype) {
    __m256 acc[4][2];
    for (size_t i = 0; i < n_r * n_c; i++) {
        acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    }
    const size_t n_whole = n_k / PE_LANES * PE_LANES;
    for (size_t k = 0; k < n_whole; k += PE_LANES) {
        __m256 x[2][2];
        for (size_t c = 0; c < n_c; c++) {
            x[c][0] = load_f32x8(acts + c * act_bytes, k, PE_DTYPE_F32);
            x[c][1] = load_f32x8(acts + c * act_bytes, k + WIDTH, PE_DTYPE_F32);
        }
        for (size_t r = 0; r < n_r; r++) {
            const __m256 w0 = load_f32x8(rows[r], k, dtype);
            const __m256 w1 = load_f32x8(rows[r], k + WIDTH, dtype);
            for (size_t c = 0; c < n_c; c++) {
                acc[r * n_c + c][0] = _mm256_fmadd_ps(w0, x[c][0], acc[r * n_c + c][0]);
                acc[r * n_c + c][1] = _mm256_fmadd_ps(w1, x[c][1], acc[r * n_c + c][1]);
            }
        }
    }
    for (size_t i = 0; i < n_r * n_c; i++) {
        if (n_whole < n_k) {
            __m256 w[2];
            __m256 x[2];
            load_tail(w, rows[i / n_c], n_whole, n_k, dtype);
            load_tail(x, acts + i % n_c * act_bytes, n_whole, n_k, PE_DTYPE_F32);
            acc[i][0] = _mm256_fmadd_ps(w[0], x[0], acc[i][0]);
            acc[i][1] = _mm256_fmadd_ps(w[1], x[1], acc[i][1]);
        }
        out[i] = add_lanes(_mm256_add_ps(acc[i][0], acc[i][1]));
    }
}

INLINE void matmul_float(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                         size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                         size_t n_k, pe_dtype dtype) {
    const uint8_t *rows[4];
    float tile[4];
    size_t c = 0;
    for (; c + 2 <= n_cols; c += 2) {
        const uint8_t *x = (const uint8_t *)acts + c * act_bytes;
        for (size_t r = 0; r < n_rows; r += 2) {
            const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, 2);
            tile_float(tile, rows, x, act_bytes, 2, 2, n_k, dtype);
            for (size_t i = 0; i < 2 * n_valid; i++) {
                out[(c + i % 2) * out_stride + r + i / 2] = tile[i];
            }
        }
    }
    if (c < n_cols) {
        const uint8_t *x = (const uint8_t *)acts + c * act_bytes;
        for (size_t r = 0; r < n_rows; r += 4) {
            const size_t n_valid = tile_rows(rows, weights, row_bytes, r, n_rows, 4);
            tile_float(tile, rows, x, act_bytes, 4, 1, n_k, dtype);
            memcpy(out + c * out_stride + r, tile, n_valid * sizeof *tile);
        }
    }
}

/* Defines matmul_<name>_avx2 as body for one type. */
#define MATMUL(name, body, dtype)                                                                  \
    static void matmul_##name##_avx2(float *out, size_t out_stride, const void *weights,           \
                                     size_t row_bytes, size_t n_rows, const void *acts,            \
                                     size_t act_bytes, size_t n_cols, size_t n_k) {                \
        body(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k, dtype);    \
    }

MATMUL(f32, matmul_float, PE_DTYPE_F32)
MATMUL(f16, matmul_float, PE_DTYPE_F16)
MATMUL(bf16, matmul_float, PE_DTYPE_BF16)
MATMUL(q4_0, matmul_q8, PE_DTYPE_Q4_0)
MATMUL(q4_1, matmul_q8, PE_DTYPE_Q4_1)
MATMUL(q8_0, matmul_q8, PE_DTYPE_Q8_0)
MATMUL(q6_k, matmul_q8, PE_DTYPE_Q6_K)

/* ---- norm and activation ---------------------------------------------- */

static void rms_norm_avx2(float *out, const float *x, const float *weight, size_t n, float eps) {
    float sum_of_squares;
    const uint8_t *row = (const uint8_t *)x;
    tile_float(&sum_of_squares, &row, row, 0, 1, 1, n, PE_DTYPE_F32);
    const float r = 1.0f / sqrtf(sum_of_squares / (float)n + eps);
    for (size_t i = 0; i < n; i++) {
        out[i] = (x[i] * r) * weight[i];
    }
}

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
    kernels->matmul[PE_DTYPE_F32] = matmul_f32_avx2;
    kernels->matmul[PE_DTYPE_F16] = matmul_f16_avx2;
    kernels->matmul[PE_DTYPE_BF16] = matmul_bf16_avx2;
    kernels->matmul[PE_DTYPE_Q4_0] = matmul_q4_0_avx2;
    kernels->matmul[PE_DTYPE_Q4_1] = matmul_q4_1_avx2;
    kernels->matmul[PE_DTYPE_Q8_0] = matmul_q8_0_avx2;
    kernels->matmul[PE_DTYPE_Q6_K] = matmul_q6_k_avx2;
    memcpy(kernels->matvec, kernels->matmul, sizeof kernels->matmul);
    kernels->rms_norm = rms_norm_avx2;
    kernels->silu_mul = silu_mul_avx2;
}

#else

void pe_kernels_init_avx2(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
