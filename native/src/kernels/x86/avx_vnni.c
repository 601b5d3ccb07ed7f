#include "pe_kernels.h"

void pe_kernels_init_avx_vnni(pe_kernels *kernels) {
    kernels->isa = PE_ISA_AVX_VNNI;
}
