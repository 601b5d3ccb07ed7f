/* Where the bits of a block's integers lie: what encoders share. The bit maps are in
 * pe_dtype.h; a code is a weight's unsigned integer, 0 the lowest. None can fail. */
#ifndef PE_BITS_H
#define PE_BITS_H

#include "pe_dtype.h"

/* ---- of 32 codes */

/* The low four bits of each, 16 bytes: weight i low, weight i + 16 high. */
void pe_bits_put_nibbles(uint8_t *out, const uint8_t *code);

/* Bit 4 of each, 4 bytes. */
void pe_bits_put_fifth(uint8_t *out, const uint8_t *code);

/* ---- of 256 codes */

/* Two bits of each, four units to a byte: 64 bytes. */
void pe_bits_put_pairs(uint8_t *out, const uint8_t *code);

/* Bit `bit` of each, that of unit u as bit u of its byte: 32 bytes. */
void pe_bits_put_one(uint8_t *out, const uint8_t *code, int bit);

/* The low four bits of each, two units to a byte: 128 bytes. */
void pe_bits_put_unit_nibbles(uint8_t *out, const uint8_t *code);

/* The six bits of Q6_K. */
void pe_bits_put_q6_k(pe_block_q6_k *block, const uint8_t *code);

/* ---- of a super-block's scales */

/* The sixteen 6-bit scales of Q3_K, -32..31: 12 bytes. */
void pe_bits_put_q3_k_scales(uint8_t *out, const int8_t *scale);

/* The eight 6-bit scales and minimums of Q4_K and Q5_K, 0..63: 12 bytes. */
void pe_bits_put_q4_k_scales(uint8_t *out, const uint8_t *scale, const uint8_t *min);

#endif
