/* How one head's keys, or its values, lie in a page of PE_PAGE_TOKENS positions.
 *
 *     F32, F16    keys [d][32], values [32][d]: keys dimension by dimension, values
 *                 position by position, so that neither scores nor sums of values
 *                 need horizontal additions
 *     Q8_0, Q4_0  each position is cut into blocks of 32 along d and rounded as
 *                 GGUF's type is; the last block is filled up with zeros to w, whole
 *                 blocks. First the scales, fp16 [w / 32][32 positions]; then
 *                 Q8_0  keys int8 [w][32], values int8 [32][w]
 *                 Q4_0  keys [w / 2][32], values [32][w / 2]: byte i of a block's 16
 *                       has dimension i in its low nibble, i + 16 in its high one
 *
 * Every array starts on a cache line when the page does. A position's bytes are its
 * own: writers of different positions never meet.
 */
#ifndef PE_PAGE_H
#define PE_PAGE_H

#include "pe_dtype.h"

/* One more than the largest pe_kv_type. */
#define PE_KV_END 5

/* d filled up to whole blocks. */
static inline uint64_t pe_page_width(uint64_t d) {
    return pe_ceil_div(d, PE_BLOCK) * PE_BLOCK;
}

/* Bytes of the scales in front of the integers; 0 for float types. */
static inline uint64_t pe_page_scale_bytes(pe_kv_type type, uint64_t d) {
    const bool has_scales = type == PE_KV_Q8_0 || type == PE_KV_Q4_0;
    return has_scales ? pe_page_width(d) / PE_BLOCK * PE_PAGE_TOKENS * sizeof(pe_f16) : 0;
}

/* Bytes of one head's keys or values of width d. */
static inline uint64_t pe_page_bytes(pe_kv_type type, uint64_t d) {
    const uint64_t scales = pe_page_scale_bytes(type, d);
    switch (type) {
    case PE_KV_F32: return d * PE_PAGE_TOKENS * sizeof(float);
    case PE_KV_Q8_0: return scales + pe_page_width(d) * PE_PAGE_TOKENS;
    case PE_KV_Q4_0: return scales + pe_page_width(d) / 2 * PE_PAGE_TOKENS;
    default: return d * PE_PAGE_TOKENS * sizeof(pe_f16);
    }
}

#endif
