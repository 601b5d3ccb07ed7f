#include "pe_delta.h"

#include <math.h>

#include "pe_math.h"

#define NORM_EPS 1e-6f

/* Above it, softplus is its argument to double precision; NaN stays, too. */
#define SOFTPLUS_LINEAR 40.0

/* One token's sums; the past moves on. taps: [n_taps][PE_DELTA_CHANNELS]. */
static void convolve_token(float *x, float *past, const float *taps, size_t n_taps, size_t n) {
    float sum[PE_DELTA_CHANNELS] = {0};
    const size_t n_past = n_taps - 1;
    for (size_t i = 0; i < n_past; i++) {
        for (size_t c = 0; c < n; c++) {
            sum[c] += taps[i * PE_DELTA_CHANNELS + c] * past[i * n + c];
        }
    }
    for (size_t c = 0; c < n; c++) {
        sum[c] += taps[n_past * PE_DELTA_CHANNELS + c] * x[c];
    }
    if (n_past > 0) {
        memmove(past, past + n, (n_past - 1) * n * sizeof *past);
        memcpy(past + (n_past - 1) * n, x, n * sizeof *past);
    }
    memcpy(x, sum, n * sizeof *x);
}

void pe_delta_convolve(const pe_kernels *kernels, float *x, size_t x_stride, float *past,
                       const float *taps, size_t n_taps, size_t n_channels, size_t n_tokens) {
    float by_tap[PE_DELTA_MAX_TAPS * PE_DELTA_CHANNELS];  // so that channels are neighbours
    for (size_t c = 0; c < n_channels; c++) {
        for (size_t i = 0; i < n_taps; i++) {
            by_tap[i * PE_DELTA_CHANNELS + c] = taps[c * n_taps + i];
        }
    }
    for (size_t t = 0; t < n_tokens; t++, x += x_stride) {
        convolve_token(x, past, by_tap, n_taps, n_channels);
        kernels->sigmoid_mul(x, x, x, n_channels);
    }
}

void pe_delta_norm(const pe_kernels *kernels, float *x, size_t d, float scale) {
    float sum_of_squares;
    kernels->matvec[PE_DTYPE_F32](&sum_of_squares, 1, x, 0, 1, x, 0, 1, d);
    const float r = scale / sqrtf(sum_of_squares + NORM_EPS);
    for (size_t i = 0; i < d; i++) {
        x[i] *= r;
    }
}

float pe_delta_decay(float x, float rate) {
    const double softplus = x < SOFTPLUS_LINEAR ? pe_log(1.0 + pe_exp((double)x)) : (double)x;
    return (float)pe_exp((double)rate * softplus);
}

float pe_delta_share(float x) {
    return (float)(1.0 / (1.0 + pe_exp(-(double)x)));
}
