/* Sub-blocks are fitted each for itself; then their scales and minimums are rounded to
 * integers, and the weights once more to what these stand for. */
#include <math.h>

#include "pe_bits.h"
#include "pe_fit.h"
#include "pe_pack.h"

#define N_HALVES (PE_SUPER_BLOCK / 16)  // sub-blocks of 16 weights
#define N_UNITS (PE_SUPER_BLOCK / PE_BLOCK)

/* The scale of largest magnitude; NaN if one is no number. */
static float widest(const float *scale, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!pe_f32_is_finite(scale[i])) {
            return NAN;
        }
    }
    return pe_fit_extreme(scale, n);
}

/* The largest of n numbers, 0 at least; NaN if one is no number. */
static float largest(const float *x, size_t n) {
    float found = 0.0f;
    for (size_t i = 0; i < n; i++) {
        if (!pe_f32_is_finite(x[i])) {
            return NAN;
        }
        found = x[i] > found ? x[i] : found;
    }
    return found;
}

/* Integers of a sub-block once its scale and minimum are fixed; a scale of 0 leaves
 * those of the fit. */
static void round_again(uint8_t *q, const float *x, size_t n, float d, float m, int low, int high) {
    if (d == 0.0f) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        q[i] = (uint8_t)(pe_fit_hold(pe_fit_nearest((x[i] + m) / d), low, high) - low);
    }
}

/* ---- scales and minimums ---------------------------------------------- */

bool pe_pack_q2_k(void *out, const float *x) {
    static const pe_fit_plan plan = {3, -0.5f, 15, true};
    pe_block_q2_k *block = out;
    uint8_t q[PE_SUPER_BLOCK];
    float scale[N_HALVES];
    float min[N_HALVES];
    for (size_t j = 0; j < N_HALVES; j++) {
        float weight[16];
        for (size_t i = 0; i < 16; i++) {
            weight[i] = fabsf(x[16 * j + i]);
        }
        scale[j] = pe_fit_scale_min(q + 16 * j, &min[j], x + 16 * j, weight, 16, &plan);
    }
    const float max_scale = largest(scale, N_HALVES);
    const float max_min = largest(min, N_HALVES);
    const bool d_fits = pe_pack_f16(&block->d, max_scale / 15.0f);
    const bool m_fits = pe_pack_f16(&block->dmin, max_min / 15.0f);
    for (size_t j = 0; j < N_HALVES; j++) {
        const int sc = max_scale > 0.0f ? pe_fit_nearest(15.0f / max_scale * scale[j]) : 0;
        const int mn = max_min > 0.0f ? pe_fit_nearest(15.0f / max_min * min[j]) : 0;
        block->scale[j] = (uint8_t)(sc | (int)((unsigned)mn << 4));
        const float d = pe_f16_to_f32(block->d) * (float)(block->scale[j] & 15);
        const float m = pe_f16_to_f32(block->dmin) * (float)(block->scale[j] >> 4);
        round_again(q + 16 * j, x + 16 * j, 16, d, m, 0, 3);
    }
    pe_bits_put_pairs(block->q, q);
    return d_fits && m_fits;
}

/* What Q4_K and Q5_K share. Fills scale[12] as Q4_K's bit map has it, and q. */
static bool fit_units(uint8_t *q, pe_f16 *out_d, pe_f16 *out_dmin, uint8_t *packed, const float *x,
                      const pe_fit_plan *plan) {
    float scale[N_UNITS];
    float min[N_UNITS];
    for (size_t u = 0; u < N_UNITS; u++) {
        const float *unit = x + u * PE_BLOCK;
        float squares = 0.0f;
        for (size_t i = 0; i < PE_BLOCK; i++) {
            squares += unit[i] * unit[i];
        }
        const float spread = sqrtf(squares / (float)PE_BLOCK);
        float weight[PE_BLOCK];
        for (size_t i = 0; i < PE_BLOCK; i++) {
            weight[i] = spread + fabsf(unit[i]);
        }
        scale[u] = pe_fit_scale_min(q + u * PE_BLOCK, &min[u], unit, weight, PE_BLOCK, plan);
    }
    const float max_scale = largest(scale, N_UNITS);
    const float max_min = largest(min, N_UNITS);
    const float inverse_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f;
    const float inverse_min = max_min > 0.0f ? 63.0f / max_min : 0.0f;
    const bool d_fits = pe_pack_f16(out_d, max_scale / 63.0f);
    const bool m_fits = pe_pack_f16(out_dmin, max_min / 63.0f);
    uint8_t sc[N_UNITS];
    uint8_t mn[N_UNITS];
    for (size_t u = 0; u < N_UNITS; u++) {
        // Through 8 bits, as the format's own encoder: a scale just below 0 becomes 63.
        const uint8_t wide_scale = (uint8_t)pe_fit_nearest(inverse_scale * scale[u]);
        const uint8_t wide_min = (uint8_t)pe_fit_nearest(inverse_min * min[u]);
        sc[u] = PE_MIN(wide_scale, 63);
        mn[u] = PE_MIN(wide_min, 63);
        const float d = pe_f16_to_f32(*out_d) * (float)sc[u];
        const float m = pe_f16_to_f32(*out_dmin) * (float)mn[u];
        round_again(q + u * PE_BLOCK, x + u * PE_BLOCK, PE_BLOCK, d, m, 0, plan->top);
    }
    pe_bits_put_q4_k_scales(packed, sc, mn);
    return d_fits && m_fits;
}

bool pe_pack_q4_k(void *out, const float *x) {
    static const pe_fit_plan plan = {15, -1.0f, 20, false};
    pe_block_q4_k *block = out;
    uint8_t q[PE_SUPER_BLOCK];
    const bool fits = fit_units(q, &block->d, &block->dmin, block->scale, x, &plan);
    pe_bits_put_unit_nibbles(block->q, q);
    return fits;
}

bool pe_pack_q5_k(void *out, const float *x) {
    static const pe_fit_plan plan = {31, -0.5f, 15, false};
    pe_block_q5_k *block = out;
    uint8_t q[PE_SUPER_BLOCK];
    const bool fits = fit_units(q, &block->d, &block->dmin, block->scale, x, &plan);
    pe_bits_put_unit_nibbles(block->low, q);
    pe_bits_put_one(block->high, q, 4);
    return fits;
}

/* ---- scales alone ----------------------------------------------------- */

bool pe_pack_q3_k(void *out, const float *x) {
    pe_block_q3_k *block = out;
    uint8_t q[PE_SUPER_BLOCK];
    float scale[N_HALVES];
    for (size_t j = 0; j < N_HALVES; j++) {
        scale[j] = pe_fit_scale_by_turns(q + 16 * j, x + 16 * j, 16, 4);
    }
    const float max = widest(scale, N_HALVES);
    const float inverse = -32.0f / max;
    int8_t sc[N_HALVES];
    const bool fits = pe_pack_f16(&block->d, max != 0.0f ? 1.0f / inverse : 0.0f);
    for (size_t j = 0; j < N_HALVES; j++) {
        sc[j] = -32;  // all bits 0
        if (max != 0.0f) {
            sc[j] = (int8_t)pe_fit_hold((int8_t)pe_fit_nearest(inverse * scale[j]), -32, 31);
        }
        const float d = pe_f16_to_f32(block->d) * (float)sc[j];
        round_again(q + 16 * j, x + 16 * j, 16, d, 0.0f, -4, 3);
    }
    pe_bits_put_q3_k_scales(block->scale, sc);
    pe_bits_put_one(block->high, q, 2);
    pe_bits_put_pairs(block->low, q);
    return fits;
}

bool pe_pack_q6_k(void *out, const float *x) {
    pe_block_q6_k *block = out;
    uint8_t q[PE_SUPER_BLOCK];
    float scale[N_HALVES];
    for (size_t j = 0; j < N_HALVES; j++) {
        scale[j] = pe_fit_scale(q + 16 * j, x + 16 * j, 16, 32);
    }
    const float max = widest(scale, N_HALVES);
    if (fabsf(max) < PE_FIT_EPSILON) {
        memset(block, 0, sizeof *block);
        return true;
    }
    const float inverse = -128.0f / max;
    const bool fits = pe_pack_f16(&block->d, 1.0f / inverse);
    for (size_t j = 0; j < N_HALVES; j++) {
        const int sc = pe_fit_nearest(inverse * scale[j]);
        block->scale[j] = (int8_t)PE_MIN(127, sc);
        const float d = pe_f16_to_f32(block->d) * (float)block->scale[j];
        round_again(q + 16 * j, x + 16 * j, 16, d, 0.0f, -32, 31);
    }
    pe_bits_put_q6_k(block, q);
    return fits;
}
