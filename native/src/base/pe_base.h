/* What every file of the core may use: integer types, small macros, checked
 * size arithmetic. Knows nothing of models.
 */
#ifndef PE_BASE_H
#define PE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pyengine.h"

#define PE_LEN(array) (sizeof(array) / sizeof((array)[0]))
#define PE_MIN(a, b) ((a) < (b) ? (a) : (b))
#define PE_MAX(a, b) ((a) > (b) ? (a) : (b))

/* One cache line on every processor this runs on (Apple's 128 included would
 * only cost padding); rows handed to kernels start on one. */
#define PE_CACHE_LINE 64

/* Sizes that come from a file are multiplied and added through these: false
 * means the true result does not fit and *out is not to be used. */
static inline bool pe_mul_u64(uint64_t *out, uint64_t a, uint64_t b) {
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool pe_add_u64(uint64_t *out, uint64_t a, uint64_t b) {
    return !__builtin_add_overflow(a, b, out);
}

static inline uint64_t pe_ceil_div(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

/* Type punning through memcpy: the only kind without undefined behaviour. */
static inline uint32_t pe_f32_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float pe_f32_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline bool pe_f32_is_finite(float x) {
    return (pe_f32_bits(x) & 0x7f800000u) != 0x7f800000u;
}

#endif
