/* What the two files for AVX-512 share: their instruction set, and how two runs of
 * stored integers become one register of bytes. To be included first after
 * pe_kernels.h; in clang the file ends with `#pragma clang attribute pop`.
 */
#ifndef PE_AVX512_H
#define PE_AVX512_H

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))),        \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* 16 bytes of nibbles from each of two places: [low: 16 | high: 16] of the first, then
 * of the second. */
INLINE __m512i two_nibble_runs(const uint8_t *first, const uint8_t *second) {
    const __m256i packed = _mm256_loadu2_m128i((const void *)second, (const void *)first);
    // [a, a, b, b] by 128-bit parts; the second copy of each gives the high nibbles.
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3),
                                                   _mm512_castsi256_si512(packed));
    const __m512i shifted = _mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
    return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
}

/* 32 signed bytes from each of two places, with 128 added. */
INLINE __m512i two_byte_runs(const uint8_t *first, const uint8_t *second) {
    const __m256i low = _mm256_loadu_si256((const void *)first);
    const __m256i high = _mm256_loadu_si256((const void *)second);
    return _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1),
                            _mm512_set1_epi8((char)0x80));
}

#endif
