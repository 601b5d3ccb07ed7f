/* Fills the table: the only place that compares instruction sets. */
#include "pe_kernels.h"
#include "pe_cpu.h"

/* Levels of one processor family are numbered within a run of 16. */
#define FAMILY 16

void pe_kernels_init(pe_kernels *kernels, pe_isa isa) {
    static const struct {
        pe_isa isa;
        void (*init)(pe_kernels *kernels);
    } levels[] = {
        {PE_ISA_AVX2, pe_kernels_init_avx2},
        {PE_ISA_AVX2, pe_kernels_init_floats_avx2},
        {PE_ISA_AVX2, pe_kernels_init_attend_avx2},
        {PE_ISA_AVX_VNNI, pe_kernels_init_avx_vnni},
        {PE_ISA_AVX512, pe_kernels_init_avx512},
        {PE_ISA_AVX512, pe_kernels_init_floats_avx512},
        {PE_ISA_AVX512, pe_kernels_init_attend_avx512},
        {PE_ISA_NEON, pe_kernels_init_neon},
        {PE_ISA_NEON, pe_kernels_init_floats_neon},
        {PE_ISA_NEON, pe_kernels_init_attend_neon},
        {PE_ISA_DOTPROD, pe_kernels_init_dotprod},
        {PE_ISA_I8MM, pe_kernels_init_i8mm},
    };
    const pe_isa limit = isa == PE_ISA_BEST ? pe_cpu_best_isa() : isa;
    *kernels = (pe_kernels){0};
    pe_kernels_init_scalar(kernels);
    for (size_t i = 0; i < PE_LEN(levels); i++) {
        const pe_isa level = levels[i].isa;
        if (level / FAMILY == limit / FAMILY && level <= limit && pe_cpu_has_isa(level)) {
            levels[i].init(kernels);
        }
    }
}
