#define _GNU_SOURCE
#include "pe_cpu.h"

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

// The builtins also ask whether the operating system saves the registers.
static bool has_avx2(void) {
    __builtin_cpu_init();
    // Clang before 15 does not know f16c by name: bit 29 of ecx tells.
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

static bool has_avx_vnni(void) {
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 &&
           (eax & (1u << 4)) != 0;
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

#elif defined(__aarch64__)

static bool has_dotprod(void) {
#if defined(__linux__)
    const unsigned long hwcap_asimddp = 1ul << 20;  // by the kernel's ABI; old headers lack it
    return (getauxval(AT_HWCAP) & hwcap_asimddp) != 0;
#elif defined(__APPLE__)
    int value = 0;
    size_t n_bytes = sizeof value;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &n_bytes, NULL, 0) == 0 &&
           value != 0;
#else
    return false;
#endif
}

static bool has_i8mm(void) {
#if defined(__linux__)
    const unsigned long hwcap2_i8mm = 1ul << 13;
    return has_dotprod() && (getauxval(AT_HWCAP2) & hwcap2_i8mm) != 0;
#elif defined(__APPLE__)
    int value = 0;
    size_t n_bytes = sizeof value;
    return has_dotprod() &&
           sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &n_bytes, NULL, 0) == 0 && value != 0;
#else
    return false;
#endif
}

#endif

bool pe_cpu_has_isa(pe_isa isa) {
    switch (isa) {
    case PE_ISA_BEST:
    case PE_ISA_SCALAR: return true;
#if defined(__x86_64__)
    case PE_ISA_AVX2: return has_avx2();
    case PE_ISA_AVX_VNNI: return has_avx_vnni();
    case PE_ISA_AVX512: return has_avx512();
#elif defined(__aarch64__)
    case PE_ISA_NEON: return true;
    case PE_ISA_DOTPROD: return has_dotprod();
    case PE_ISA_I8MM: return has_i8mm();
#endif
    default: return false;
    }
}

pe_isa pe_cpu_best_isa(void) {
    static const pe_isa best_first[] = {PE_ISA_AVX512, PE_ISA_AVX_VNNI, PE_ISA_AVX2,
                                        PE_ISA_I8MM,   PE_ISA_DOTPROD,  PE_ISA_NEON};
    for (size_t i = 0; i < PE_LEN(best_first); i++) {
        if (pe_cpu_has_isa(best_first[i])) {
            return best_first[i];
        }
    }
    return PE_ISA_SCALAR;
}

const char *pe_cpu_isa_name(pe_isa isa) {
    switch (isa) {
    case PE_ISA_SCALAR: return "scalar";
    case PE_ISA_AVX2: return "avx2";
    case PE_ISA_AVX_VNNI: return "avx_vnni";
    case PE_ISA_AVX512: return "avx512";
    case PE_ISA_NEON: return "neon";
    case PE_ISA_DOTPROD: return "dotprod";
    case PE_ISA_I8MM: return "i8mm";
    default: return "unknown";
    }
}
