/* Whole tensors from floats to blocks and back: plain scalar code, which kernels and
 * converters are held to. What a block is: pe_unit.h and pe_pack.h.
 */
#ifndef PE_QUANT_H
#define PE_QUANT_H

#include "pe_dtype.h"

/* Decodes n weights of a type that can be computed with.
 * shape    n a multiple of the type's block
 * threads  re-entrant
 * errors   cannot fail */
void pe_quant_unpack(float *out, pe_dtype dtype, const void *blocks, size_t n);

#endif
