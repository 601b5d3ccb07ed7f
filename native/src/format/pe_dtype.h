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

/* What a row of dtype is multiplied with. */
typedef enum pe_acts_kind {
    PE_ACTS_F32,  // floats as they are
    PE_ACTS_Q8    // 8 bits per block of 32: pe_act_block in pe_kernels.h
} pe_acts_kind;

typedef struct pe_dtype_traits {
    pe_dtype_info info;
    pe_acts_kind acts;  // meaningful when info.can_compute
} pe_dtype_traits;

/* One more than the largest type number with a row in the table. */
#define PE_DTYPE_END 42

/* The table row of a type number, or NULL when no known GGUF version defines it. */
const pe_dtype_traits *pe_dtype_find(uint32_t dtype);

#endif
