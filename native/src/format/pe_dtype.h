/* Tensor types: one table row per GGUF type, and the block structs of those that
 * the engine computes with. A type is a fixed number of weights in a fixed number
 * of bytes; rows are whole blocks back to back.
 */
#ifndef PE_DTYPE_H
#define PE_DTYPE_H

#include "pe_f16.h"
#include "pe_status.h"

/* Weights per block of the 32-weight formats, and per activation block. */
#define PE_BLOCK 32

/* Weights per super-block of the K-quants. */
#define PE_SUPER_BLOCK 256

/* Q4_0: weight = d * (q - 8), q in 0..15.
 *
 *     byte  0    2                                18
 *           | d  | q[0] ... q[15]                 |
 *     q[i] low nibble: weight i, high nibble: weight i + 16 */
typedef struct pe_block_q4_0 {
    pe_f16 d;
    uint8_t q[PE_BLOCK / 2];
} pe_block_q4_0;
_Static_assert(sizeof(pe_block_q4_0) == 18, "Q4_0 is 18 bytes per 32 weights");

/* Q4_1: weight = d * q + m, q in 0..15; nibbles as in Q4_0.
 *
 *     byte  0    2    4                            20
 *           | d  | m  | q[0] ... q[15]             | */
typedef struct pe_block_q4_1 {
    pe_f16 d;
    pe_f16 m;
    uint8_t q[PE_BLOCK / 2];
} pe_block_q4_1;
_Static_assert(sizeof(pe_block_q4_1) == 20, "Q4_1 is 20 bytes per 32 weights");

/* Q8_0: weight = d * q.
 *
 *     byte  0    2                                34
 *           | d  | q[0] ... q[31]                 | */
typedef struct pe_block_q8_0 {
    pe_f16 d;
    int8_t q[PE_BLOCK];
} pe_block_q8_0;
_Static_assert(sizeof(pe_block_q8_0) == 34, "Q8_0 is 34 bytes per 32 weights");

/* Q5_0: weight = d * (q - 16), q in 0..31: bits 0-3 are nibbles as in Q4_0, bit 4 of
 * weight i is bit i of high (little-endian).
 *
 *     byte  0    2       6                        22
 *           | d  | high  | low[0] ... low[15]     | */
typedef struct pe_block_q5_0 {
    pe_f16 d;
    uint8_t high[4];
    uint8_t low[PE_BLOCK / 2];
} pe_block_q5_0;
_Static_assert(sizeof(pe_block_q5_0) == 22, "Q5_0 is 22 bytes per 32 weights");

/* Q5_1: weight = d * q + m, q as in Q5_0.
 *
 *     byte  0    2    4       8                   24
 *           | d  | m  | high  | low[0] ... [15]   | */
typedef struct pe_block_q5_1 {
    pe_f16 d;
    pe_f16 m;
    uint8_t high[4];
    uint8_t low[PE_BLOCK / 2];
} pe_block_q5_1;
_Static_assert(sizeof(pe_block_q5_1) == 24, "Q5_1 is 24 bytes per 32 weights");

/* IQ4_NL: weight = d * PE_IQ4_VALUES[q], nibbles as in Q4_0. */
typedef struct pe_block_iq4_nl {
    pe_f16 d;
    uint8_t q[PE_BLOCK / 2];
} pe_block_iq4_nl;
_Static_assert(sizeof(pe_block_iq4_nl) == 18, "IQ4_NL is 18 bytes per 32 weights");

/* MXFP4 (OCP microscaling formats, v1.0): weight = 2^(e - 128) * PE_MXFP4_VALUES[q],
 * nibbles as in Q4_0; the values are twice those of FP4 E2M1. */
typedef struct pe_block_mxfp4 {
    uint8_t e;
    uint8_t q[PE_BLOCK / 2];
} pe_block_mxfp4;
_Static_assert(sizeof(pe_block_mxfp4) == 17, "MXFP4 is 17 bytes per 32 weights");

/* Super-blocks of 256 weights, 8 units of 32. Unit u, weight i of it in 0..31. */

/* Q2_K: weight = d * (scale & 15) * q - dmin * (scale >> 4), scale[2 u + i / 16],
 * q = bits 2 (u % 4) of q[32 (u / 4) + i]. */
typedef struct pe_block_q2_k {
    uint8_t scale[PE_SUPER_BLOCK / 16];
    uint8_t q[PE_SUPER_BLOCK / 4];
    pe_f16 d;
    pe_f16 dmin;
} pe_block_q2_k;
_Static_assert(sizeof(pe_block_q2_k) == 84, "Q2_K is 84 bytes per 256 weights");

/* Q3_K: weight = d * (scale - 32) * (q - 4), q = bits 2 (u % 4) of low[32 (u / 4) + i]
 * and bit u of high[i] above them. The sixteen 6-bit scales j = 2 u + i / 16: bits 0-3
 * the nibble j / 8 of scale[j % 8], bits 4-5 bits 2 (j / 4) of scale[8 + j % 4]. */
typedef struct pe_block_q3_k {
    uint8_t high[PE_SUPER_BLOCK / 8];
    uint8_t low[PE_SUPER_BLOCK / 4];
    uint8_t scale[12];
    pe_f16 d;
} pe_block_q3_k;
_Static_assert(sizeof(pe_block_q3_k) == 110, "Q3_K is 110 bytes per 256 weights");

/* Q4_K: weight = d * scale * q - dmin * min, q = nibble u % 2 of q[32 (u / 2) + i].
 * The 6-bit scale and min of unit u < 4: scale[u] and scale[4 + u], bits 0-5; of unit
 * u >= 4: low bits the nibbles of scale[4 + u] (scale the low one), high bits the bits
 * 6-7 of scale[u - 4] and of scale[u]. */
typedef struct pe_block_q4_k {
    pe_f16 d;
    pe_f16 dmin;
    uint8_t scale[12];
    uint8_t q[PE_SUPER_BLOCK / 2];
} pe_block_q4_k;
_Static_assert(sizeof(pe_block_q4_k) == 144, "Q4_K is 144 bytes per 256 weights");

/* Q5_K: as Q4_K, with bit u of high[i] above the nibble. */
typedef struct pe_block_q5_k {
    pe_f16 d;
    pe_f16 dmin;
    uint8_t scale[12];
    uint8_t high[PE_SUPER_BLOCK / 8];
    uint8_t low[PE_SUPER_BLOCK / 2];
} pe_block_q5_k;
_Static_assert(sizeof(pe_block_q5_k) == 176, "Q5_K is 176 bytes per 256 weights");

/* Q6_K: weight = d * scale[j / 16] * (q - 32), q in 0..63, j in 0..255.
 *
 *     byte  0          128       192          208  210
 *           | low[128] | high[64] | scale[16] | d  |
 *     For half h = 0, 1 and i in 0..31, weights 128 h + 32 n + i, n = 0..3:
 *     n = 0: low nibble of low[64 h + i],       bits 0-1 of high[32 h + i] above it
 *     n = 1: low nibble of low[64 h + 32 + i],  bits 2-3
 *     n = 2: high nibble of low[64 h + i],      bits 4-5
 *     n = 3: high nibble of low[64 h + 32 + i], bits 6-7 */
typedef struct pe_block_q6_k {
    uint8_t low[PE_SUPER_BLOCK / 2];
    uint8_t high[PE_SUPER_BLOCK / 4];
    int8_t scale[PE_SUPER_BLOCK / 16];
    pe_f16 d;
} pe_block_q6_k;
_Static_assert(sizeof(pe_block_q6_k) == 210, "Q6_K is 210 bytes per 256 weights");

/* IQ4_XS: weight = d * (scale - 32) * PE_IQ4_VALUES[q], q a nibble of q[16 u + i % 16] as
 * in Q4_0. The 6-bit scale of unit u: bits 0-3 nibble u % 2 of scale_low[u / 2], bits 4-5
 * bits 2 u of scale_high. */
typedef struct pe_block_iq4_xs {
    pe_f16 d;
    uint16_t scale_high;
    uint8_t scale_low[PE_SUPER_BLOCK / 64];
    uint8_t q[PE_SUPER_BLOCK / 2];
} pe_block_iq4_xs;
_Static_assert(sizeof(pe_block_iq4_xs) == 136, "IQ4_XS is 136 bytes per 256 weights");

/* What the nibbles of IQ4_NL and IQ4_XS, and of MXFP4, stand for. */
#define PE_IQ4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
#define PE_MXFP4_VALUES 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12

/* 32 weights of any quantized type as integers, scales and minimums:
 *
 *     weight[i] = d[i / 16] * q[i] + m[i / 16]
 *
 * This is all that the engine knows of a type: dequantizing is the formula above, each
 * operation rounded, and every product starts from the same numbers. Types with one
 * scale per 32 weights repeat it; types without minimums leave m out. Products of
 * fp16 and sub-scales are exact in float. */
typedef struct pe_unit {
    float d[2];
    float m[2];
    int8_t q[PE_BLOCK];
} pe_unit;

/* Unpacks unit i_unit of a row. */
typedef void (*pe_unit_fn)(pe_unit *out, const void *row, size_t i_unit);

/* Packs one block; false when its scale or minimum leaves fp16. See pe_pack.h. */
typedef bool (*pe_pack_fn)(void *out, const float *x);

/* What a row of dtype is multiplied with. */
typedef enum pe_acts_kind {
    PE_ACTS_F32,  // floats as they are
    PE_ACTS_Q8    // 8 bits per block of 32: pe_act_block in pe_kernels.h
} pe_acts_kind;

typedef struct pe_dtype_traits {
    pe_dtype_info info;
    pe_acts_kind acts;       // meaningful when info.can_compute
    pe_unit_fn unpack_unit;  // of the quantized types, else NULL
    pe_pack_fn pack_block;   // likewise
    uint8_t n_scales;        // different scales in a unit: 1 or 2
    bool has_min;
} pe_dtype_traits;

/* One more than the largest type number with a row in the table. */
#define PE_DTYPE_END 42

/* The table row of a type number, or NULL when no known GGUF version defines it. */
const pe_dtype_traits *pe_dtype_find(uint32_t dtype);

#endif
