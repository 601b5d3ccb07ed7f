/* Writes GGUF files piece by piece, right or wrong, and a tiny llama model. */
#ifndef GGUF_WRITER_H
#define GGUF_WRITER_H

#include "harness.h"

/* Bytes that grow. */
typedef struct bytes {
    uint8_t *data;
    size_t n;
    size_t capacity;
} bytes;

void bytes_free(bytes *b);
void put(bytes *b, const void *data, size_t n);
void put_zeros(bytes *b, size_t n);
void put_u32(bytes *b, uint32_t x);
void put_u64(bytes *b, uint64_t x);
void put_f32(bytes *b, float x);
void put_string(bytes *b, const char *text);

void put_header(bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_meta);
void put_meta_u32(bytes *b, const char *key, uint32_t value);
void put_meta_f32(bytes *b, const char *key, float value);
void put_meta_string(bytes *b, const char *key, const char *value);
void put_tensor(bytes *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t dtype,
                uint64_t offset);
void pad(bytes *b, size_t alignment);

/* A llama of 2 layers, 4 heads on 2 KV heads, random but fixed weights, and what
 * to get wrong. Zero means "the usual" in every field. */
typedef struct tiny_llama {
    uint32_t dtype;         // of the matrices
    const char *arch;       // instead of "llama"
    const char *without;    // this tensor is left out
    const char *misshaped;  // this tensor has one row more
    const char *narrow;     // this tensor's rows are 32 shorter
    const char *retyped;    // this tensor has type new_dtype and zero bytes
    uint32_t new_dtype;
    const char *poisoned;     // this tensor's first number is NaN
    const char *extra;        // one more tensor
    const char *without_key;  // this key is left out
    const char *scaling;      // llama.rope.scaling.type
    uint32_t n_experts;
    uint32_t n_kv_heads;
    uint32_t window;    // llama.attention.sliding_window
    uint32_t n_tokens;  // tokenizer.ggml.tokens has so many
    bool tied;          // no output.weight
    bool has_bias;      // all biases, and rope_freqs
    bool sees_all;      // llama.attention.causal is false
} tiny_llama;

#define TINY_VOCAB 96u
#define TINY_CTX 200u

/* Appends the whole file; the same bytes on every machine. */
void put_tiny_llama(bytes *b, const tiny_llama *options);

/* The same for an LFM 2 of 3 layers, a convolution, an attention and a convolution, 96 wide,
 * whose token 0 is NaN: no logits of a session that has seen it are numbers. */
typedef struct tiny_lfm2 {
    uint32_t dtype;
    const uint32_t *kv_heads;  // of the layers; NULL: 0, 2, 0
    uint32_t n_kv_heads;       // in that list; 0: 3
    uint32_t n_conv;           // 0: 3
    const char *extra;         // one more tensor
    bool two_kv_heads;         // head_count_kv is one number
} tiny_lfm2;

#define LFM2_CTX 600u
#define LFM2_STATE_FLOATS (2u * 2u * 96u)

void put_tiny_lfm2(bytes *b, const tiny_lfm2 *options);

#endif
