/* Speed of the matrix products alone, one thread, beside what the processor could do.
 *
 *     python bench/kernels.py [--isa avx2] [--type Q4_0]
 *
 * One line of tab-separated fields per measurement: type, layout, instruction set, columns,
 * GMAC/s, GB/s of weights, seconds per pass over the weights. Weights are random bytes in
 * a buffer far larger than the caches, read in the order that decoding reads them; with
 * many columns a part of it suffices. First come the probes: "peak" is what the best
 * integer product of the level reaches in registers, "float peak" its float product,
 * "read" what plain loads reach.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "operands.h"
#include "pe_cpu.h"
#include "pe_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BUFFER_BYTES ((size_t)400 << 20)
#define N_K 4096
#define CHUNK_ROWS 64
#define MAX_COLS 504
#define ROUNDS 3

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- probes ----------------------------------------------------------- */

/* Twelve independent sums, each a step on: enough for any latency. */
#define TWELVE(step)                                                                               \
    step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10)       \
        step(11)
#define PROBE_STEPS 4000000

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) static double peak_avx512(void) {
    const __m512i a = _mm512_set1_epi8(3);
    __m512i s[12];
    memset(s, 0, sizeof s);
#define INIT(i) __m512i s##i = s[i];
#define STEP(i) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(s##i) : "v"(a));
    TWELVE(INIT)
    const double started = now();
    for (int n = 0; n < PROBE_STEPS; n++) {
        TWELVE(STEP)
    }
    return 12.0 * 64.0 * PROBE_STEPS / (now() - started);
#undef STEP
#undef INIT
}

__attribute__((target("avx2"))) static double peak_avx2(bool vnni) {
    const __m256i a = _mm256_set1_epi8(3);
    __m256i s[12];
    memset(s, 0, sizeof s);
#define INIT(i) __m256i s##i = s[i];
#define STEP_VNNI(i) __asm__ volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(s##i) : "x"(a));
/* maddubs and an addition of 16-bit sums: the least that a product takes. */
#define STEP_AVX2(i)                                                                               \
    __asm__ volatile("vpmaddubsw %1, %1, %%ymm15\n\tvpaddw %%ymm15, %0, %0"                        \
                     : "+x"(s##i)                                                                  \
                     : "x"(a)                                                                      \
                     : "xmm15");
    TWELVE(INIT)
    const double started = now();
    for (int n = 0; n < PROBE_STEPS; n++) {
        if (vnni) {
            TWELVE(STEP_VNNI)
        } else {
            TWELVE(STEP_AVX2)
        }
    }
    return 12.0 * 32.0 * PROBE_STEPS / (now() - started);
#undef STEP_AVX2
#undef STEP_VNNI
#undef INIT
}
#endif

#if defined(__x86_64__)
#define INIT_512(i) __m512 s##i = a;
#define INIT_256(i) __m256 s##i = a;
#define STEP(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(s##i) : "v"(a));
__attribute__((target("avx512f"))) static double float_peak_avx512(void) {
    const __m512 a = _mm512_setzero_ps();
    TWELVE(INIT_512)
    const double started = now();
    for (int n = 0; n < PROBE_STEPS; n++) {
        TWELVE(STEP)
    }
    return 12.0 * 16.0 * PROBE_STEPS / (now() - started);
}

__attribute__((target("avx2,fma"))) static double float_peak_avx2(void) {
    const __m256 a = _mm256_setzero_ps();
    TWELVE(INIT_256)
    const double started = now();
    for (int n = 0; n < PROBE_STEPS; n++) {
        TWELVE(STEP)
    }
    return 12.0 * 8.0 * PROBE_STEPS / (now() - started);
}
#undef STEP
#undef INIT_256
#undef INIT_512
#endif

static double float_peak_of(pe_isa isa) {
    switch (isa) {
#if defined(__x86_64__)
    case PE_ISA_AVX512: return float_peak_avx512();
    case PE_ISA_AVX_VNNI:
    case PE_ISA_AVX2: return float_peak_avx2();
#endif
    default: return 0.0;  // not known
    }
}

static double peak_of(pe_isa isa) {
    switch (isa) {
#if defined(__x86_64__)
    case PE_ISA_AVX512: return peak_avx512();
    case PE_ISA_AVX_VNNI: return peak_avx2(true);
    case PE_ISA_AVX2: return peak_avx2(false);
#endif
    default: return 0.0;  // not known
    }
}

static double read_rate(const uint8_t *buffer) {
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        const double started = now();
        uint64_t sum = 0;
        for (size_t at = 0; at < BUFFER_BYTES; at += PE_CACHE_LINE) {
            uint64_t x;
            memcpy(&x, buffer + at, sizeof x);
            sum ^= x;
            __builtin_prefetch(buffer + at + 8192);
        }
        __asm__ volatile("" : : "r"(sum));
        best = PE_MIN(best, now() - started);
    }
    return (double)BUFFER_BYTES / best;
}

/* ---- products --------------------------------------------------------- */

static void measure(const pe_kernels *kernels, pe_dtype dtype, bool strips, const uint8_t *weights,
                    const void *acts, float *out, size_t n_cols) {
    const pe_dtype_traits *traits = pe_dtype_find(dtype);
    const size_t row_bytes = N_K / traits->info.block_weights * traits->info.block_bytes;
    const size_t act_bytes =
        traits->acts == PE_ACTS_Q8 ? N_K / PE_BLOCK * sizeof(pe_act_block) : N_K * sizeof(float);
    const pe_matmul_fn product = (strips        ? kernels->matmul_strips
                                  : n_cols == 1 ? kernels->matvec
                                                : kernels->matmul)[dtype];
    size_t n_chunks = BUFFER_BYTES / (row_bytes * CHUNK_ROWS);
    n_chunks = n_cols > 32 ? 4 : n_cols > 1 ? n_chunks / 4 : n_chunks;
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        const double started = now();
        for (size_t i = 0; i < n_chunks; i++) {
            product(out, CHUNK_ROWS, weights + i * CHUNK_ROWS * row_bytes, row_bytes, CHUNK_ROWS,
                    acts, act_bytes, n_cols, N_K);
        }
        best = PE_MIN(best, now() - started);
    }
    const double n_rows = (double)(n_chunks * CHUNK_ROWS);
    printf("%s\t%s\t%s\t%zu\t%.2f\t%.2f\t%.6f\n", traits->info.name, strips ? "strips" : "rows",
           pe_cpu_isa_name(kernels->isa), n_cols, n_rows * N_K * (double)n_cols / best * 1e-9,
           n_rows * (double)row_bytes / best * 1e-9, best);
    fflush(stdout);
}

int main(int argc, char **argv) {
    static const size_t columns[] = {1, 2, 4, 8, 16, MAX_COLS};
    const char *only_isa = argc > 1 ? argv[1] : "";
    const char *only_type = argc > 2 ? argv[2] : "";
    uint8_t *weights = aligned_alloc(4096, BUFFER_BYTES);
    float *x = malloc(sizeof *x * N_K * MAX_COLS);
    pe_act_block *q8 = malloc(sizeof *q8 * (N_K / PE_BLOCK) * MAX_COLS);
    float *out = malloc(sizeof *out * CHUNK_ROWS * MAX_COLS);
    if (weights == NULL || x == NULL || q8 == NULL || out == NULL) {
        fprintf(stderr, "kernels: no memory for %zu bytes of weights\n", BUFFER_BYTES);
        return 1;
    }
    fill_weights(weights, BUFFER_BYTES);
    fill_activations(x, (size_t)N_K * MAX_COLS);
    printf("read\t\t\t1\t0\t%.2f\t0\n", read_rate(weights) * 1e-9);
    for (pe_isa isa = PE_ISA_SCALAR; isa <= PE_ISA_I8MM; isa++) {
        if (!pe_cpu_has_isa(isa) ||
            (only_isa[0] != '\0' && strcmp(only_isa, pe_cpu_isa_name(isa)) != 0) ||
            (only_isa[0] == '\0' && isa == PE_ISA_SCALAR)) {
            continue;
        }
        pe_kernels kernels;
        pe_kernels_init(&kernels, isa);
        kernels.quantize_acts(q8, x, (size_t)N_K * MAX_COLS);
        printf("peak\t\t%s\t1\t%.2f\t0\t0\n", pe_cpu_isa_name(isa), peak_of(isa) * 1e-9);
        printf("float peak\t\t%s\t1\t%.2f\t0\t0\n", pe_cpu_isa_name(isa),
               float_peak_of(isa) * 1e-9);
        for (uint32_t dtype = 0; dtype < PE_DTYPE_END; dtype++) {
            const pe_dtype_traits *traits = pe_dtype_find(dtype);
            if (traits == NULL || !traits->info.can_compute ||
                (only_type[0] != '\0' && strcmp(only_type, traits->info.name) != 0)) {
                continue;
            }
            const bool quantized = traits->acts == PE_ACTS_Q8;
            for (int strips = 0; strips <= kernels.fast_strips[dtype]; strips++) {
                for (size_t c = 0; c < PE_LEN(columns); c++) {
                    measure(&kernels, (pe_dtype)dtype, strips, weights,
                            quantized ? (const void *)q8 : (const void *)x, out, columns[c]);
                }
            }
        }
    }
    return 0;
}
