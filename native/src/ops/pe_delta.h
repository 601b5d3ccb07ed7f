/* The parts of a gated delta rule layer (arXiv:2412.06464) around its recurrence, which is
 * the kernel `delta`: convolution, norms of queries and keys, gates.
 */
#ifndef PE_DELTA_H
#define PE_DELTA_H

#include "pe_kernels.h"

/* Channels that go through all tokens together: whole cache lines. */
#define PE_DELTA_CHANNELS 64u

/* Values of a head that go through all tokens together. */
#define PE_DELTA_VALUES 64u

/* Tokens that a convolution may see, their own included. */
#define PE_DELTA_MAX_TAPS 16u

/* Causal convolution and SiLU, in place, of n_channels channels of n_tokens tokens.
 *     x[t][c] = silu(sum over i of taps[c][i] * x[t - n_taps + 1 + i][c])
 * shape    x: rows x_stride apart; taps: [n_channels][n_taps], the token's own last
 *          past: [n_taps - 1][n_channels] inputs in front of x, oldest first; they move on
 *          n_channels up to PE_DELTA_CHANNELS, n_taps from 1 to PE_DELTA_MAX_TAPS
 * numeric  the sum from +0 and the oldest on, each product and sum rounded by itself */
void pe_delta_convolve(const pe_kernels *kernels, float *x, size_t x_stride, float *past,
                       const float *taps, size_t n_taps, size_t n_channels, size_t n_tokens);

/* x = x / sqrt(sum of squares + 1e-6) * scale, in place.
 * numeric  the sum is a lane_sum (pe_kernels.h) */
void pe_delta_norm(const pe_kernels *kernels, float *x, size_t d, float scale);

/* exp(rate * softplus(x)): how much a head keeps of its state. rate is below 0.
 * numeric  in double, rounded once */
float pe_delta_decay(float x, float rate);

/* 1 / (1 + exp(-x)): which share of an error it learns. As above. */
float pe_delta_share(float x);

#endif
