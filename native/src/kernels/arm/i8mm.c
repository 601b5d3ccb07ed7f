#include "pe_kernels.h"

void pe_kernels_init_i8mm(pe_kernels *kernels) {
    kernels->isa = PE_ISA_I8MM;
}
