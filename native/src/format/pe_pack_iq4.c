#include <math.h>

#include "pe_fit.h"
#include "pe_pack.h"

static const int8_t VALUES[16] = {PE_IQ4_VALUES};

/* The number of the value nearest to x, the larger of two as near; 15 for NaN. */
static uint8_t nearest_value(float x) {
    if (x <= (float)VALUES[0]) {
        return 0;
    }
    uint8_t next = 1;
    while (next < 15 && !(x < (float)VALUES[next])) {
        next++;
    }
    const float below = x - (float)VALUES[next - 1];
    return below < (float)VALUES[next] - x ? (uint8_t)(next - 1) : next;
}

/* Sums of least squares with weights x^2 for a scale of 1 / inverse. */
static void try_inverse(float *out_xv, float *out_vv, const float *x, float inverse) {
    *out_xv = *out_vv = 0.0f;
    for (size_t i = 0; i < PE_BLOCK; i++) {
        const float value = (float)VALUES[nearest_value(inverse * x[i])];
        const float w = x[i] * x[i];
        *out_xv += w * value * x[i];
        *out_vv += w * value * value;
    }
}

/* The best of 16 scales: those that map the extreme weight to the first value or up to
 * seven above or below it. */
static float fit(const float *x) {
    const float extreme = pe_fit_extreme(x, PE_BLOCK);
    if (fabsf(extreme) < PE_FIT_EPSILON) {
        return 0.0f;
    }
    float xv;
    float vv;
    try_inverse(&xv, &vv, x, 1.0f / (-extreme / (float)VALUES[0]));
    float scale = vv > 0.0f ? xv / vv : 0.0f;
    float best = scale * xv;
    for (int step = -7; step <= 7; step++) {
        try_inverse(&xv, &vv, x, (float)(step + VALUES[0]) / extreme);
        if (vv > 0.0f && xv * xv > best * vv) {
            scale = xv / vv;
            best = scale * xv;
        }
    }
    return scale;
}

static void put_values(uint8_t *out, const float *x, float scale) {
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < PE_BLOCK / 2; i++) {
        out[i] = (uint8_t)(nearest_value(inverse * x[i]) |
                           nearest_value(inverse * x[i + PE_BLOCK / 2]) << 4);
    }
}

bool pe_pack_iq4_nl(void *out, const float *x) {
    pe_block_iq4_nl *block = out;
    const float scale = fit(x);
    put_values(block->q, x, scale);
    return pe_pack_f16(&block->d, scale);
}

bool pe_pack_iq4_xs(void *out, const float *x) {
    pe_block_iq4_xs *block = out;
    float scale[PE_SUPER_BLOCK / PE_BLOCK];
    bool finite = true;
    for (size_t u = 0; u < PE_LEN(scale); u++) {
        scale[u] = fit(x + u * PE_BLOCK);
        finite = finite && pe_f32_is_finite(scale[u]);
    }
    const float d = -pe_fit_extreme(scale, PE_LEN(scale)) / 32.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    block->scale_high = 0;
    memset(block->scale_low, 0, sizeof block->scale_low);
    for (size_t u = 0; u < PE_LEN(scale); u++) {
        const int sc = pe_fit_hold(pe_fit_nearest(inverse * scale[u]), -32, 31);
        put_values(block->q + 16 * u, x + u * PE_BLOCK, d * (float)sc);
        block->scale_low[u / 2] |= (uint8_t)(((sc + 32) & 15) << (4 * (u % 2)));
        block->scale_high |= (uint16_t)((sc + 32) >> 4 << (2 * u));
    }
    return pe_pack_f16(&block->d, d) && finite;
}
