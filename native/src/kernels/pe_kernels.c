/* Fills the table: the only place that compares instruction sets. */
#include "pe_kernels.h"
#include "pe_cpu.h"

void pe_kernels_init(pe_kernels *kernels, pe_isa isa) {
    const pe_isa best = pe_cpu_best_isa();
    const pe_isa level = isa == PE_ISA_BEST ? best : PE_MIN(isa, best);
    *kernels = (pe_kernels){0};
    pe_kernels_init_scalar(kernels);
    if (level >= PE_ISA_AVX2) {
        pe_kernels_init_avx2(kernels);
    }
    if (level >= PE_ISA_AVX512) {
        pe_kernels_init_avx512(kernels);
    }
}
