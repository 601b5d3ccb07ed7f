/* The instruction set of the files for AVX-512 with VNNI, switched on for them alone; see
 * avx2.c. To be included first after pe_kernels.h; in clang such a file ends with
 * `#pragma clang attribute pop`.
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

#endif
