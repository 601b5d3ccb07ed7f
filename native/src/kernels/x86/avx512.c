#include "pe_kernels.h"

void pe_kernels_init_avx512(pe_kernels *kernels) {
    kernels->isa = PE_ISA_AVX512;
}
