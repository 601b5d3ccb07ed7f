/* What the benchmarks of products multiply. */
#ifndef OPERANDS_H
#define OPERANDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Random bytes, a multiple of 8, whose halves, as fp16, bf16 or the upper part of a float, are
 * numbers of moderate size. */
static void fill_weights(uint8_t *buffer, size_t n_bytes) {
    uint64_t x = 88172645463325252u;
    for (size_t at = 0; at < n_bytes; at += sizeof x) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        const uint64_t word = (x & 0x9fff9fff9fff9fffu) | 0x2000200020002000u;
        memcpy(buffer + at, &word, sizeof word);
    }
}

static void fill_activations(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)((i * 37) % 255) / 127.0f - 1.0f;
    }
}

#endif
