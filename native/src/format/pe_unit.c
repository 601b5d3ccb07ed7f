/* Written to be read beside the bit maps of pe_dtype.h, one weight at a time. */
#include "pe_unit.h"

#define UNITS (PE_SUPER_BLOCK / PE_BLOCK)  // of a super-block

static const int8_t IQ4_VALUES[16] = {PE_IQ4_VALUES};
static const int8_t MXFP4_VALUES[16] = {PE_MXFP4_VALUES};

/* Weight i's nibble of a run of 16 bytes: low nibbles first. */
static int nibble(const uint8_t *run, size_t i) {
    return i < 16 ? run[i] & 15 : run[i - 16] >> 4;
}

static void one_scale(pe_unit *out, float d) {
    out->d[0] = out->d[1] = d;
}

static void one_min(pe_unit *out, float m) {
    out->m[0] = out->m[1] = m;
}

/* ---- blocks of 32 ----------------------------------------------------- */

void pe_unit_q4_0(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q4_0 *block = (const pe_block_q4_0 *)row + i_unit;
    one_scale(out, pe_f16_to_f32(block->d));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = (int8_t)(nibble(block->q, i) - 8);
    }
}

void pe_unit_q4_1(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q4_1 *block = (const pe_block_q4_1 *)row + i_unit;
    one_scale(out, pe_f16_to_f32(block->d));
    one_min(out, pe_f16_to_f32(block->m));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = (int8_t)nibble(block->q, i);
    }
}

void pe_unit_q5_0(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q5_0 *block = (const pe_block_q5_0 *)row + i_unit;
    one_scale(out, pe_f16_to_f32(block->d));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const int high = block->high[i / 8] >> (i % 8) & 1;
        out->q[i] = (int8_t)((nibble(block->low, i) | high << 4) - 16);
    }
}

void pe_unit_q5_1(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q5_1 *block = (const pe_block_q5_1 *)row + i_unit;
    one_scale(out, pe_f16_to_f32(block->d));
    one_min(out, pe_f16_to_f32(block->m));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const int high = block->high[i / 8] >> (i % 8) & 1;
        out->q[i] = (int8_t)(nibble(block->low, i) | high << 4);
    }
}

void pe_unit_q8_0(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q8_0 *block = (const pe_block_q8_0 *)row + i_unit;
    one_scale(out, pe_f16_to_f32(block->d));
    memcpy(out->q, block->q, sizeof out->q);
}

void pe_unit_iq4_nl(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_iq4_nl *block = (const pe_block_iq4_nl *)row + i_unit;
    one_scale(out, pe_f16_to_f32(block->d));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = IQ4_VALUES[nibble(block->q, i)];
    }
}

void pe_unit_mxfp4(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_mxfp4 *block = (const pe_block_mxfp4 *)row + i_unit;
    one_scale(out, pe_e8m0_half_to_f32(block->e));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = MXFP4_VALUES[nibble(block->q, i)];
    }
}

/* ---- super-blocks of 256 ---------------------------------------------- */

void pe_unit_q2_k(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q2_k *block = (const pe_block_q2_k *)row + i_unit / UNITS;
    const size_t u = i_unit % UNITS;
    for (size_t h = 0; h < 2; h++) {
        const int scale = block->scale[2 * u + h];
        out->d[h] = pe_f16_to_f32(block->d) * (float)(scale & 15);
        out->m[h] = -(pe_f16_to_f32(block->dmin) * (float)(scale >> 4));
    }
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = (int8_t)(block->q[32 * (u / 4) + i] >> (2 * (u % 4)) & 3);
    }
}

void pe_unit_q3_k(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q3_k *block = (const pe_block_q3_k *)row + i_unit / UNITS;
    const size_t u = i_unit % UNITS;
    for (size_t h = 0; h < 2; h++) {
        const size_t j = 2 * u + h;
        const int low = block->scale[j % 8] >> (4 * (j / 8)) & 15;
        const int high = block->scale[8 + j % 4] >> (2 * (j / 4)) & 3;
        out->d[h] = pe_f16_to_f32(block->d) * (float)((low | high << 4) - 32);
    }
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const int low = block->low[32 * (u / 4) + i] >> (2 * (u % 4)) & 3;
        const int high = block->high[i] >> u & 1;
        out->q[i] = (int8_t)((low | high << 2) - 4);
    }
}

/* Scale and minimum of a unit of Q4_K or Q5_K. */
static void scale_and_min(pe_unit *out, pe_f16 d, pe_f16 dmin, const uint8_t *scale, size_t u) {
    const int sc = u < 4 ? scale[u] & 63 : (scale[4 + u] & 15) | (scale[u - 4] >> 6) << 4;
    const int min = u < 4 ? scale[4 + u] & 63 : scale[4 + u] >> 4 | (scale[u] >> 6) << 4;
    one_scale(out, pe_f16_to_f32(d) * (float)sc);
    one_min(out, -(pe_f16_to_f32(dmin) * (float)min));
}

void pe_unit_q4_k(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q4_k *block = (const pe_block_q4_k *)row + i_unit / UNITS;
    const size_t u = i_unit % UNITS;
    scale_and_min(out, block->d, block->dmin, block->scale, u);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = (int8_t)(block->q[32 * (u / 2) + i] >> (4 * (u % 2)) & 15);
    }
}

void pe_unit_q5_k(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q5_k *block = (const pe_block_q5_k *)row + i_unit / UNITS;
    const size_t u = i_unit % UNITS;
    scale_and_min(out, block->d, block->dmin, block->scale, u);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const int low = block->low[32 * (u / 2) + i] >> (4 * (u % 2)) & 15;
        const int high = block->high[i] >> u & 1;
        out->q[i] = (int8_t)(low | high << 4);
    }
}

void pe_unit_q6_k(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_q6_k *block = (const pe_block_q6_k *)row + i_unit / UNITS;
    const size_t u = i_unit % UNITS;
    const size_t half = u / 4;
    const size_t n = u % 4;
    for (size_t h = 0; h < 2; h++) {
        out->d[h] = pe_f16_to_f32(block->d) * (float)block->scale[2 * u + h];
    }
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const int low = block->low[64 * half + 32 * (n % 2) + i] >> (4 * (n / 2)) & 15;
        const int high = block->high[32 * half + i] >> (2 * n) & 3;
        out->q[i] = (int8_t)((low | high << 4) - 32);
    }
}

void pe_unit_iq4_xs(pe_unit *out, const void *row, size_t i_unit) {
    const pe_block_iq4_xs *block = (const pe_block_iq4_xs *)row + i_unit / UNITS;
    const size_t u = i_unit % UNITS;
    const int low = block->scale_low[u / 2] >> (4 * (u % 2)) & 15;
    const int high = block->scale_high >> (2 * u) & 3;
    one_scale(out, pe_f16_to_f32(block->d) * (float)((low | high << 4) - 32));
    for (size_t i = 0; i < PE_BLOCK; i++) {
        out->q[i] = IQ4_VALUES[nibble(block->q + 16 * u, i)];
    }
}
