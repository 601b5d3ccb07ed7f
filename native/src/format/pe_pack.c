#include "pe_pack.h"

#include <math.h>

#include "pe_bits.h"
#include "pe_math.h"

static const int8_t MXFP4_VALUES[16] = {PE_MXFP4_VALUES};

/* 1 / d, or 0 for a block of zeros. A d below 2^-126 may give infinity, which the
 * clamps below keep from reaching an integer; such a d is 0 in fp16 anyway. */
static float inverse(float d) {
    return d != 0.0f ? 1.0f / d : 0.0f;
}

/* The integer part of x in 0..top; NaN gives 0. */
static uint8_t held(float x, uint8_t top) {
    if (!(x >= 0.0f)) {
        return 0;
    }
    return x < (float)top ? (uint8_t)x : top;
}

/* The weight of largest magnitude, the first of equals. */
static float extreme(const float *x) {
    float found = x[0];
    for (size_t i = 1; i < PE_BLOCK; i++) {
        if (fabsf(x[i]) > fabsf(found)) {
            found = x[i];
        }
    }
    return found;
}

static void range(float *out_min, float *out_max, const float *x) {
    *out_min = *out_max = x[0];
    for (size_t i = 1; i < PE_BLOCK; i++) {
        *out_min = PE_MIN(*out_min, x[i]);
        *out_max = PE_MAX(*out_max, x[i]);
    }
}

/* ---- scale alone ------------------------------------------------------ */

/* Integers 0..2 half - 1 around half, and the scale: the largest magnitude maps to
 * -half, the end of the range that reaches furthest. */
static float around(uint8_t *q, const float *x, uint8_t half) {
    const float d = extreme(x) / -(float)half;
    const float inv = inverse(d);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        q[i] = held(x[i] * inv + ((float)half + 0.5f), (uint8_t)(2 * half - 1));
    }
    return d;
}

bool pe_pack_q4_0(void *out, const float *x) {
    pe_block_q4_0 *block = out;
    uint8_t q[PE_BLOCK];
    const float d = around(q, x, 8);
    pe_bits_put_nibbles(block->q, q);
    return pe_pack_f16(&block->d, d);
}

bool pe_pack_q5_0(void *out, const float *x) {
    pe_block_q5_0 *block = out;
    uint8_t q[PE_BLOCK];
    const float d = around(q, x, 16);
    pe_bits_put_nibbles(block->low, q);
    pe_bits_put_fifth(block->high, q);
    return pe_pack_f16(&block->d, d);
}

bool pe_pack_q8_0(void *out, const float *x) {
    pe_block_q8_0 *block = out;
    const float d = fabsf(extreme(x)) / 127.0f;
    const float inv = inverse(d);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const float q = roundf(x[i] * inv);  // ties away from zero
        block->q[i] = q >= -127.0f && q <= 127.0f ? (int8_t)q : 0;
    }
    return pe_pack_f16(&block->d, d);
}

/* The power of two is that of log2's value as a float: it, too, rounds the last
 * floats below a power of two up to it. */
static uint8_t mxfp4_exponent(float widest) {
    if (!(widest > 0.0f)) {
        return 0;
    }
    const double ln2 = 0x1.62e42fefa39efp-1;
    const float e = floorf((float)(pe_log((double)widest) / ln2)) - 2.0f + 127.0f;
    return held(e, 254);
}

bool pe_pack_mxfp4(void *out, const float *x) {
    pe_block_mxfp4 *block = out;
    block->e = mxfp4_exponent(fabsf(extreme(x)));
    const float d = pe_e8m0_half_to_f32(block->e);
    uint8_t q[PE_BLOCK];
    for (size_t i = 0; i < PE_BLOCK; i++) {
        q[i] = 0;
        float least = fabsf(x[i]);  // the error of value 0
        for (uint8_t v = 1; v < PE_LEN(MXFP4_VALUES); v++) {
            const float error = fabsf((float)MXFP4_VALUES[v] * d - x[i]);
            if (error < least) {
                least = error;
                q[i] = v;
            }
        }
    }
    pe_bits_put_nibbles(block->q, q);
    return true;
}

/* ---- scale and minimum ------------------------------------------------ */

/* Integers 0..top above the minimum. */
static float above(uint8_t *q, float *out_min, const float *x, uint8_t top) {
    float max;
    range(out_min, &max, x);
    const float d = (max - *out_min) / (float)top;
    const float inv = inverse(d);
    for (size_t i = 0; i < PE_BLOCK; i++) {
        q[i] = held((x[i] - *out_min) * inv + 0.5f, top);
    }
    return d;
}

bool pe_pack_q4_1(void *out, const float *x) {
    pe_block_q4_1 *block = out;
    uint8_t q[PE_BLOCK];
    float min;
    const float d = above(q, &min, x, 15);
    pe_bits_put_nibbles(block->q, q);
    const bool d_fits = pe_pack_f16(&block->d, d);
    const bool m_fits = pe_pack_f16(&block->m, min);
    return d_fits && m_fits;
}

bool pe_pack_q5_1(void *out, const float *x) {
    pe_block_q5_1 *block = out;
    uint8_t q[PE_BLOCK];
    float min;
    const float d = above(q, &min, x, 31);
    pe_bits_put_nibbles(block->low, q);
    pe_bits_put_fifth(block->high, q);
    const bool d_fits = pe_pack_f16(&block->d, d);
    const bool m_fits = pe_pack_f16(&block->m, min);
    return d_fits && m_fits;
}
