/* The encoder of every quantized type: a function that packs one block of weights.
 *
 * Which integers and scales stand for a block is a search, and files are compared byte
 * for byte: each is the search of ggml's reference quantizer without an importance
 * matrix, every float operation of it in that order.
 *
 * Parameters: the block to write; its 32 or 256 weights, all finite.
 * returns  false when a scale or minimum leaves fp16, where it is infinite */
#ifndef PE_PACK_H
#define PE_PACK_H

#include "pe_dtype.h"

/* ---- pe_pack.c: blocks of 32 */

bool pe_pack_q4_0(void *out, const float *x);
bool pe_pack_q4_1(void *out, const float *x);
bool pe_pack_q5_0(void *out, const float *x);
bool pe_pack_q5_1(void *out, const float *x);
bool pe_pack_q8_0(void *out, const float *x);
bool pe_pack_mxfp4(void *out, const float *x);

/* ---- pe_pack_k.c: super-blocks of 256 */

bool pe_pack_q2_k(void *out, const float *x);
bool pe_pack_q3_k(void *out, const float *x);
bool pe_pack_q4_k(void *out, const float *x);
bool pe_pack_q5_k(void *out, const float *x);
bool pe_pack_q6_k(void *out, const float *x);

/* ---- pe_pack_iq4.c */

bool pe_pack_iq4_nl(void *out, const float *x);
bool pe_pack_iq4_xs(void *out, const float *x);

/* Stores a scale; false when it is infinite or NaN as fp16. */
static inline bool pe_pack_f16(pe_f16 *out, float x) {
    *out = pe_f16_from_f32(x);
    return (*out & 0x7c00u) != 0x7c00u;
}

#endif
