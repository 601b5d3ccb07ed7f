#include "gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pe_dtype.h"

/* ---- bytes ------------------------------------------------------------ */

void bytes_free(bytes *b) {
    free(b->data);
    *b = (bytes){NULL, 0, 0};
}

void put_zeros(bytes *b, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n) + 256;
        b->data = realloc(b->data, b->capacity);
        if (b->data == NULL) {
            perror("put");
            exit(EXIT_FAILURE);
        }
    }
    if (n > 0) {
        memset(b->data + b->n, 0, n);
    }
    b->n += n;
}

void put(bytes *b, const void *data, size_t n) {
    put_zeros(b, n);
    if (n > 0) {
        memcpy(b->data + b->n - n, data, n);
    }
}

void put_u32(bytes *b, uint32_t x) {
    put(b, &x, sizeof x);
}

void put_u64(bytes *b, uint64_t x) {
    put(b, &x, sizeof x);
}

void put_f32(bytes *b, float x) {
    put(b, &x, sizeof x);
}

void put_string(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

/* ---- GGUF ------------------------------------------------------------- */

void put_header(bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_meta) {
    put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_meta);
}

void put_meta_u32(bytes *b, const char *key, uint32_t value) {
    put_string(b, key);
    put_u32(b, PE_META_U32);
    put_u32(b, value);
}

void put_meta_f32(bytes *b, const char *key, float value) {
    put_string(b, key);
    put_u32(b, PE_META_F32);
    put_f32(b, value);
}

void put_meta_string(bytes *b, const char *key, const char *value) {
    put_string(b, key);
    put_u32(b, PE_META_STRING);
    put_string(b, value);
}

void put_tensor(bytes *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t dtype,
                uint64_t offset) {
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        put_u64(b, dims[i]);
    }
    put_u32(b, dtype);
    put_u64(b, offset);
}

void pad(bytes *b, size_t alignment) {
    put_zeros(b, (alignment - b->n % alignment) % alignment);
}

/* ---- the tiny llama --------------------------------------------------- */

typedef struct builder {
    const tiny_llama *options;
    bytes directory;
    bytes data;
    uint32_t n_tensors;
    bytes meta;
    uint32_t n_meta;
} builder;

static bool is(const char *a, const char *b) {
    return a != NULL && b != NULL && strcmp(a, b) == 0;
}

static void add_u32(builder *b, const char *key, uint32_t value) {
    if (!is(key, b->options->without_key)) {
        put_meta_u32(&b->meta, key, value);
        b->n_meta++;
    }
}

/* Random weights around mean, as wide as keeps the activations near 1. */
static void add_tensor(builder *b, const char *name, uint32_t dtype, uint64_t n_cols,
                       uint64_t n_rows, float mean, float width) {
    const tiny_llama *o = b->options;
    if (is(name, o->without)) {
        return;
    }
    const bool retyped = is(name, o->retyped);
    n_rows += is(name, o->misshaped) ? 1 : 0;
    n_cols -= is(name, o->narrow) ? 32 : 0;
    dtype = retyped ? o->new_dtype : dtype;
    const uint64_t dims[] = {n_cols, n_rows};
    put_tensor(&b->directory, name, n_rows > 1 ? 2 : 1, dims, dtype, b->data.n);
    b->n_tensors++;
    pe_dtype_info info = {.block_weights = 1};
    CHECK_OK(pe_dtype_describe(&info, dtype, err));
    const uint64_t n = n_cols * n_rows;
    const size_t start = b->data.n;
    put_zeros(&b->data, (size_t)(n / info.block_weights * info.block_bytes));
    if (dtype == PE_DTYPE_Q6_K) {
        pe_block_q6_k *blocks = (pe_block_q6_k *)(void *)(b->data.data + start);
        for (uint64_t i = 0; i < n / PE_SUPER_BLOCK; i++) {
            for (size_t j = 0; j < sizeof *blocks; j++) {
                ((uint8_t *)&blocks[i])[j] = (uint8_t)rng_below(256);
            }
            blocks[i].d = pe_f16_from_f32(width / 2000.0f);
        }
    } else if (!retyped) {
        float *x = malloc((size_t)n * sizeof *x);
        for (uint64_t i = 0; x != NULL && i < n; i++) {
            x[i] = mean + rng_f32(-width, width);
        }
        CHECK_OK(pe_quantize(b->data.data + start, dtype, x, n, err));
        free(x);
    }
    if (is(name, o->poisoned)) {  // NaN as float, and as the fp16 scale of a block
        const uint32_t nan = dtype == PE_DTYPE_F32    ? 0x7fc00000u
                             : dtype == PE_DTYPE_BF16 ? 0x7fc07fc0u
                                                      : 0x7e007e00u;
        memcpy(b->data.data + start, &nan, sizeof nan);
    }
    pad(&b->data, 32);
}

static void add_layer(builder *b, unsigned layer, uint64_t d_model, uint64_t d_ff, uint64_t d_kv) {
    const struct {
        const char *name;
        uint64_t n_cols, n_rows;
        bool is_bias;
    } table[] = {
        {"attn_norm.weight", d_model, 1, false},
        {"attn_q.weight", d_model, d_model, false},
        {"attn_k.weight", d_model, d_kv, false},
        {"attn_v.weight", d_model, d_kv, false},
        {"attn_output.weight", d_model, d_model, false},
        {"attn_q.bias", d_model, 1, true},
        {"attn_k.bias", d_kv, 1, true},
        {"attn_v.bias", d_kv, 1, true},
        {"attn_output.bias", d_model, 1, true},
        {"ffn_norm.weight", d_model, 1, false},
        {"ffn_gate.weight", d_model, d_ff, false},
        {"ffn_up.weight", d_model, d_ff, false},
        {"ffn_down.weight", d_ff, d_model, false},
        {"ffn_gate.bias", d_ff, 1, true},
        {"ffn_up.bias", d_ff, 1, true},
        {"ffn_down.bias", d_model, 1, true},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s", layer, table[i].name);
        const bool is_norm = table[i].n_rows == 1 && !table[i].is_bias;
        if (!table[i].is_bias || b->options->has_bias) {
            add_tensor(b, name, table[i].n_rows == 1 ? PE_DTYPE_F32 : b->options->dtype,
                       table[i].n_cols, table[i].n_rows, is_norm ? 1.0f : 0.0f, 0.2f);
        }
    }
}

static void finish(bytes *out, builder *b) {
    put_header(out, 3, b->n_tensors, b->n_meta);
    put(out, b->meta.data, b->meta.n);
    put(out, b->directory.data, b->directory.n);
    pad(out, 32);
    put(out, b->data.data, b->data.n);
    bytes_free(&b->meta);
    bytes_free(&b->directory);
    bytes_free(&b->data);
}

void put_tiny_llama(bytes *out, const tiny_llama *options) {
    builder b = {.options = options};
    const uint64_t d_model = options->dtype == PE_DTYPE_Q6_K ? 256 : 64;
    const uint64_t d_ff = options->dtype == PE_DTYPE_Q6_K ? 256 : 96;
    const uint32_t n_kv_heads = options->n_kv_heads > 0 ? options->n_kv_heads : 2;
    rng_seed(7);
    put_meta_string(&b.meta, "general.architecture",
                    options->arch != NULL ? options->arch : "llama");
    b.n_meta++;
    add_u32(&b, "llama.block_count", 2);
    add_u32(&b, "llama.context_length", TINY_CTX);
    add_u32(&b, "llama.embedding_length", (uint32_t)d_model);
    add_u32(&b, "llama.feed_forward_length", (uint32_t)d_ff);
    add_u32(&b, "llama.attention.head_count", 4);
    add_u32(&b, "llama.attention.head_count_kv", n_kv_heads);
    put_meta_f32(&b.meta, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    b.n_meta++;
    if (options->n_experts > 0) {
        add_u32(&b, "llama.expert_count", options->n_experts);
    }
    if (options->window > 0) {
        add_u32(&b, "llama.attention.sliding_window", options->window);
    }
    if (options->sees_all) {
        const uint8_t no = 0;
        put_string(&b.meta, "llama.attention.causal");
        put_u32(&b.meta, PE_META_BOOL);
        put(&b.meta, &no, 1);
        b.n_meta++;
    }
    if (options->scaling != NULL) {
        put_meta_string(&b.meta, "llama.rope.scaling.type", options->scaling);
        b.n_meta++;
    }
    if (options->n_tokens > 0) {
        put_string(&b.meta, "tokenizer.ggml.tokens");
        put_u32(&b.meta, PE_META_ARRAY);
        put_u32(&b.meta, PE_META_STRING);
        put_u64(&b.meta, options->n_tokens);
        for (uint32_t i = 0; i < options->n_tokens; i++) {
            put_string(&b.meta, "t");
        }
        b.n_meta++;
    }
    add_tensor(&b, "token_embd.weight", options->dtype, d_model, TINY_VOCAB, 0.0f, 1.0f);
    add_tensor(&b, "output_norm.weight", PE_DTYPE_F32, d_model, 1, 1.0f, 0.2f);
    if (!options->tied) {
        add_tensor(&b, "output.weight", options->dtype, d_model, TINY_VOCAB, 0.0f, 0.5f);
    }
    if (options->has_bias) {
        add_tensor(&b, "rope_freqs.weight", PE_DTYPE_F32, d_model / 8, 1, 2.0f, 0.9f);
    }
    for (unsigned layer = 0; layer < 2; layer++) {
        add_layer(&b, layer, d_model, d_ff, d_model / 4 * n_kv_heads);
    }
    if (options->extra != NULL) {
        add_tensor(&b, options->extra, PE_DTYPE_F32, 8, 1, 0.0f, 1.0f);
    }
    finish(out, &b);
}

static void add_lfm2_layer(builder *b, unsigned layer, uint32_t n_kv_heads, uint32_t n_conv) {
    const struct {
        const char *name;
        uint64_t n_cols, n_rows;
        int kind;  // 0: of all layers, 1: of attention, 2: of convolutions
    } table[] = {
        {"attn_norm.weight", 96, 1, 0},
        {"attn_q.weight", 96, 96, 1},
        {"attn_k.weight", 96, (uint64_t)24 * n_kv_heads, 1},
        {"attn_v.weight", 96, (uint64_t)24 * n_kv_heads, 1},
        {"attn_output.weight", 96, 96, 1},
        {"attn_q_norm.weight", 24, 1, 1},
        {"attn_k_norm.weight", 24, 1, 1},
        {"shortconv.in_proj.weight", 96, 288, 2},
        {"shortconv.conv.weight", n_conv, 96, 2},
        {"shortconv.out_proj.weight", 96, 96, 2},
        {"ffn_norm.weight", 96, 1, 0},
        {"ffn_gate.weight", 96, 64, 0},
        {"ffn_up.weight", 96, 64, 0},
        {"ffn_down.weight", 64, 96, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s", layer, table[i].name);
        const bool is_norm = table[i].n_rows == 1;
        const bool is_conv = strcmp(table[i].name, "shortconv.conv.weight") == 0;
        if (table[i].kind == 0 || table[i].kind == (n_kv_heads > 0 ? 1 : 2)) {
            add_tensor(b, name, is_norm || is_conv ? PE_DTYPE_F32 : b->options->dtype,
                       table[i].n_cols, table[i].n_rows, is_norm ? 1.0f : 0.0f,
                       is_conv ? 1.0f : 0.3f);
        }
    }
}

void put_tiny_lfm2(bytes *out, const tiny_lfm2 *options) {
    static const uint32_t usual[] = {0, 2, 0};
    const uint32_t *kv_heads = options->kv_heads != NULL ? options->kv_heads : usual;
    const uint32_t n_kv_heads = options->n_kv_heads > 0 ? options->n_kv_heads : 3;
    const uint32_t n_conv = options->n_conv > 0 ? options->n_conv : 3;
    const tiny_llama plain = {.dtype = options->dtype, .poisoned = "token_embd.weight"};
    builder b = {.options = &plain};
    rng_seed(11);
    put_meta_string(&b.meta, "general.architecture", "lfm2");
    b.n_meta++;
    add_u32(&b, "lfm2.block_count", 3);
    add_u32(&b, "lfm2.context_length", LFM2_CTX);
    add_u32(&b, "lfm2.embedding_length", 96);
    add_u32(&b, "lfm2.feed_forward_length", 64);
    add_u32(&b, "lfm2.attention.head_count", 4);
    if (options->two_kv_heads) {
        add_u32(&b, "lfm2.attention.head_count_kv", 2);
    } else {
        put_string(&b.meta, "lfm2.attention.head_count_kv");
        put_u32(&b.meta, PE_META_ARRAY);
        put_u32(&b.meta, PE_META_U32);
        put_u64(&b.meta, n_kv_heads);
        for (uint32_t i = 0; i < n_kv_heads; i++) {
            put_u32(&b.meta, kv_heads[i]);
        }
        b.n_meta++;
    }
    add_u32(&b, "lfm2.shortconv.l_cache", n_conv);
    put_meta_f32(&b.meta, "lfm2.attention.layer_norm_rms_epsilon", 1e-5f);
    b.n_meta++;
    add_tensor(&b, "token_embd.weight", options->dtype, 96, TINY_VOCAB, 0.0f, 1.0f);
    add_tensor(&b, "token_embd_norm.weight", PE_DTYPE_F32, 96, 1, 1.0f, 0.2f);
    add_tensor(&b, "output.weight", options->dtype, 96, TINY_VOCAB, 0.0f, 0.3f);
    for (unsigned layer = 0; layer < 3; layer++) {
        add_lfm2_layer(&b, layer, layer < n_kv_heads ? kv_heads[layer] % 8 : 0, n_conv);
    }
    if (options->extra != NULL) {
        add_tensor(&b, options->extra, PE_DTYPE_F32, 8, 1, 0.0f, 1.0f);
    }
    finish(out, &b);
}
