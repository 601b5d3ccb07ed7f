#define _GNU_SOURCE
#include "pe_cpu.h"

#include <stdio.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#endif

pe_isa pe_cpu_best_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    // The builtin also asks whether the operating system saves the registers.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx2) {
        return avx512 ? PE_ISA_AVX512 : PE_ISA_AVX2;
    }
#endif
    return PE_ISA_SCALAR;
}

const char *pe_cpu_isa_name(pe_isa isa) {
    switch (isa) {
    case PE_ISA_AVX512: return "avx512";
    case PE_ISA_AVX2: return "avx2";
    default: return "scalar";
    }
}

#if defined(__linux__)
/* cpu.max of cgroup v2 holds "quota period" in microseconds, or "max period".
 * A container sees its own group at the mount's root. 0: no limit. */
static uint32_t cgroup_n_cpus(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file == NULL) {
        return 0;
    }
    unsigned long quota = 0;
    unsigned long period = 0;
    const int n_read = fscanf(file, "%lu %lu", &quota, &period);
    fclose(file);
    if (n_read != 2 || quota == 0 || period == 0) {
        return 0;
    }
    return (uint32_t)PE_MIN(pe_ceil_div(quota, period), UINT32_MAX);
}
#endif

uint32_t pe_cpu_n_usable(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        n = CPU_COUNT(&set);
    }
    const uint32_t limit = cgroup_n_cpus();
    if (limit > 0 && (long)limit < n) {
        n = (long)limit;
    }
#endif
    return n > 0 ? (uint32_t)n : 1u;
}
