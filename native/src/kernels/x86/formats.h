/* The quantized types as x86 code sees them: how 32 weights become unsigned bytes, and
 * how a run of units gives its scales and minimums. A new type is a case in each of the
 * functions below; everything that multiplies is built on them.
 *
 * All is static and inlined where dtype is a constant, so that it folds away: every
 * instruction set compiles its own copy. To be included after INLINE is defined and
 * AVX2, FMA and F16C are switched on.
 */
#ifndef PE_X86_FORMATS_H
#define PE_X86_FORMATS_H

#include "pe_kernels.h"

#define UNITS 8  // of a super-block; also the units that are always handled together

/* What is added to a weight's integer to make it unsigned. */
INLINE int offset_of(pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return 8;
    case PE_DTYPE_Q5_0: return 16;
    case PE_DTYPE_Q3_K: return 4;
    case PE_DTYPE_Q6_K: return 32;
    case PE_DTYPE_MXFP4: return 12;
    case PE_DTYPE_Q8_0:
    case PE_DTYPE_IQ4_NL:
    case PE_DTYPE_IQ4_XS: return 128;
    default: return 0;
    }
}

/* The largest unsigned integer of a type. */
INLINE int limit_of(pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q2_K: return 3;
    case PE_DTYPE_Q3_K: return 7;
    case PE_DTYPE_MXFP4: return 24;
    case PE_DTYPE_Q5_0:
    case PE_DTYPE_Q5_1:
    case PE_DTYPE_Q5_K: return 31;
    case PE_DTYPE_Q6_K: return 63;
    case PE_DTYPE_Q8_0:
    case PE_DTYPE_IQ4_NL:
    case PE_DTYPE_IQ4_XS: return 255;
    default: return 15;
    }
}

INLINE bool has_two_scales(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q2_K || dtype == PE_DTYPE_Q3_K || dtype == PE_DTYPE_Q6_K;
}

INLINE bool has_min(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q4_1 || dtype == PE_DTYPE_Q5_1 || dtype == PE_DTYPE_Q2_K ||
           dtype == PE_DTYPE_Q4_K || dtype == PE_DTYPE_Q5_K;
}

/* Bytes of a block, and whether it is a super-block of eight units. */
INLINE size_t block_bytes(pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q4_0: return sizeof(pe_block_q4_0);
    case PE_DTYPE_Q4_1: return sizeof(pe_block_q4_1);
    case PE_DTYPE_Q5_0: return sizeof(pe_block_q5_0);
    case PE_DTYPE_Q5_1: return sizeof(pe_block_q5_1);
    case PE_DTYPE_Q8_0: return sizeof(pe_block_q8_0);
    case PE_DTYPE_Q2_K: return sizeof(pe_block_q2_k);
    case PE_DTYPE_Q3_K: return sizeof(pe_block_q3_k);
    case PE_DTYPE_Q4_K: return sizeof(pe_block_q4_k);
    case PE_DTYPE_Q5_K: return sizeof(pe_block_q5_k);
    case PE_DTYPE_Q6_K: return sizeof(pe_block_q6_k);
    case PE_DTYPE_IQ4_NL: return sizeof(pe_block_iq4_nl);
    case PE_DTYPE_IQ4_XS: return sizeof(pe_block_iq4_xs);
    default: return sizeof(pe_block_mxfp4);
    }
}

INLINE bool is_super(pe_dtype dtype) {
    return (dtype >= PE_DTYPE_Q2_K && dtype <= PE_DTYPE_Q6_K) || dtype == PE_DTYPE_IQ4_XS;
}

/* Bytes of eight units. */
INLINE size_t units_bytes(pe_dtype dtype) {
    return is_super(dtype) ? block_bytes(dtype) : UNITS * block_bytes(dtype);
}

/* ---- integers --------------------------------------------------------- */

INLINE __m256i load_32(const uint8_t *p) {
    return _mm256_loadu_si256((const void *)p);
}

INLINE __m256i low_bits(__m256i v, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8((char)mask));
}

/* 16 bytes of nibbles: the low ones, then the high ones. */
INLINE __m256i load_nibbles(const uint8_t *p) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
    return _mm256_and_si256(_mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4)),
                            _mm256_set1_epi8(15));
}

/* Bit i of four bytes as 16 in byte i. */
INLINE __m256i spread_bits(const uint8_t *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    const __m256i which =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), which);
    const __m256i mask = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

/* The table of a nibble type, its offset added. */
INLINE __m128i table_of(pe_dtype dtype) {
    return dtype == PE_DTYPE_MXFP4
               ? _mm_add_epi8(_mm_setr_epi8(PE_MXFP4_VALUES), _mm_set1_epi8(12))
               : _mm_xor_si128(_mm_setr_epi8(PE_IQ4_VALUES), _mm_set1_epi8((char)0x80));
}

/* 32 weights as unsigned bytes: unit u (a constant below 8) of the units at p. */
INLINE __m256i expand(const uint8_t *p, size_t u, pe_dtype dtype) {
    const uint8_t *block = p + (is_super(dtype) ? 0 : u * block_bytes(dtype));
    const int odd = (int)(u % 2);
    switch (dtype) {
    case PE_DTYPE_Q4_0: return load_nibbles(block + offsetof(pe_block_q4_0, q));
    case PE_DTYPE_Q4_1: return load_nibbles(block + offsetof(pe_block_q4_1, q));
    case PE_DTYPE_Q5_0:
        return _mm256_or_si256(load_nibbles(block + offsetof(pe_block_q5_0, low)),
                               spread_bits(block + offsetof(pe_block_q5_0, high)));
    case PE_DTYPE_Q5_1:
        return _mm256_or_si256(load_nibbles(block + offsetof(pe_block_q5_1, low)),
                               spread_bits(block + offsetof(pe_block_q5_1, high)));
    case PE_DTYPE_Q8_0:
        return _mm256_xor_si256(load_32(block + offsetof(pe_block_q8_0, q)),
                                _mm256_set1_epi8((char)0x80));
    case PE_DTYPE_Q2_K:
        return low_bits(load_32(block + offsetof(pe_block_q2_k, q) + 32 * (u / 4)),
                        2 * (int)(u % 4), 3);
    case PE_DTYPE_Q3_K: {
        const __m256i low = low_bits(load_32(block + offsetof(pe_block_q3_k, low) + 32 * (u / 4)),
                                     2 * (int)(u % 4), 3);
        const __m256i high = low_bits(load_32(block + offsetof(pe_block_q3_k, high)), (int)u, 1);
        return _mm256_or_si256(low, _mm256_slli_epi16(high, 2));
    }
    case PE_DTYPE_Q4_K:
        return low_bits(load_32(block + offsetof(pe_block_q4_k, q) + 32 * (u / 2)), 4 * odd, 15);
    case PE_DTYPE_Q5_K: {
        const __m256i low =
            low_bits(load_32(block + offsetof(pe_block_q5_k, low) + 32 * (u / 2)), 4 * odd, 15);
        const __m256i high = low_bits(load_32(block + offsetof(pe_block_q5_k, high)), (int)u, 1);
        return _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
    }
    case PE_DTYPE_Q6_K: {
        const __m256i low =
            low_bits(load_32(block + 64 * (u / 4) + 32 * (u % 2)), 4 * (int)(u % 4 / 2), 15);
        const __m256i high = low_bits(load_32(block + offsetof(pe_block_q6_k, high) + 32 * (u / 4)),
                                      2 * (int)(u % 4), 3);
        return _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
    }
    case PE_DTYPE_IQ4_NL:
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table_of(dtype)),
                                   load_nibbles(block + offsetof(pe_block_iq4_nl, q)));
    case PE_DTYPE_IQ4_XS:
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table_of(dtype)),
                                   load_nibbles(block + offsetof(pe_block_iq4_xs, q) + 16 * u));
    default:
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table_of(dtype)),
                                   load_nibbles(block + offsetof(pe_block_mxfp4, q)));
    }
}

/* ---- scales ----------------------------------------------------------- */

INLINE float load_f16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _cvtsh_ss(bits);
}

/* Eight bytes, signed or not, times d, to out. */
INLINE void scale_bytes(float *out, __m128i bytes, bool is_signed, float d) {
    const __m256i wide = is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(d)));
}

/* Four fp16, a stride apart. Joined in a general register: vector shuffles are what this
 * code has the most of already, and a vector load right behind the stores of its parts
 * stalls. */
INLINE uint64_t four_f16(const uint8_t *p, size_t stride) {
    uint64_t out = 0;
#pragma GCC unroll 4
    for (size_t i = 4; i-- > 0;) {
        uint16_t half;
        memcpy(&half, p + i * stride, sizeof half);
        out = out << 16 | half;
    }
    __asm__("" : "+r"(out));  // else compilers turn to vectors after all
    return out;
}

/* The fp16 of eight units, widened; zeros past n_valid. */
INLINE __m256 eight_f16(const uint8_t *p, size_t stride, size_t n_valid) {
    if (n_valid >= UNITS) {
        return _mm256_cvtph_ps(_mm_set_epi64x((long long)four_f16(p + 4 * stride, stride),
                                              (long long)four_f16(p, stride)));
    }
    pe_f16 half[UNITS] = {0};
    for (size_t u = 0; u < n_valid; u++) {
        memcpy(&half[u], p + u * stride, sizeof *half);
    }
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)half));
}

INLINE bool has_f16_blocks(pe_dtype dtype) {
    return !is_super(dtype) && dtype != PE_DTYPE_MXFP4;
}

/* The 6-bit scales (bytes 0-7) and minimums (8-15) of Q4_K and Q5_K. */
INLINE __m128i six_bit_pairs(const uint8_t *scale) {
    uint64_t low;
    uint32_t last;
    memcpy(&low, scale, sizeof low);
    memcpy(&last, scale + 8, sizeof last);
    const uint64_t high = low >> 6 & 0x0303030303030303u;
    const uint64_t first = low & 0x3f3f3f3f3f3f3f3fu;
    const uint64_t sc_4to7 = (last & 0x0f0f0f0fu) | (high & 0xffffffffu) << 4;
    const uint64_t min_4to7 = (last >> 4 & 0x0f0f0f0fu) | high >> 32 << 4;
    const uint64_t sc = (first & 0xffffffffu) | sc_4to7 << 32;
    const uint64_t min = first >> 32 | min_4to7 << 32;
    return _mm_set_epi64x((long long)min, (long long)sc);
}

/* The 6-bit scales of Q3_K, 32 taken off. */
INLINE __m128i six_bit_scales(const uint8_t *scale) {
    uint64_t low;
    uint32_t high;
    memcpy(&low, scale, sizeof low);
    memcpy(&high, scale + 8, sizeof high);
    const uint64_t m4 = 0x0f0f0f0f0f0f0f0fu;
    const uint64_t m2 = 0x30303030u;
    const uint64_t h = high;
    const uint64_t a = (low & m4) | (h << 4 & m2) | (h << 2 & m2) << 32;
    const uint64_t b = (low >> 4 & m4) | (h & m2) | (h >> 2 & m2) << 32;
    return _mm_sub_epi8(_mm_set_epi64x((long long)b, (long long)a), _mm_set1_epi8(32));
}

/* Scales and minimums of n_units units at p, of the types without fp16 blocks: d[unit], or
 * d[unit][2] for types with two scales, and m in the same way. Room for a multiple of
 * eight units; whole super-blocks. */
INLINE void unpack_scales(float *d, float *m, const uint8_t *p, size_t n_units, pe_dtype dtype) {
    const size_t stride = block_bytes(dtype);
    if (dtype == PE_DTYPE_MXFP4) {
        for (size_t u = 0; u < n_units; u++) {
            d[u] = pe_e8m0_half_to_f32(p[u * stride]);
        }
        return;
    }
    for (size_t u = 0; u < n_units; u += UNITS, p += stride) {
        switch (dtype) {
        case PE_DTYPE_Q2_K: {
            const __m128i both = _mm_loadu_si128((const void *)p);
            const __m128i sc = _mm_and_si128(both, _mm_set1_epi8(15));
            const __m128i min = _mm_and_si128(_mm_srli_epi16(both, 4), _mm_set1_epi8(15));
            const float scale = load_f16(p + offsetof(pe_block_q2_k, d));
            const float minus = -load_f16(p + offsetof(pe_block_q2_k, dmin));
            scale_bytes(d + 2 * u, sc, false, scale);
            scale_bytes(d + 2 * u + 8, _mm_srli_si128(sc, 8), false, scale);
            scale_bytes(m + 2 * u, min, false, minus);
            scale_bytes(m + 2 * u + 8, _mm_srli_si128(min, 8), false, minus);
            break;
        }
        case PE_DTYPE_Q3_K:
        case PE_DTYPE_Q6_K: {
            const bool q3 = dtype == PE_DTYPE_Q3_K;
            const __m128i sc =
                q3 ? six_bit_scales(p + offsetof(pe_block_q3_k, scale))
                   : _mm_loadu_si128((const void *)(p + offsetof(pe_block_q6_k, scale)));
            const float scale =
                load_f16(p + (q3 ? offsetof(pe_block_q3_k, d) : offsetof(pe_block_q6_k, d)));
            scale_bytes(d + 2 * u, sc, true, scale);
            scale_bytes(d + 2 * u + 8, _mm_srli_si128(sc, 8), true, scale);
            break;
        }
        case PE_DTYPE_Q4_K:
        case PE_DTYPE_Q5_K: {  // which begin alike
            const __m128i both = six_bit_pairs(p + offsetof(pe_block_q4_k, scale));
            scale_bytes(d + u, both, false, load_f16(p));
            scale_bytes(m + u, _mm_srli_si128(both, 8), false,
                        -load_f16(p + offsetof(pe_block_q4_k, dmin)));
            break;
        }
        default: {  // IQ4_XS
            const pe_block_iq4_xs *block = (const void *)p;
            uint32_t low;
            memcpy(&low, block->scale_low, sizeof low);
            // Nibble u to byte u, and bits 2 u of the high ones to bits 4-5 of byte u.
            uint64_t x = low;
            x = (x | x << 16) & 0x0000ffff0000ffffu;
            x = (x | x << 8) & 0x00ff00ff00ff00ffu;
            x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
            uint64_t h = block->scale_high;
            h = (h | h << 24) & 0x000000ff000000ffu;
            h = (h | h << 12) & 0x000f000f000f000fu;
            h = (h | h << 6) & 0x0303030303030303u;
            const __m128i sc = _mm_cvtsi64_si128((long long)(x | h << 4));
            scale_bytes(d + u, _mm_sub_epi8(sc, _mm_set1_epi8(32)), true, load_f16(p));
            break;
        }
        }
    }
}

#endif
