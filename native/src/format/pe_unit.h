/* The definition of every quantized type: a function that unpacks 32 weights. */
#ifndef PE_UNIT_H
#define PE_UNIT_H

#include "pe_dtype.h"

void pe_unit_q4_0(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q4_1(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q5_0(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q5_1(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q8_0(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q2_k(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q3_k(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q4_k(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q5_k(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_q6_k(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_iq4_nl(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_iq4_xs(pe_unit *out, const void *row, size_t i_unit);
void pe_unit_mxfp4(pe_unit *out, const void *row, size_t i_unit);

#endif
