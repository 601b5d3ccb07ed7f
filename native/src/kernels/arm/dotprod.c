#include "pe_kernels.h"

void pe_kernels_init_dotprod(pe_kernels *kernels) {
    kernels->isa = PE_ISA_DOTPROD;
}
