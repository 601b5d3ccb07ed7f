/* Embedding on a tiny random llama, as it is and with every token seeing the whole text: the
 * same vectors whatever the threads, the batch, the order or the instruction set; every refusal;
 * and every allocation failing once.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"

#define D_MODEL 64
#define N_TEXTS 9
#define MAX_TOKENS 170

static uint32_t ids[N_TEXTS][MAX_TOKENS];
static const uint32_t lengths[N_TEXTS] = {1, 5, 33, 2, 64, 31, 100, 7, MAX_TOKENS};

/* ---- helpers ---------------------------------------------------------- */

static const char *write_model(bool sees_all) {
    bytes b = {NULL, 0, 0};
    const tiny_llama model = {.dtype = PE_DTYPE_Q8_0, .has_bias = true, .sees_all = sees_all};
    put_tiny_llama(&b, &model);
    const char *path = temp_file(sees_all ? "encoder.gguf" : "decoder.gguf", b.data, b.n);
    bytes_free(&b);
    rng_seed(11);
    for (uint32_t i = 0; i < N_TEXTS; i++) {
        for (uint32_t j = 0; j < lengths[i]; j++) {
            ids[i][j] = rng_below(TINY_VOCAB);
        }
    }
    return path;
}

static pe_status open_engine(pe_engine **out, const char *path, uint32_t n_threads,
                             uint32_t n_batch, uint32_t isa, pe_error *err) {
    pe_file *file = NULL;
    const pe_engine_params params = {
        .struct_bytes = sizeof params, .n_threads = n_threads, .n_batch = n_batch, .isa = isa};
    pe_status status = pe_file_open(&file, path, err);
    status = status == PE_OK ? pe_engine_open(out, file, &params, err) : status;
    pe_file_close(file);
    return status;
}

static pe_embed_params params_of(pe_pooling pooling) {
    return (pe_embed_params){.struct_bytes = sizeof(pe_embed_params), .pooling = pooling};
}

/* The first n_texts, backwards if asked; vectors of text i at [i]. */
static pe_status embed(pe_engine *engine, pe_pooling pooling, bool backwards, uint32_t n_texts,
                       float (*vectors)[MAX_TOKENS * D_MODEL], pe_error *err) {
    pe_text texts[N_TEXTS];
    for (uint32_t i = 0; i < n_texts; i++) {
        const uint32_t at = backwards ? n_texts - 1 - i : i;
        texts[i] = (pe_text){ids[at], lengths[at], vectors[at]};
    }
    pe_embed_params params = params_of(pooling);
    params.normalize = pooling != PE_POOLING_NONE;
    return pe_engine_embed(engine, texts, n_texts, &params, NULL, err);
}

static void close_clean(pe_engine *engine) {
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    CHECK_U64(info.kv_bytes, 0);  // every page has gone back
    pe_engine_close(engine);
}

/* ---- tests ------------------------------------------------------------ */

static float expected[N_TEXTS][MAX_TOKENS * D_MODEL];
static float found[N_TEXTS][MAX_TOKENS * D_MODEL];

static void check_same(const char *path, bool sees_all, pe_pooling pooling) {
    pe_engine *engine = NULL;
    CHECK_OK(open_engine(&engine, path, 1, 0, PE_ISA_SCALAR, err));
    for (uint32_t i = 0; i < N_TEXTS; i++) {  // alone
        pe_embed_params params = params_of(pooling);
        params.normalize = pooling != PE_POOLING_NONE;
        const pe_text text = {ids[i], lengths[i], expected[i]};
        CHECK_OK(pe_engine_embed(engine, &text, 1, &params, NULL, err));
    }
    close_clean(engine);
    static const uint32_t batches[] = {0, MAX_TOKENS, 7, 1};
    for (uint32_t round = 0; round < 8; round++) {
        const uint32_t n_batch = batches[round / 2];
        if (sees_all && n_batch > 0 && n_batch < MAX_TOKENS) {
            continue;
        }
        CHECK_OK(open_engine(&engine, path, 1 + 2 * (round % 2), n_batch, PE_ISA_BEST, err));
        memset(found, 0xff, sizeof found);
        CHECK_OK(embed(engine, pooling, round % 2 == 1, N_TEXTS, found, err));
        for (uint32_t i = 0; i < N_TEXTS; i++) {
            const uint64_t n = (pooling == PE_POOLING_NONE ? lengths[i] : 1) * D_MODEL;
            CHECK_U64(memcmp(found[i], expected[i], n * sizeof(float)), 0);
        }
        close_clean(engine);
    }
}

static void same_bits_however_computed(void) {
    for (uint32_t sees_all = 0; sees_all < 2; sees_all++) {
        const char *path = write_model(sees_all != 0);
        for (uint32_t pooling = PE_POOLING_NONE; pooling <= PE_POOLING_LAST; pooling++) {
            check_same(path, sees_all != 0, (pe_pooling)pooling);
        }
    }
}

/* Poolings are what they are of the states; states are what logits are made of. */
static void states_and_vectors(void) {
    const char *path = write_model(false);
    pe_engine *engine = NULL;
    CHECK_OK(open_engine(&engine, path, 2, 0, PE_ISA_BEST, err));
    CHECK_OK(embed(engine, PE_POOLING_NONE, false, N_TEXTS, expected, err));
    for (uint32_t pooling = PE_POOLING_MEAN; pooling <= PE_POOLING_LAST; pooling++) {
        CHECK_OK(embed(engine, (pe_pooling)pooling, false, N_TEXTS, found, err));
        for (uint32_t i = 0; i < N_TEXTS; i++) {
            double vector[D_MODEL] = {0};
            double square = 0.0;
            const uint32_t n = lengths[i];
            for (uint32_t j = 0; j < n; j++) {
                const bool counts =
                    pooling == PE_POOLING_MEAN || j == (pooling == PE_POOLING_CLS ? 0 : n - 1);
                for (uint32_t d = 0; d < D_MODEL && counts; d++) {
                    vector[d] += (double)expected[i][j * D_MODEL + d];
                }
            }
            for (uint32_t d = 0; d < D_MODEL; d++) {
                square += vector[d] * vector[d];
            }
            for (uint32_t d = 0; d < D_MODEL; d++) {
                const double y = vector[d] / sqrt(square);
                CHECK(fabs((double)found[i][d] - y) < 1e-5, "pooling %u text %u: %g, expected %g",
                      pooling, i, (double)found[i][d], y);
            }
        }
    }
    close_clean(engine);
    // A token that sees all is changed by those behind it, one that does not is not.
    for (uint32_t sees_all = 0; sees_all < 2; sees_all++) {
        CHECK_OK(open_engine(&engine, write_model(sees_all != 0), 2, 0, PE_ISA_BEST, err));
        CHECK_OK(embed(engine, PE_POOLING_CLS, false, N_TEXTS, expected, err));
        ids[6][99] = (ids[6][99] + 1) % TINY_VOCAB;
        CHECK_OK(embed(engine, PE_POOLING_CLS, false, N_TEXTS, found, err));
        CHECK_U64(memcmp(found[5], expected[5], D_MODEL * sizeof(float)), 0);
        CHECK_U64(memcmp(found[6], expected[6], D_MODEL * sizeof(float)) != 0, sees_all);
        close_clean(engine);
    }
}

static void refusals(void) {
    pe_engine *engine = NULL;
    pe_session *session = NULL;
    CHECK_OK(open_engine(&engine, write_model(true), 2, 50, PE_ISA_BEST, err));
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    CHECK_U64(info.n_ctx, 50);
    CHECK_U64(info.is_encoder, 1);
    CHECK_U64(info.pooling, PE_POOLING_UNSAID);
    CHECK_FAILS(pe_session_new(&session, engine, err), PE_ERR_UNSUPPORTED, "an encoder");
    pe_embed_params params = params_of(PE_POOLING_MEAN);
    params.first = 40;
    pe_text text = {ids[1], 5, found[0]};
#define EMBED(err) pe_engine_embed(engine, &text, 1, &params, cancel, err)
    const int32_t *cancel = NULL;
    text.n_tokens = 51;
    CHECK_FAILS(EMBED(err), PE_ERR_CONTEXT, "text 40: expected at most 50 tokens, found 51");
    text.n_tokens = 0;
    CHECK_FAILS(EMBED(err), PE_ERR_ARG, "text 40: expected 1 token or more");
    text.n_tokens = 5;
    ids[1][3] = TINY_VOCAB;
    CHECK_FAILS(EMBED(err), PE_ERR_ARG, "text 40: token 3: expected an id below 96, found 96");
    ids[1][3] = 0;
    text.vectors = NULL;
    CHECK_FAILS(EMBED(err), PE_ERR_ARG, "and room, found none");
    text.vectors = found[0];
    params.pooling = PE_POOLING_UNSAID;
    CHECK_FAILS(EMBED(err), PE_ERR_ARG, "pooling: expected none, mean, cls or last, found none");
    params.pooling = 4;
    CHECK_FAILS(EMBED(err), PE_ERR_ARG, "found another number");
    params = params_of(PE_POOLING_LAST);
    params.struct_bytes--;
    CHECK_FAILS(EMBED(err), PE_ERR_ARG, "different versions");
    params.struct_bytes++;
    const int32_t raised = 1;
    cancel = &raised;
    CHECK_FAILS(EMBED(err), PE_ERR_CANCELLED, "cancelled before layer 0");
    cancel = NULL;
    CHECK_OK(EMBED(err));
    CHECK_OK(pe_engine_embed(engine, NULL, 0, &params, NULL, err));
#undef EMBED
    close_clean(engine);
}

/* Opens, embeds all texts, closes. */
static pe_status whole_life(const char *path, pe_error *err) {
    pe_engine *engine = NULL;
    pe_status status = open_engine(&engine, path, 2, 0, PE_ISA_BEST, err);
    status = status == PE_OK ? embed(engine, PE_POOLING_MEAN, false, N_TEXTS, found, err) : status;
    if (engine != NULL) {
        close_clean(engine);
    }
    return status;
}

static void every_allocation_fails_once(void) {
    for (uint32_t sees_all = 0; sees_all < 2; sees_all++) {
        const char *path = write_model(sees_all != 0);
        n_allocations = 0;
        failing_allocation = 0;
        CHECK_OK(whole_life(path, err));
        const uint64_t n = n_allocations;
        for (uint64_t k = 1; k <= n; k++) {
            pe_error err = {0, ""};
            n_allocations = 0;
            failing_allocation = k;
            const pe_status status = whole_life(path, &err);
            failing_allocation = 0;
            CHECK(status == PE_ERR_NOMEM ? err.message[0] != '\0' : status == PE_OK,
                  "allocation %u: status %d: %s", (unsigned)k, (int)status, err.message);
        }
        n_allocations = 0;
    }
}

int main(void) {
    static const test_case tests[] = {
        TEST(same_bits_however_computed),
        TEST(states_and_vectors),
        TEST(refusals),
        TEST(every_allocation_fails_once),
    };
    return run_tests(tests, sizeof tests / sizeof tests[0]);
}
