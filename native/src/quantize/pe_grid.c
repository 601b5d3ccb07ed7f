#include "pe_grid.h"

#include "pe_bits.h"
#include "pe_unit.h"

/* The tables, rising, with the midpoints of neighbours. */
static const int8_t IQ4_TABLE[16] = {PE_IQ4_VALUES};
static const float IQ4_BOUNDS[15] = {-115.5f, -93.5f, -74.0f, -57.0f, -42.0f, -28.5f, -16.0f, -4.5f,
                                     7.0f,    19.0f,  31.5f,  45.5f,  61.0f,  79.0f,  101.0f};
static const int8_t IQ4_CODES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Zero is there once: of FP4's two the positive one is written. */
static const int8_t MXFP4_TABLE[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12, 12};
static const float MXFP4_BOUNDS[15] = {-10.0f, -7.0f, -5.0f, -3.5f, -2.5f, -1.5f, -0.5f,   0.5f,
                                       1.5f,   2.5f,  3.5f,  5.0f,  7.0f,  10.0f, 0x1p126f};
static const int8_t MXFP4_CODES[16] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7};

bool pe_grid_init(pe_grid *out, uint32_t dtype) {
    const pe_dtype_traits *traits = pe_dtype_find(dtype);
    if (traits == NULL || traits->unpack_unit == NULL) {
        return false;
    }
    memset(out, 0, sizeof *out);
    out->dtype = (pe_dtype)dtype;
    out->n_weights = (uint16_t)traits->info.block_weights;
    out->sub_shift = traits->n_scales == 2 ? 4 : 5;
    out->sub = (uint8_t)(1 << out->sub_shift);
    out->n_subs = (uint8_t)(out->n_weights >> out->sub_shift);
    out->has_min = traits->has_min;
    switch (dtype) {
    case PE_DTYPE_Q4_0: out->low = -8, out->high = 7; break;
    case PE_DTYPE_Q4_1:
    case PE_DTYPE_Q4_K: out->high = 15; break;
    case PE_DTYPE_Q5_0: out->low = -16, out->high = 15; break;
    case PE_DTYPE_Q5_1:
    case PE_DTYPE_Q5_K: out->high = 31; break;
    case PE_DTYPE_Q8_0: out->low = -127, out->high = 127; break;
    case PE_DTYPE_Q2_K: out->high = 3; break;
    case PE_DTYPE_Q3_K: out->low = -4, out->high = 3; break;
    case PE_DTYPE_Q6_K: out->low = -32, out->high = 31; break;
    case PE_DTYPE_IQ4_NL:
    case PE_DTYPE_IQ4_XS:
        out->low = -127, out->high = 113;
        out->table = IQ4_TABLE;
        out->bound = IQ4_BOUNDS;
        break;
    case PE_DTYPE_MXFP4:
        out->low = -12, out->high = 12;
        out->table = MXFP4_TABLE;
        out->bound = MXFP4_BOUNDS;
        break;
    default: return false;
    }
    pe_grid_derive(out);
    return true;
}

void pe_grid_derive(pe_grid *grid) {
    const float d = pe_f16_to_f32(grid->d);
    const float m = pe_f16_to_f32(grid->m);
    for (size_t s = 0; s < grid->n_subs; s++) {
        if (grid->n_subs > 1) {
            grid->step[s] = d * (float)grid->scale[s];
            grid->offset[s] = grid->has_min ? -(m * (float)grid->min[s]) : -0.0f;
        } else {
            grid->step[s] = grid->dtype == PE_DTYPE_MXFP4 ? pe_e8m0_half_to_f32(grid->e) : d;
            grid->offset[s] = grid->has_min ? m : -0.0f;
        }
        const float inverse = grid->step[s] != 0.0f ? 1.0f / grid->step[s] : 0.0f;
        grid->inverse[s] = pe_f32_is_finite(inverse) ? inverse : 0.0f;
    }
}

double pe_grid_error(const pe_grid *grid, const float *w, const float *h) {
    double error = 0.0;
    for (size_t i = 0; i < grid->n_weights; i++) {
        int level;
        const double off = (double)w[i] - (double)pe_grid_round(grid, i, w[i], &level);
        error += (h == NULL ? 1.0 : (double)h[i]) * off * off;
    }
    return error;
}

/* ---- bytes ------------------------------------------------------------ */

/* The unsigned integers that stand in the block. */
static void to_codes(uint8_t *out, const pe_grid *grid, const int8_t *levels) {
    if (grid->table == NULL) {
        for (size_t i = 0; i < grid->n_weights; i++) {
            out[i] = (uint8_t)(levels[i] - grid->low);
        }
        return;
    }
    const int8_t *codes = grid->table == IQ4_TABLE ? IQ4_CODES : MXFP4_CODES;
    for (size_t i = 0; i < grid->n_weights; i++) {
        size_t k = 0;
        while (k < 15 && grid->table[k] < levels[i]) {
            k++;
        }
        out[i] = (uint8_t)codes[k];
    }
}

static void encode_32(void *out_block, const pe_grid *grid, const int8_t *levels) {
    uint8_t code[PE_BLOCK];
    to_codes(code, grid, levels);
    switch (grid->dtype) {
    case PE_DTYPE_Q4_0:
    case PE_DTYPE_IQ4_NL: {  // the same layout
        pe_block_q4_0 *block = out_block;
        block->d = grid->d;
        pe_bits_put_nibbles(block->q, code);
        return;
    }
    case PE_DTYPE_Q4_1: {
        pe_block_q4_1 *block = out_block;
        block->d = grid->d;
        block->m = grid->m;
        pe_bits_put_nibbles(block->q, code);
        return;
    }
    case PE_DTYPE_Q5_0: {
        pe_block_q5_0 *block = out_block;
        block->d = grid->d;
        pe_bits_put_nibbles(block->low, code);
        pe_bits_put_fifth(block->high, code);
        return;
    }
    case PE_DTYPE_Q5_1: {
        pe_block_q5_1 *block = out_block;
        block->d = grid->d;
        block->m = grid->m;
        pe_bits_put_nibbles(block->low, code);
        pe_bits_put_fifth(block->high, code);
        return;
    }
    case PE_DTYPE_MXFP4: {
        pe_block_mxfp4 *block = out_block;
        block->e = grid->e;
        pe_bits_put_nibbles(block->q, code);
        return;
    }
    default: {
        pe_block_q8_0 *block = out_block;
        block->d = grid->d;
        memcpy(block->q, levels, PE_BLOCK);
        return;
    }
    }
}

static void encode_256(void *out_block, const pe_grid *grid, const int8_t *levels) {
    uint8_t code[PE_SUPER_BLOCK];
    to_codes(code, grid, levels);
    uint8_t scale[PE_GRID_MAX_SUBS];  // where they are not negative
    memcpy(scale, grid->scale, sizeof scale);
    switch (grid->dtype) {
    case PE_DTYPE_Q2_K: {
        pe_block_q2_k *block = out_block;
        block->d = grid->d;
        block->dmin = grid->m;
        for (size_t j = 0; j < PE_LEN(block->scale); j++) {
            block->scale[j] = (uint8_t)(scale[j] | grid->min[j] << 4);
        }
        pe_bits_put_pairs(block->q, code);
        return;
    }
    case PE_DTYPE_Q3_K: {
        pe_block_q3_k *block = out_block;
        block->d = grid->d;
        pe_bits_put_q3_k_scales(block->scale, grid->scale);
        pe_bits_put_one(block->high, code, 2);
        pe_bits_put_pairs(block->low, code);
        return;
    }
    case PE_DTYPE_Q4_K: {
        pe_block_q4_k *block = out_block;
        block->d = grid->d;
        block->dmin = grid->m;
        pe_bits_put_q4_k_scales(block->scale, scale, grid->min);
        pe_bits_put_unit_nibbles(block->q, code);
        return;
    }
    case PE_DTYPE_Q5_K: {
        pe_block_q5_k *block = out_block;
        block->d = grid->d;
        block->dmin = grid->m;
        pe_bits_put_q4_k_scales(block->scale, scale, grid->min);
        pe_bits_put_unit_nibbles(block->low, code);
        pe_bits_put_one(block->high, code, 4);
        return;
    }
    case PE_DTYPE_IQ4_XS: {
        pe_block_iq4_xs *block = out_block;
        block->d = grid->d;
        block->scale_high = 0;
        memset(block->scale_low, 0, sizeof block->scale_low);
        for (size_t u = 0; u < grid->n_subs; u++) {
            const int sc = grid->scale[u] + 32;
            block->scale_low[u / 2] |= (uint8_t)((sc & 15) << (4 * (u % 2)));
            block->scale_high |= (uint16_t)(sc >> 4 << (2 * u));
            pe_bits_put_nibbles(block->q + 16 * u, code + PE_BLOCK * u);
        }
        return;
    }
    default: {
        pe_block_q6_k *block = out_block;
        block->d = grid->d;
        memcpy(block->scale, grid->scale, sizeof block->scale);
        pe_bits_put_q6_k(block, code);
        return;
    }
    }
}

void pe_grid_encode(void *out_block, const pe_grid *grid, const int8_t *levels) {
    if (grid->n_weights == PE_BLOCK) {
        encode_32(out_block, grid, levels);
    } else {
        encode_256(out_block, grid, levels);
    }
}

/* ---- and back --------------------------------------------------------- */

static void decode_q4_k_scales(pe_grid *out, const uint8_t *packed) {
    for (size_t u = 0; u < 4; u++) {
        out->scale[u] = (int8_t)(packed[u] & 63);
        out->min[u] = packed[u + 4] & 63;
        out->scale[u + 4] = (int8_t)((packed[u + 8] & 15) | (packed[u] >> 6) << 4);
        out->min[u + 4] = (uint8_t)(packed[u + 8] >> 4 | (packed[u + 4] >> 6) << 4);
    }
}

static void decode_scales(pe_grid *out, const void *block) {
    switch (out->dtype) {
    case PE_DTYPE_Q4_1: out->m = ((const pe_block_q4_1 *)block)->m; break;
    case PE_DTYPE_Q5_1: out->m = ((const pe_block_q5_1 *)block)->m; break;
    case PE_DTYPE_MXFP4: out->e = ((const pe_block_mxfp4 *)block)->e; return;
    case PE_DTYPE_Q2_K: {
        const pe_block_q2_k *q2_k = block;
        out->d = q2_k->d;
        out->m = q2_k->dmin;
        for (size_t j = 0; j < PE_LEN(q2_k->scale); j++) {
            out->scale[j] = q2_k->scale[j] & 15;
            out->min[j] = q2_k->scale[j] >> 4;
        }
        return;
    }
    case PE_DTYPE_Q3_K: {
        const pe_block_q3_k *q3_k = block;
        out->d = q3_k->d;
        for (size_t j = 0; j < out->n_subs; j++) {
            const int low = q3_k->scale[j % 8] >> (4 * (j / 8)) & 15;
            const int high = q3_k->scale[8 + j % 4] >> (2 * (j / 4)) & 3;
            out->scale[j] = (int8_t)((low | high << 4) - 32);
        }
        return;
    }
    case PE_DTYPE_Q4_K:
        out->d = ((const pe_block_q4_k *)block)->d;
        out->m = ((const pe_block_q4_k *)block)->dmin;
        decode_q4_k_scales(out, ((const pe_block_q4_k *)block)->scale);
        return;
    case PE_DTYPE_Q5_K:
        out->d = ((const pe_block_q5_k *)block)->d;
        out->m = ((const pe_block_q5_k *)block)->dmin;
        decode_q4_k_scales(out, ((const pe_block_q5_k *)block)->scale);
        return;
    case PE_DTYPE_Q6_K:
        out->d = ((const pe_block_q6_k *)block)->d;
        memcpy(out->scale, ((const pe_block_q6_k *)block)->scale, sizeof out->scale);
        return;
    case PE_DTYPE_IQ4_XS: {
        const pe_block_iq4_xs *iq4_xs = block;
        out->d = iq4_xs->d;
        for (size_t u = 0; u < out->n_subs; u++) {
            const int low = iq4_xs->scale_low[u / 2] >> (4 * (u % 2)) & 15;
            const int high = iq4_xs->scale_high >> (2 * u) & 3;
            out->scale[u] = (int8_t)((low | high << 4) - 32);
        }
        return;
    }
    default: break;
    }
    memcpy(&out->d, block, sizeof out->d);  // d comes first in all blocks of 32 but MXFP4
}

bool pe_grid_decode(pe_grid *out, int8_t *levels, uint32_t dtype, const void *block) {
    if (!pe_grid_init(out, dtype)) {
        return false;
    }
    decode_scales(out, block);
    if ((out->d & 0x7c00u) == 0x7c00u || (out->m & 0x7c00u) == 0x7c00u) {
        return false;
    }
    pe_grid_derive(out);
    const pe_unit_fn unpack = pe_dtype_find(dtype)->unpack_unit;
    for (size_t u = 0; u < (size_t)out->n_weights / PE_BLOCK; u++) {
        pe_unit unit;
        unpack(&unit, block, u);
        memcpy(levels + u * PE_BLOCK, unit.q, PE_BLOCK);
    }
    return true;
}
