/* What AVX2 and AVX-VNNI share: registers of eight rows, panels of 16, and products of
 * one column by 256-bit registers. To be included after INLINE and the instruction set.
 */
#define ROWS 16
#define FEW_VECS 2
#define FEW_COLS 0
#define MAX_TILE_COLS 6
#define MAX_UNITS 256  // of a row that are summed side by side
#define MAX_LANES 8
#define PREFETCH_COLS 32
#define FUSED_COLS 8

typedef __m256i vec;
typedef __m256 vecf;
#define vec_load(p) _mm256_loadu_si256((const void *)(p))
#define vec_and _mm256_and_si256
#define vec_or _mm256_or_si256
#define vec_xor _mm256_xor_si256
#define vec_min_u8 _mm256_min_epu8
#define vec_sll16 _mm256_slli_epi16
#define vec_sll32(v, n) _mm256_slli_epi32(v, (int)(n))
#define vec_srl32(v, n) _mm256_srli_epi32(v, (int)(n))
#define vec_sra32 _mm256_srai_epi32
#define vec_add32 _mm256_add_epi32
#define vec_sub32 _mm256_sub_epi32
#define vec_set1_32 _mm256_set1_epi32
#define vec_zero _mm256_setzero_si256
#define vec_max32 _mm256_max_epi32
#define vec_widen_u8(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p)))
#define vec_widen_u16(p) _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p)))
#define vec_to_float _mm256_cvtepi32_ps
#define vecf_widen_f16(p) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p)))
#define vec_srl16 _mm256_srli_epi16
#define vec_set1_8 _mm256_set1_epi8
#define vec_set1_128 _mm256_broadcastsi128_si256
#define vec_shuffle8 _mm256_shuffle_epi8
#define vec_store(p, v) _mm256_store_si256((void *)(p), v)
#define vec_as_float _mm256_castsi256_ps
#define vec_as_int _mm256_castps_si256
#define vecf_set1 _mm256_set1_ps
#define vecf_load _mm256_load_ps
#define vecf_store _mm256_store_ps
#define vecf_mul _mm256_mul_ps
#define vecf_add _mm256_add_ps
#define vecf_fmadd _mm256_fmadd_ps
#define vecf_fmsub _mm256_fmsub_ps
#define vecf_fnmadd _mm256_fnmadd_ps

#include "panels.h"
#include "rows.h"

INLINE void transpose_rows(void *out, const __m256i *rows) {
    __m256i v[8];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {  // rows i and i + 4, runs 0-3 and runs 4-7
        v[i] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x20);
        v[4 + i] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x31);
    }
    uint8_t(*runs)[ROWS * 4] = out;
#pragma GCC unroll 2
    for (size_t h = 0; h < 8; h += 4) {
        const __m256i a = _mm256_unpacklo_epi32(v[h], v[h + 1]);
        const __m256i b = _mm256_unpackhi_epi32(v[h], v[h + 1]);
        const __m256i c = _mm256_unpacklo_epi32(v[h + 2], v[h + 3]);
        const __m256i d = _mm256_unpackhi_epi32(v[h + 2], v[h + 3]);
        vec_store(runs[h], _mm256_unpacklo_epi64(a, c));
        vec_store(runs[h + 1], _mm256_unpackhi_epi64(a, c));
        vec_store(runs[h + 2], _mm256_unpacklo_epi64(b, d));
        vec_store(runs[h + 3], _mm256_unpackhi_epi64(b, d));
    }
}

INLINE void transpose_16(vec *out, const uint8_t *const *rows, size_t at) {
    __m256i v[4];  // rows r and r + 4
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; r++) {
        v[r] = _mm256_loadu2_m128i((const void *)(rows[r + 4] + at), (const void *)(rows[r] + at));
    }
    const __m256i low01 = _mm256_unpacklo_epi32(v[0], v[1]);
    const __m256i high01 = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i low23 = _mm256_unpacklo_epi32(v[2], v[3]);
    const __m256i high23 = _mm256_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm256_unpacklo_epi64(low01, low23);
    out[1] = _mm256_unpackhi_epi64(low01, low23);
    out[2] = _mm256_unpacklo_epi64(high01, high23);
    out[3] = _mm256_unpackhi_epi64(high01, high23);
}

INLINE size_t place_of(size_t u, size_t h, pe_dtype dtype) {
    (void)dtype;
    return u * PE_BLOCK + h * (PE_BLOCK / 2);
}

/* Eight int32 partial sums of 32 products, 0-3 those of the first 16. w: unsigned. */
INLINE __m256i dot_partial(__m256i w, __m256i x, pe_dtype dtype);

INLINE void dot_units(__m256i *first, __m256i *second, const uint8_t *p, const int8_t *x,
                      size_t n_valid, pe_dtype dtype) {
    __m256i part[UNITS];
#pragma GCC unroll 8
    for (size_t u = 0; u < UNITS; u++) {
        const __m256i w = expand(p, PE_MIN(u, n_valid - 1), dtype);
        part[u] = dot_partial(w, _mm256_load_si256((const void *)(x + PE_BLOCK * u)), dtype);
    }
    add_partial(first, second, part);
}
