#include "pe_rope.h"

#include "pe_math.h"

void pe_rope_freqs(float *out, uint32_t n_pairs, float base, float factor, const float *factors) {
    const double log_base = pe_log((double)base);
    for (uint32_t i = 0; i < n_pairs; i++) {
        const double freq = pe_exp(-log_base * i / n_pairs) / (double)factor;
        out[i] = (float)(factors != NULL ? freq / (double)factors[i] : freq);
    }
}

void pe_rope_angles(float *out, const float *freqs, uint32_t n_pairs, uint32_t position) {
    for (uint32_t i = 0; i < n_pairs; i++) {
        double sine;
        double cosine;
        pe_sincos((double)((float)position * freqs[i]), &sine, &cosine);
        out[2 * i] = (float)cosine;
        out[2 * i + 1] = (float)sine;
    }
}

void pe_rope_rotate_pairs(float *head, const float *angles, uint32_t n_pairs) {
    for (uint32_t i = 0; i < n_pairs; i++) {
        const float a = head[2 * i];
        const float b = head[2 * i + 1];
        const float cosine = angles[2 * i];
        const float sine = angles[2 * i + 1];
        head[2 * i] = a * cosine - b * sine;
        head[2 * i + 1] = b * cosine + a * sine;
    }
}
