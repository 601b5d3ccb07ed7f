/* Products of quantized weights for AVX-512 with VNNI: panels of 64 rows, tiles of 6
 * columns, or of 32 rows and 12 columns; 24 sums, 4 weights and 1 activation fit 32
 * registers.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

#define ROWS 64
#define FEW_VECS 2
#define FEW_COLS 23
#define TILE_SUMS 24
#define TILE_SUMS_TWO 16
#define MAX_TILE_COLS 12
#define PREFETCH_COLS 32
#define FUSED_COLS 8
#define MAX_UNITS 256  // of a row that are summed side by side
#define MAX_LANES 16

typedef __m512i vec;
typedef __m512 vecf;
#define vec_load(p) _mm512_loadu_si512(p)
#define vec_and _mm512_and_si512
#define vec_or _mm512_or_si512
#define vec_xor _mm512_xor_si512
#define vec_min_u8 _mm512_min_epu8
#define vec_sll16 _mm512_slli_epi16
#define vec_sll32 _mm512_slli_epi32
#define vec_srl32 _mm512_srli_epi32
#define vec_sra32 _mm512_srai_epi32
#define vec_add32 _mm512_add_epi32
#define vec_sub32 _mm512_sub_epi32
#define vec_set1_32 _mm512_set1_epi32
#define vec_zero _mm512_setzero_si512
#define vec_dpbusd _mm512_dpbusd_epi32
#define vec_max32 _mm512_max_epi32
#define vec_widen_u8(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p)))
#define vec_widen_u16(p) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p)))
#define vec_to_float _mm512_cvtepi32_ps
#define vecf_widen_f16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(p)))
#define vec_srl16 _mm512_srli_epi16
#define vec_set1_8 _mm512_set1_epi8
#define vec_set1_128 _mm512_broadcast_i32x4
#define vec_shuffle8 _mm512_shuffle_epi8
#define vec_store _mm512_store_si512
#define vec_as_float _mm512_castsi512_ps
#define vec_as_int _mm512_castps_si512
#define vecf_set1 _mm512_set1_ps
#define vecf_load _mm512_load_ps
#define vecf_store _mm512_store_ps
#define vecf_mul _mm512_mul_ps
#define vecf_add _mm512_add_ps
#define vecf_fmadd _mm512_fmadd_ps
#define vecf_fmsub _mm512_fmsub_ps
#define vecf_fnmadd _mm512_fnmadd_ps

#include "panels.h"
#include "rows.h"
#include "vnni.h"

/* Stages: pairs of rows interleaved, pairs of pairs, then 128-bit parts gathered. */
INLINE void transpose_rows(void *out, const __m256i *rows) {
    __m512i v[8];  // rows r and r + 8
    __m512i pair[8];
#pragma GCC unroll 8
    for (size_t r = 0; r < 8; r++) {
        v[r] = _mm512_inserti64x4(_mm512_castsi256_si512(rows[r]), rows[r + 8], 1);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        pair[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        pair[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    // quad[h]: rows 4 h .. 4 h + 3 (and + 8), four f in parts 0 and 2, f + 4 in 1 and 3.
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    uint8_t(*runs)[ROWS * 4] = out;
#pragma GCC unroll 4
    for (size_t f = 0; f < 4; f++) {
        __m512i quad[2];
#pragma GCC unroll 2
        for (size_t h = 0; h < 2; h++) {
            const __m512i a = pair[4 * h + f / 2];
            const __m512i b = pair[4 * h + 2 + f / 2];
            quad[h] = f % 2 == 0 ? _mm512_unpacklo_epi64(a, b) : _mm512_unpackhi_epi64(a, b);
        }
        _mm512_store_si512(runs[f], _mm512_permutex2var_epi64(quad[0], even, quad[1]));
        _mm512_store_si512(runs[f + 4], _mm512_permutex2var_epi64(quad[0], odd, quad[1]));
    }
}

INLINE void transpose_16(vec *out, const uint8_t *const *rows, size_t at) {
    __m512i v[4];  // rows r, r + 4, r + 8, r + 12
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[r] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(rows[r] + at)));
        v[r] = _mm512_inserti32x4(v[r], _mm_loadu_si128((const void *)(rows[r + 4] + at)), 1);
        v[r] = _mm512_inserti32x4(v[r], _mm_loadu_si128((const void *)(rows[r + 8] + at)), 2);
        v[r] = _mm512_inserti32x4(v[r], _mm_loadu_si128((const void *)(rows[r + 12] + at)), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]);
    const __m512i high01 = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[2], v[3]);
    const __m512i high23 = _mm512_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi64(low01, low23);
    out[1] = _mm512_unpackhi_epi64(low01, low23);
    out[2] = _mm512_unpacklo_epi64(high01, high23);
    out[3] = _mm512_unpackhi_epi64(high01, high23);
}

/* 32 bytes twice, the upper copy shifted right by one count, the lower by another. */
INLINE __m512i two_shifts(const uint8_t *p, int low, int high) {
    const __m512i twice = _mm512_broadcast_i64x4(load_32(p));
    return _mm512_srlv_epi64(twice, _mm512_setr_epi64(low, low, low, low, high, high, high, high));
}

/* Units u and u + 1 (even u, a constant) of eight at p as unsigned bytes; the second
 * one at p + next instead of its place when that is not there. */
INLINE __m512i expand_two(const uint8_t *p, size_t u, size_t second, pe_dtype dtype) {
    const __m512i low4 = _mm512_set1_epi8(15);
    const int shift = 2 * (int)(u % 4);
    if (has_nibbles(dtype) && dtype != PE_DTYPE_Q4_K) {
        // [a, a, b, b] in 128-bit parts; the second copies give the high nibbles.
        const __m128i a = _mm_loadu_si128((const void *)(p + nibbles_at(u, dtype)));
        const __m128i b = _mm_loadu_si128((const void *)(p + nibbles_at(second, dtype)));
        const __m512i both = _mm512_mask_broadcast_i64x2(_mm512_broadcast_i64x2(a), 0xf0, b);
        const __m512i q = _mm512_and_si512(
            _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), low4);
        return has_table(dtype) ? _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table_of(dtype)), q)
                                : q;
    }
    switch (dtype) {
    case PE_DTYPE_Q2_K:
        return _mm512_and_si512(
            two_shifts(p + offsetof(pe_block_q2_k, q) + 32 * (u / 4), shift, shift + 2),
            _mm512_set1_epi8(3));
    case PE_DTYPE_Q3_K: {
        const __m512i low =
            two_shifts(p + offsetof(pe_block_q3_k, low) + 32 * (u / 4), shift, shift + 2);
        const __m512i high = two_shifts(p + offsetof(pe_block_q3_k, high), (int)u, (int)u + 1);
        return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(3)),
                               _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(1)), 2));
    }
    case PE_DTYPE_Q4_K:
        return _mm512_and_si512(two_shifts(p + offsetof(pe_block_q4_k, q) + 16 * u, 0, 4), low4);
    case PE_DTYPE_Q5_K: {
        const __m512i low = two_shifts(p + offsetof(pe_block_q5_k, low) + 16 * u, 0, 4);
        const __m512i high = two_shifts(p + offsetof(pe_block_q5_k, high), (int)u, (int)u + 1);
        return _mm512_or_si512(_mm512_and_si512(low, low4),
                               _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(1)), 4));
    }
    case PE_DTYPE_Q6_K: {
        const __m512i low =
            _mm512_srli_epi16(_mm512_loadu_si512(p + 64 * (u / 4)), u % 4 == 0 ? 0 : 4);
        const __m512i high =
            two_shifts(p + offsetof(pe_block_q6_k, high) + 32 * (u / 4), shift, shift + 2);
        return _mm512_or_si512(_mm512_and_si512(low, low4),
                               _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(3)), 4));
    }
    default:
        return _mm512_inserti64x4(_mm512_castsi256_si512(expand(p, u, dtype)),
                                  expand(p, second, dtype), 1);
    }
}

INLINE bool has_plain_nibbles(pe_dtype dtype) {
    return has_nibbles(dtype) && dtype != PE_DTYPE_Q4_K;
}

INLINE size_t place_of(size_t u, size_t h, pe_dtype dtype) {
    return has_plain_nibbles(dtype) ? u / 4 * 128 + h * 64 + u % 4 * 16 : u * 32 + h * 16;
}

/* Four partial sums for each of four units, whose nibbles lie 16 bytes together. */
INLINE __m512i dot_nibbles(const uint8_t *p, size_t u, const int8_t *x, size_t n_valid,
                           pe_dtype dtype) {
    const __m512i mask = _mm512_set1_epi8(15);
    const uint8_t *part[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        part[i] = p + nibbles_at(PE_MIN(u + i, n_valid - 1), dtype);
    }
    __m512i both = _mm512_broadcast_i64x2(_mm_loadu_si128((const void *)part[0]));
    both = _mm512_mask_broadcast_i64x2(both, 0x0c, _mm_loadu_si128((const void *)part[1]));
    both = _mm512_mask_broadcast_i64x2(both, 0x30, _mm_loadu_si128((const void *)part[2]));
    both = _mm512_mask_broadcast_i64x2(both, 0xc0, _mm_loadu_si128((const void *)part[3]));
    __m512i low = _mm512_and_si512(both, mask);
    __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    if (has_table(dtype)) {
        const __m512i table = _mm512_broadcast_i32x4(table_of(dtype));
        low = _mm512_shuffle_epi8(table, low);
        high = _mm512_shuffle_epi8(table, high);
    }
    const __m512i sum =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_load_si512(x + 32 * u));
    return _mm512_dpbusd_epi32(sum, high, _mm512_load_si512(x + 32 * u + 64));
}

INLINE void dot_units(__m256i *first, __m256i *second, const uint8_t *p, const int8_t *x,
                      size_t n_valid, pe_dtype dtype) {
    if (has_plain_nibbles(dtype)) {
        const __m512i a = dot_nibbles(p, 0, x, n_valid, dtype);
        const __m512i b = dot_nibbles(p, 4, x, n_valid, dtype);
        const __m512i pairs =
            _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        const __m512i sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC));
        // In each 128-bit part: of unit i, of unit i + 4, and both again.
        *first = _mm512_castsi512_si256(_mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), sums));
        *second = _mm256_setzero_si256();
        return;
    }
    __m512i part[UNITS / 2];  // 16 partial sums of two units
#pragma GCC unroll 4
    for (size_t i = 0; i < UNITS / 2; i++) {
        const size_t u = PE_MIN(2 * i, (n_valid - 1) / 2 * 2);
        const __m512i w = expand_two(p, u, PE_MIN(u + 1, n_valid - 1), dtype);
        part[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, _mm512_load_si512(x + 64 * i));
    }
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(part[0], part[1]),
                                       _mm512_unpackhi_epi32(part[0], part[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(part[2], part[3]),
                                       _mm512_unpackhi_epi32(part[2], part[3]));
    const __m512i sums = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    // In 128-bit parts: halves of units 0, 2, 4, 6, then of 1, 3, 5, 7.
    const __m512i ordered = _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15), sums);
    *first = _mm512_castsi512_si256(ordered);
    *second = _mm512_extracti64x4_epi64(ordered, 1);
}

#define MATMUL_QUANT matmul_panels
#define MATMUL_STRIPS matmul_strips
#define GAINS_BY_STRIPS(dtype) true
#define LEVEL avx512
#include "products.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_avx512(pe_kernels *kernels) {
    kernels->isa = PE_ISA_AVX512;
    set_products_avx512(kernels);
}

#else

void pe_kernels_init_avx512(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
