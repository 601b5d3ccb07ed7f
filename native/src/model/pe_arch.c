/* The architectures this build knows: the only list of them. */
#include "pe_arch.h"

static const pe_arch *const ARCHS[] = {
    &pe_arch_llama,
};

const pe_arch *pe_arch_at(size_t index) {
    return index < PE_LEN(ARCHS) ? ARCHS[index] : NULL;
}
