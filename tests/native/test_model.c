/* The llama graph against itself written down in double: one token at a time, one
 * loop per formula, no code shared but the reading of tensors.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"
#include "pe_base.h"
#include "pe_file.h"

#define D_MODEL 64
#define D_FF 96
#define N_HEADS 4
#define N_KV_HEADS 2
#define D_HEAD 16
#define N_TOKENS 110

/* ---- the model in double ---------------------------------------------- */

/* Adds matrix times x to out; a weight that the file lacks adds nothing. */
static void add_product(const pe_file *file, const char *name, double *out, const double *x) {
    const pe_tensor_info *t = pe_file_find_tensor(file, name);
    for (uint64_t r = 0; t != NULL && r < t->dims[1]; r++) {
        for (uint64_t c = 0; c < t->dims[0]; c++) {
            out[r] += (double)((const float *)t->data)[r * t->dims[0] + c] * x[c];
        }
    }
}

static void add_vector(const pe_file *file, const char *name, double *out) {
    const pe_tensor_info *t = pe_file_find_tensor(file, name);
    for (uint64_t i = 0; t != NULL && i < t->dims[0]; i++) {
        out[i] += (double)((const float *)t->data)[i];
    }
}

/* out = weight x + bias of a layer. */
static void project(const pe_file *file, unsigned layer, const char *name, double *out, size_t n,
                    const double *x) {
    char full[64];
    memset(out, 0, n * sizeof *out);
    snprintf(full, sizeof full, "blk.%u.%s.weight", layer, name);
    add_product(file, full, out, x);
    snprintf(full, sizeof full, "blk.%u.%s.bias", layer, name);
    add_vector(file, full, out);
}

static void norm(const pe_file *file, const char *name, double *out, const double *x) {
    const float *weight = pe_file_find_tensor(file, name)->data;
    double sum = 0.0;
    for (size_t i = 0; i < D_MODEL; i++) {
        sum += x[i] * x[i];
    }
    for (size_t i = 0; i < D_MODEL; i++) {
        out[i] = x[i] / sqrt(sum / D_MODEL + 1e-5) * (double)weight[i];
    }
}

static void rotate(const pe_file *file, double *heads, size_t n_heads, size_t position) {
    const pe_tensor_info *factors = pe_file_find_tensor(file, "rope_freqs.weight");
    for (size_t i = 0; i < D_HEAD / 2; i++) {
        const double factor = factors != NULL ? (double)((const float *)factors->data)[i] : 1.0;
        const double angle = (double)position * pow(10000.0, -2.0 * (double)i / D_HEAD) / factor;
        for (double *pair = heads + 2 * i; pair < heads + n_heads * D_HEAD; pair += D_HEAD) {
            const double a = pair[0];
            pair[0] = a * cos(angle) - pair[1] * sin(angle);
            pair[1] = a * sin(angle) + pair[1] * cos(angle);
        }
    }
}

static double keys[2][N_TOKENS][N_KV_HEADS * D_HEAD];
static double values[2][N_TOKENS][N_KV_HEADS * D_HEAD];

static size_t window = 1000;

static void attend(unsigned layer, size_t position, const double *q, double *out) {
    const size_t first = position + 1 > window ? position + 1 - window : 0;
    for (size_t h = 0; h < N_HEADS; h++) {
        const size_t at = h / (N_HEADS / N_KV_HEADS) * D_HEAD;
        double sum = 0.0;
        memset(out + h * D_HEAD, 0, D_HEAD * sizeof *out);
        for (size_t j = first; j <= position; j++) {
            double score = 0.0;
            for (size_t d = 0; d < D_HEAD; d++) {
                score += q[h * D_HEAD + d] * keys[layer][j][at + d];
            }
            const double p = exp(score / sqrt(D_HEAD));
            sum += p;
            for (size_t d = 0; d < D_HEAD; d++) {
                out[h * D_HEAD + d] += p * values[layer][j][at + d];
            }
        }
        for (size_t d = 0; d < D_HEAD; d++) {
            out[h * D_HEAD + d] /= sum;
        }
    }
}

static void forward(const pe_file *file, uint32_t token, size_t position, double *logits) {
    const float *embedding = pe_file_find_tensor(file, "token_embd.weight")->data;
    double x[D_MODEL];
    double h[D_MODEL];
    double q[D_MODEL];
    double y[D_MODEL];
    double gate[D_FF];
    double up[D_FF];
    char name[64];
    for (size_t i = 0; i < D_MODEL; i++) {
        x[i] = (double)embedding[token * D_MODEL + i];
    }
    for (unsigned layer = 0; layer < 2; layer++) {
        snprintf(name, sizeof name, "blk.%u.attn_norm.weight", layer);
        norm(file, name, h, x);
        project(file, layer, "attn_q", q, D_MODEL, h);
        project(file, layer, "attn_k", keys[layer][position], N_KV_HEADS * D_HEAD, h);
        project(file, layer, "attn_v", values[layer][position], N_KV_HEADS * D_HEAD, h);
        rotate(file, q, N_HEADS, position);
        rotate(file, keys[layer][position], N_KV_HEADS, position);
        attend(layer, position, q, h);
        project(file, layer, "attn_output", y, D_MODEL, h);
        for (size_t i = 0; i < D_MODEL; i++) {
            x[i] += y[i];
        }
        snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", layer);
        norm(file, name, h, x);
        project(file, layer, "ffn_gate", gate, D_FF, h);
        project(file, layer, "ffn_up", up, D_FF, h);
        for (size_t i = 0; i < D_FF; i++) {
            gate[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
        }
        project(file, layer, "ffn_down", y, D_MODEL, gate);
        for (size_t i = 0; i < D_MODEL; i++) {
            x[i] += y[i];
        }
    }
    norm(file, "output_norm.weight", h, x);
    const bool tied = pe_file_find_tensor(file, "output.weight") == NULL;
    memset(logits, 0, TINY_VOCAB * sizeof *logits);
    add_product(file, tied ? "token_embd.weight" : "output.weight", logits, h);
}

/* ---- the engine beside it --------------------------------------------- */

/* Some thirty steps lie between embedding and logits. Each adds errors of a few
 * roundings of its largest terms, which are of the size of its results: allow 16
 * EPS each, of the largest logit. */
#define BOUND (30.0 * 16.0 * 0x1p-24)

static void compare(const tiny_llama *model) {
    bytes b = {NULL, 0, 0};
    put_tiny_llama(&b, model);
    pe_file *file = NULL;
    pe_engine *engine = NULL;
    pe_session *session = NULL;
    const pe_engine_params params = {.struct_bytes = sizeof params, .n_threads = 2, .n_batch = 16};
    CHECK_OK(pe_file_open(&file, temp_file("model.gguf", b.data, b.n), err));
    CHECK_OK(pe_engine_open(&engine, file, &params, err));
    CHECK_OK(pe_session_new(&session, engine, err));
    uint32_t tokens[N_TOKENS];
    static float found[N_TOKENS * TINY_VOCAB];
    for (size_t i = 0; i < N_TOKENS; i++) {
        tokens[i] = rng_below(TINY_VOCAB);
    }
    const pe_feed feed = {session, tokens, N_TOKENS, N_TOKENS, found};
    CHECK_OK(pe_engine_forward(engine, &feed, 1, NULL, err));
    for (size_t i = 0; i < N_TOKENS; i++) {
        double expected[TINY_VOCAB];
        double largest = 0.0;
        double worst = 0.0;
        forward(file, tokens[i], i, expected);
        for (size_t j = 0; j < TINY_VOCAB; j++) {
            const double error = fabs((double)found[i * TINY_VOCAB + j] - expected[j]);
            largest = fabs(expected[j]) > largest ? fabs(expected[j]) : largest;
            worst = error <= worst ? worst : error;  // NaN stays
        }
        CHECK(worst <= BOUND * largest, "token %zu: off by %g of %g", i, worst, largest);
    }
    pe_session_free(session);
    pe_engine_close(engine);
    pe_file_close(file);
    bytes_free(&b);
}

static void plain(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_F32};
    compare(&model);
}

static void tied_embedding(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_F32, .tied = true};
    compare(&model);
}

static void biases_and_rope_factors(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_F32, .has_bias = true};
    compare(&model);
}

/* Pages of 32 positions: windows inside one page, of a whole page, over several. */
static void windows(void) {
    static const uint32_t sizes[] = {1, 7, 32, 33, 64, 75};
    for (size_t i = 0; i < PE_LEN(sizes); i++) {
        const tiny_llama model = {.dtype = PE_DTYPE_F32, .window = sizes[i]};
        window = sizes[i];
        compare(&model);
    }
    window = 1000;
}

int main(void) {
    static const test_case tests[] = {
        TEST(plain),
        TEST(tied_embedding),
        TEST(biases_and_rope_factors),
        TEST(windows),
    };
    return run_tests(tests, PE_LEN(tests));
}
