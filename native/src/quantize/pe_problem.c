#include "pe_problem.h"

#include <math.h>

float pe_problem_power(int e) {
    if (e < -126) {
        return pe_f32_from_bits(e < -149 ? 0 : 1u << (e + 149));
    }
    return pe_f32_from_bits((uint32_t)(e + 127) << 23);
}

/* floor(log2 x) for 0 < x < infinity, -126 at least. */
static int exponent_of(float x) {
    const int e = (int)(pe_f32_bits(x) >> 23 & 255) - 127;
    return PE_MAX(e, -126);
}

/* x * 2^e for |e| <= 252; one rounding, unless half way it is subnormal. */
static float scaled(float x, int e) {
    const int first = e / 2;
    return x * pe_problem_power(first) * pe_problem_power(e - first);
}

/* Weights of error this small beside the largest decide only ties. */
#define LEAST_RATIO 0x1p-30f

bool pe_problem_pose(pe_problem *out, pe_grid *grid, const float *w, const float *h) {
    const size_t n = grid->n_weights;
    float widest = 0.0f;
    float heaviest = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float hi = h == NULL ? 1.0f : h[i];
        if (!pe_f32_is_finite(w[i]) || !pe_f32_is_finite(hi) || hi < 0.0f) {
            return false;
        }
        widest = PE_MAX(widest, fabsf(w[i]));
        heaviest = PE_MAX(heaviest, hi);
    }
    out->grid = grid;
    out->exponent = widest > 0.0f ? exponent_of(widest) : 0;
    const int h_exponent = heaviest > 0.0f ? exponent_of(heaviest) : 0;
    for (size_t i = 0; i < n; i++) {
        out->x[i] = scaled(w[i], -out->exponent);
        const float ratio = h == NULL || heaviest == 0.0f ? 1.0f : scaled(h[i], -h_exponent);
        out->h[i] = PE_MAX(ratio, LEAST_RATIO);
    }
    return true;
}

pe_run pe_problem_run(const pe_problem *p, size_t s) {
    const pe_grid *grid = p->grid;
    const size_t first = s * grid->sub;
    return (pe_run){p->x + first, p->h + first, grid->sub,  grid->low,
                    grid->high,   grid->table,  grid->bound};
}

pe_f16 pe_problem_to_f16(const pe_problem *p, float x) {
    return pe_f16_from_f32(scaled(x, p->exponent));
}

float pe_problem_from_f16(const pe_problem *p, pe_f16 x) {
    return scaled(pe_f16_to_f32(x), -p->exponent);
}

pe_f16 pe_problem_beside(pe_f16 x, int by) {
    const int magnitude = (x & 0x7fff) + by;
    return (pe_f16)(magnitude < 0 ? x : (x & 0x8000) | magnitude);
}
