/* Kernels for AVX-512 with VNNI: one column, sixteen rows in lanes, no unpacking to
 * memory. Decoding is this file.
 *
 * Rows stay where the file has them. 64 weights of a row, two blocks, fill a register;
 * vpdpbusd with the same 64 activations leaves 16 partial sums of four products. Five
 * rounds of shuffles and additions turn the partial sums of 16 rows into two registers
 * of row sums, one per block: about one shuffle per row and block, where the
 * horizontal additions of AVX2 take three. Scales are copied to a small buffer well
 * before they are loaded as a vector, which keeps them off the shuffle port and clear
 * of failed store forwarding. Q4_1 stays with AVX2's rows, which were faster here.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

#define ROWS 16
#define SLICE 8  // blocks whose scales are copied together; one super-block of Q6_K

/* Sixteen rows are more streams than the hardware follows well: each is asked for this
 * far ahead. 512 bytes gave the most from memory; 1024 and 2048 less (docs/SPEED.md). */
#define PREFETCH_BYTES 512

/* ---- formats ---------------------------------------------------------- */

/* What is subtracted from the stored unsigned integer to give the weight's. */
INLINE int offset_of(pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return 8;
    case PE_DTYPE_Q8_0: return 128;
    case PE_DTYPE_Q6_K: return 32;
    default: return 0;
    }
}

INLINE size_t block_bytes(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q4_0 ? sizeof(pe_block_q4_0) : sizeof(pe_block_q8_0);
}

/* Weights 64 pair .. 64 pair + 63 of a super-block: parts n = 2 pair % 4 and the next
 * of one half, whose low bits lie side by side, in the low nibbles for n = 0. */
INLINE __m512i six_bits(const pe_block_q6_k *block, size_t pair) {
    const size_t half = pair / 2;
    const size_t n = pair % 2 * 2;
    const __m512i four = _mm512_loadu_si512(block->low + 64 * half);
    const __m256i high = _mm256_loadu_si256((const void *)(block->high + 32 * half));
    const __m512i low =
        _mm512_and_si512(n == 0 ? four : _mm512_srli_epi16(four, 4), _mm512_set1_epi8(15));
    // Bits 2 n of each byte for the first 32 weights, bits 2 n + 2 for the others.
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(high), high, 1);
    const long long first = (long long)(2 * n);
    const long long next = first + 2;
    const __m512i two = _mm512_srlv_epi64(
        both, _mm512_setr_epi64(first, first, first, first, next, next, next, next));
    return _mm512_or_si512(low, _mm512_slli_epi16(_mm512_and_si512(two, _mm512_set1_epi8(3)), 4));
}

/* The unsigned integers of blocks b and b + 1 of a row that starts a slice here;
 * when the second is not there, the first again. */
INLINE __m512i two_blocks(const uint8_t *row, size_t b, bool has_second, pe_dtype dtype) {
    if (dtype == PE_DTYPE_Q6_K) {
        return six_bits((const pe_block_q6_k *)(const void *)row, b / 2);
    }
    const uint8_t *first = row + b * block_bytes(dtype);
    const uint8_t *second = first + (has_second ? block_bytes(dtype) : 0);
    if (dtype == PE_DTYPE_Q8_0) {
        const size_t at = offsetof(pe_block_q8_0, q);
        return two_byte_runs(first + at, second + at);
    }
    const size_t at = offsetof(pe_block_q4_0, q);
    return two_nibble_runs(first + at, second + at);
}

/* Sub-block scales of weights 64 pair on, spread over the partial sums they belong to. */
INLINE __m512i spread_scales(const uint8_t *row, size_t pair) {
    const pe_block_q6_k *block = (const void *)row;
    int32_t four;
    memcpy(&four, block->scale + 4 * pair, sizeof four);
    const __m512i wide = _mm512_castsi128_si512(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), wide);
}

/* ---- sums ------------------------------------------------------------- */

/* Four rows' partial sums to one register: each 128-bit part holds the four rows'
 * sums of its four partial sums. */
INLINE __m512i add_four_rows(const __m512i *p) {
    const __m512i a =
        _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
    const __m512i b =
        _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Sixteen rows' partial sums to the row sums of the first block (parts 0 and 1 of
 * each register) and of the second (parts 2 and 3). */
INLINE void add_partial(__m512i *first, __m512i *second, const __m512i *partial) {
    __m512i eight[2];
    for (size_t i = 0; i < 2; i++) {
        const __m512i a = add_four_rows(partial + 8 * i);
        const __m512i b = add_four_rows(partial + 8 * i + 4);
        // Parts 0 and 2 of both, parts 1 and 3 of both: 0x88 and 0xdd.
        eight[i] =
            _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    }
    *first = _mm512_shuffle_i32x4(eight[0], eight[1], 0x88);
    *second = _mm512_shuffle_i32x4(eight[0], eight[1], 0xdd);
}

INLINE __m512 widen(const pe_f16 *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)halves));
}

/* Bytes of a row's slice. */
INLINE size_t slice_bytes(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q6_K ? sizeof(pe_block_q6_k) : SLICE * block_bytes(dtype);
}

INLINE void prefetch_slice(const uint8_t *const *rows, size_t at, pe_dtype dtype) {
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t line = 0; line < slice_bytes(dtype); line += PE_CACHE_LINE) {
            // An address behind the mapping is no fault for a prefetch; as an integer
            // it is no undefined pointer either.
            const uintptr_t ahead = (uintptr_t)rows[r] + at + line + PREFETCH_BYTES;
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
        }
    }
}

INLINE void copy_scales(pe_f16 (*out)[ROWS], const uint8_t *const *rows, size_t at, size_t n_blocks,
                        pe_dtype dtype) {
    for (size_t r = 0; r < ROWS; r++) {
        if (dtype == PE_DTYPE_Q6_K) {  // one for the whole slice
            memcpy(&out[0][r], rows[r] + at + offsetof(pe_block_q6_k, d), sizeof(pe_f16));
            continue;
        }
        for (size_t b = 0; b < n_blocks; b++) {
            const uint8_t *block = rows[r] + at + b * block_bytes(dtype);
            memcpy(&out[b][r], block, sizeof(pe_f16));
        }
    }
}

INLINE __m512 add_block(__m512 acc, __m512i isum, const pe_f16 *d, const pe_act_block *x) {
    const __m512 scale = _mm512_mul_ps(widen(d), _mm512_set1_ps(x->d));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), scale, acc);
}

/* Sixteen rows, given at a slice's start, times a slice of the column. */
INLINE __m512 add_slice(__m512 acc, const uint8_t *const *rows, size_t at, pe_f16 (*d)[ROWS],
                        const pe_act_block *x, size_t n_blocks, pe_dtype dtype) {
    for (size_t b = 0; b < n_blocks; b += 2) {
        const bool has_second = b + 1 < n_blocks;
        const __m256i low = _mm256_loadu_si256((const void *)x[b].q);
        const __m256i high =
            has_second ? _mm256_loadu_si256((const void *)x[b + 1].q) : _mm256_setzero_si256();
        const __m512i a = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        // Starting at -offset * (sum of four activations) makes the sums those of
        // q - offset.
        const __m512i start =
            _mm512_sub_epi32(_mm512_setzero_si512(),
                             _mm512_dpbusd_epi32(_mm512_setzero_si512(),
                                                 _mm512_set1_epi8((char)offset_of(dtype)), a));
        __m512i partial[ROWS];
#pragma GCC unroll 16
        for (size_t r = 0; r < ROWS; r++) {
            const uint8_t *row = rows[r] + at;
            partial[r] = _mm512_dpbusd_epi32(start, two_blocks(row, b, has_second, dtype), a);
            if (dtype == PE_DTYPE_Q6_K) {
                partial[r] = _mm512_mullo_epi32(partial[r], spread_scales(row, b / 2));
            }
        }
        __m512i first;
        __m512i second;
        add_partial(&first, &second, partial);
        const bool per_super_block = dtype == PE_DTYPE_Q6_K;
        acc = add_block(acc, first, d[per_super_block ? 0 : b], &x[b]);
        if (has_second) {
            acc = add_block(acc, second, d[per_super_block ? 0 : b + 1], &x[b + 1]);
        }
    }
    return acc;
}

INLINE void matvec(float *out, const void *weights, size_t row_bytes, size_t n_rows,
                   const pe_act_block *x, size_t n_k, pe_dtype dtype) {
    const size_t n_blocks = n_k / PE_BLOCK;
    for (size_t r = 0; r < n_rows; r += ROWS) {
        const uint8_t *rows[ROWS];
        for (size_t i = 0; i < ROWS; i++) {  // past the last: the last again
            rows[i] = (const uint8_t *)weights + PE_MIN(r + i, n_rows - 1) * row_bytes;
        }
        __m512 acc = _mm512_setzero_ps();
        for (size_t b = 0; b < n_blocks; b += SLICE) {
            const size_t at = b / SLICE * slice_bytes(dtype);
            const size_t n_slice = PE_MIN(n_blocks - b, (size_t)SLICE);
            prefetch_slice(rows, at, dtype);
            pe_f16 d[SLICE][ROWS];
            copy_scales(d, rows, at, n_slice, dtype);
            acc = n_slice == SLICE ? add_slice(acc, rows, at, d, x + b, SLICE, dtype)
                                   : add_slice(acc, rows, at, d, x + b, n_slice, dtype);
        }
        const size_t n_valid = PE_MIN(n_rows - r, (size_t)ROWS);
        _mm512_mask_storeu_ps(out + r, (__mmask16)((1u << n_valid) - 1u), acc);
    }
}

/* Defines matvec_<name>_avx512 for one type; there is one column. */
#define MATVEC(name, dtype)                                                                        \
    static void matvec_##name##_avx512(float *out, size_t out_stride, const void *weights,         \
                                       size_t row_bytes, size_t n_rows, const void *acts,          \
                                       size_t act_bytes, size_t n_cols, size_t n_k) {              \
        (void)out_stride;                                                                          \
        (void)act_bytes;                                                                           \
        (void)n_cols;                                                                              \
        matvec(out, weights, row_bytes, n_rows, acts, n_k, dtype);                                 \
    }

MATVEC(q4_0, PE_DTYPE_Q4_0)
MATVEC(q8_0, PE_DTYPE_Q8_0)
MATVEC(q6_k, PE_DTYPE_Q6_K)

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_avx512_rows(pe_kernels *kernels) {
    kernels->matvec[PE_DTYPE_Q4_0] = matvec_q4_0_avx512;
    kernels->matvec[PE_DTYPE_Q8_0] = matvec_q8_0_avx512;
    kernels->matvec[PE_DTYPE_Q6_K] = matvec_q6_k_avx512;
}

#else

void pe_kernels_init_avx512_rows(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
