/* The definition of every tensor format: plain scalar code from floats to blocks
 * and back. Kernels and converters are held to it.
 */
#ifndef PE_QUANT_H
#define PE_QUANT_H

#include "pe_dtype.h"

/* Decodes n weights of a type that can be computed with.
 * shape    n a multiple of the type's block
 * threads  re-entrant
 * errors   cannot fail */
void pe_quant_unpack(float *out, pe_dtype dtype, const void *blocks, size_t n);

/* Encodes 32 numbers as one block of a block-quantized type that can be written.
 * returns  false when its scale or minimum leaves fp16, where it is infinite
 * threads  re-entrant */
bool pe_quant_pack_block(void *out, pe_dtype dtype, const float *x);

#endif
