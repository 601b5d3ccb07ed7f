#include "pe_bits.h"

void pe_bits_put_nibbles(uint8_t *out, const uint8_t *code) {
    for (size_t i = 0; i < PE_BLOCK / 2; i++) {
        out[i] = (uint8_t)((code[i] & 15) | (code[i + PE_BLOCK / 2] & 15) << 4);
    }
}

void pe_bits_put_fifth(uint8_t *out, const uint8_t *code) {
    memset(out, 0, PE_BLOCK / 8);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out[i / 8] |= (uint8_t)((code[i] >> 4) << (i % 8));
    }
}

void pe_bits_put_pairs(uint8_t *out, const uint8_t *code) {
    for (size_t i = 0; i < PE_SUPER_BLOCK / 4; i++) {
        const uint8_t *first = code + i / 32 * 128 + i % 32;
        out[i] = (uint8_t)((first[0] & 3) | (first[32] & 3) << 2 | (first[64] & 3) << 4 |
                           (first[96] & 3) << 6);
    }
}

void pe_bits_put_one(uint8_t *out, const uint8_t *code, int bit) {
    memset(out, 0, PE_BLOCK);
    for (size_t i = 0; i < PE_SUPER_BLOCK; i++) {
        out[i % PE_BLOCK] |= (uint8_t)((code[i] >> bit & 1) << (i / PE_BLOCK));
    }
}

void pe_bits_put_unit_nibbles(uint8_t *out, const uint8_t *code) {
    for (size_t i = 0; i < PE_SUPER_BLOCK / 2; i++) {
        const uint8_t *first = code + i / 32 * 64 + i % 32;
        out[i] = (uint8_t)((first[0] & 15) | (first[32] & 15) << 4);
    }
}

void pe_bits_put_q6_k(pe_block_q6_k *block, const uint8_t *code) {
    for (size_t half = 0; half < 2; half++) {
        for (size_t i = 0; i < 32; i++) {
            const uint8_t *first = code + 128 * half + i;
            uint8_t *low = block->low + 64 * half + i;
            low[0] = (uint8_t)((first[0] & 15) | (first[64] & 15) << 4);
            low[32] = (uint8_t)((first[32] & 15) | (first[96] & 15) << 4);
            block->high[32 * half + i] = (uint8_t)(first[0] >> 4 | first[32] >> 4 << 2 |
                                                   first[64] >> 4 << 4 | first[96] >> 4 << 6);
        }
    }
}

void pe_bits_put_q3_k_scales(uint8_t *out, const int8_t *scale) {
    memset(out, 0, 12);
    for (size_t j = 0; j < PE_SUPER_BLOCK / 16; j++) {
        const int code = scale[j] + 32;
        out[j % 8] |= (uint8_t)((code & 15) << (4 * (j / 8)));
        out[8 + j % 4] |= (uint8_t)(code >> 4 << (2 * (j / 4)));
    }
}

void pe_bits_put_q4_k_scales(uint8_t *out, const uint8_t *scale, const uint8_t *min) {
    memset(out, 0, 12);
    for (size_t u = 0; u < 4; u++) {
        out[u] = (uint8_t)(scale[u] | (scale[u + 4] >> 4) << 6);
        out[u + 4] = (uint8_t)(min[u] | (min[u + 4] >> 4) << 6);
        out[u + 8] = (uint8_t)((scale[u + 4] & 15) | (min[u + 4] & 15) << 4);
    }
}
