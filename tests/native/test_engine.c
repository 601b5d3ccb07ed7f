/* The whole engine on a tiny random llama: the same logits whatever the threads,
 * the batch, the cut, the neighbours or the instruction set; every refusal; and
 * every allocation failing once.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"
#include "pe_kernels.h"

#define MAX_TOKENS 100
#define LEN(array) (sizeof(array) / sizeof((array)[0]))

/* ---- helpers ---------------------------------------------------------- */

static pe_file *open_tiny(const tiny_llama *options) {
    bytes b = {NULL, 0, 0};
    put_tiny_llama(&b, options);
    pe_file *file = NULL;
    CHECK_OK(pe_file_open(&file, temp_file("tiny.gguf", b.data, b.n), err));
    bytes_free(&b);
    return file;
}

static pe_engine_params params_of(uint32_t n_threads, uint32_t n_batch) {
    return (pe_engine_params){
        .struct_bytes = sizeof(pe_engine_params), .n_threads = n_threads, .n_batch = n_batch};
}

static pe_engine *open_engine(pe_file *file, pe_engine_params params) {
    pe_engine *engine = NULL;
    CHECK_OK(pe_engine_open(&engine, file, &params, err));
    return engine;
}

static pe_session *new_session(pe_engine *engine) {
    pe_session *session = NULL;
    CHECK_OK(pe_session_new(&session, engine, err));
    return session;
}

static void random_tokens(uint32_t *tokens, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = rng_below(TINY_VOCAB);
    }
}

static pe_status feed_one(pe_session *session, pe_engine *engine, const uint32_t *tokens,
                          uint32_t n_tokens, float *logits, pe_error *err) {
    const pe_feed feed = {.session = session,
                          .tokens = tokens,
                          .n_tokens = n_tokens,
                          .n_logits = logits != NULL ? n_tokens : 0,
                          .logits = logits};
    return pe_engine_forward(engine, &feed, 1, NULL, err);
}

/* All logits of tokens fed in cuts of n_cut. */
static void feed_in_cuts(pe_engine *engine, const uint32_t *tokens, uint32_t n, uint32_t n_cut,
                         float *logits) {
    pe_session *session = new_session(engine);
    for (uint32_t i = 0; i < n; i += n_cut) {
        const uint32_t n_now = n - i < n_cut ? n - i : n_cut;
        CHECK_OK(
            feed_one(session, engine, tokens + i, n_now, logits + (size_t)i * TINY_VOCAB, err));
    }
    CHECK_U64(pe_session_n_tokens(session), n);
    pe_session_free(session);
}

static void check_logits(const char *what, const float *found, const float *expected, uint32_t n) {
    const size_t n_all = (size_t)n * TINY_VOCAB;
    const size_t same = first_difference(found, expected, n_all);
    CHECK(same == n_all, "%s: token %zu logit %zu differs", what, same / TINY_VOCAB,
          same % TINY_VOCAB);
}

static float logits_a[MAX_TOKENS * TINY_VOCAB];
static float logits_b[MAX_TOKENS * TINY_VOCAB];

static const uint32_t DTYPES[] = {PE_DTYPE_F32,  PE_DTYPE_F16,  PE_DTYPE_BF16, PE_DTYPE_Q4_0,
                                  PE_DTYPE_Q4_1, PE_DTYPE_Q8_0, PE_DTYPE_Q6_K};

/* ---- the same bits ---------------------------------------------------- */

static void close_all(pe_engine *engine, pe_file *file) {
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    CHECK_U64(info.kv_bytes, 0);  // every page has gone back
    pe_engine_close(engine);
    pe_file_close(file);
}

/* Tokens in one batch on one thread in scalar code against everything else. */
static void same_bits_however_computed(void) {
    static const uint32_t cuts[] = {1, 3, 31, 32, 33, 70};
    static const uint32_t batches[] = {1, 7, 64};
    for (size_t t = 0; t < LEN(DTYPES); t++) {
        const tiny_llama model = {.dtype = DTYPES[t], .has_bias = t % 2 == 1, .tied = t == 2};
        pe_file *file = open_tiny(&model);
        uint32_t tokens[70];
        random_tokens(tokens, 70);
        pe_engine_params params = params_of(1, 128);
        params.isa = PE_ISA_SCALAR;
        params.kv_type = (uint32_t)t % 5;
        pe_engine *engine = open_engine(file, params);
        feed_in_cuts(engine, tokens, 70, 70, logits_a);
        for (size_t i = 0; i < 70 * TINY_VOCAB; i++) {
            CHECK(is_finite(logits_a[i]), "logit %zu is %g", i, (double)logits_a[i]);
        }
        // A model that ignores its input would pass every comparison.
        CHECK(memcmp(logits_a, logits_a + TINY_VOCAB, TINY_VOCAB * sizeof(float)) != 0, "row 0, 1");
        pe_engine_close(engine);
        FOR_EACH_ISA(isa) {
            for (uint32_t n_threads = 1; n_threads <= 4; n_threads *= 2) {
                for (size_t b = 0; b < LEN(batches); b++) {
                    params = params_of(n_threads, batches[b]);
                    params.isa = (uint32_t)isa;
                    params.kv_type = (uint32_t)t % 5;
                    engine = open_engine(file, params);
                    const uint32_t n_cut =
                        cuts[(t + n_threads + 2 * b + (uint32_t)isa) % LEN(cuts)];
                    feed_in_cuts(engine, tokens, 70, n_cut, logits_b);
                    check_logits("threads, batch, cut", logits_b, logits_a, 70);
                    pe_engine_close(engine);
                }
            }
        }
        params = params_of(2, 64);
        params.kv_type = (uint32_t)t % 5;
        engine = open_engine(file, params);
        for (size_t c = 0; c < LEN(cuts); c++) {
            feed_in_cuts(engine, tokens, 70, cuts[c], logits_b);
            check_logits("cut", logits_b, logits_a, 70);
        }
        close_all(engine, file);
    }
}

static void fork_and_rewind(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = open_tiny(&model);
    pe_engine *engine = open_engine(file, params_of(2, 16));
    uint32_t a[60];
    uint32_t b[60];
    random_tokens(a, 60);
    memcpy(b, a, sizeof b);
    random_tokens(b + 40, 20);  // the same for 40 tokens, then another story
    feed_in_cuts(engine, a, 60, 60, logits_a);
    feed_in_cuts(engine, b, 60, 60, logits_b);
    static float found[60 * TINY_VOCAB];

    pe_session *first = new_session(engine);
    pe_session *second = NULL;
    CHECK_OK(feed_one(first, engine, a, 40, NULL, err));
    CHECK_OK(pe_session_fork(&second, first, err));
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    CHECK_U64(info.kv_bytes, 2 * info.kv_page_bytes);  // shared
    CHECK_OK(feed_one(second, engine, b + 40, 20, found, err));
    check_logits("fork", found, logits_b + 40 * TINY_VOCAB, 20);
    CHECK_OK(feed_one(first, engine, a + 40, 20, found, err));
    check_logits("the forked one", found, logits_a + 40 * TINY_VOCAB, 20);
    pe_engine_describe(&info, engine);
    CHECK_U64(info.kv_bytes, 3 * info.kv_page_bytes);
    pe_session_free(first);

    for (uint32_t to = 60; to <= 60; to -= 13) {  // ends by wrapping below zero
        CHECK_OK(pe_session_rewind(second, to, err));
        CHECK_U64(pe_session_n_tokens(second), to);
        pe_engine_describe(&info, engine);
        CHECK_U64(info.kv_bytes, (to + 31) / 32 * info.kv_page_bytes);
        if (to < 60) {
            CHECK_OK(feed_one(second, engine, b + to, 60 - to, found, err));
            check_logits("rewind", found, logits_b + to * TINY_VOCAB, 60 - to);
        }
    }
    CHECK_FAILS(pe_session_rewind(second, 61, err), PE_ERR_ARG, "60 tokens held");
    CHECK_U64(pe_session_n_tokens(second), 60);
    pe_engine_close(engine);  // the session keeps it
    CHECK_OK(pe_session_rewind(second, 50, err));
    CHECK_OK(pe_session_fork(&first, second, err));  // of one that was put back
    CHECK_OK(feed_one(first, engine, b + 50, 10, found, err));
    check_logits("fork after rewind", found, logits_b + 50 * TINY_VOCAB, 10);
    pe_session_free(first);
    CHECK_OK(feed_one(second, engine, b + 50, 10, found, err));
    check_logits("after close", found, logits_b + 50 * TINY_VOCAB, 10);
    pe_session_free(second);
    pe_file_close(file);
}

static void sessions_together(void) {
    enum { N = 3 };
    static const uint32_t lengths[N] = {50, 1, 33};
    const tiny_llama model = {.dtype = PE_DTYPE_F32};
    pe_file *file = open_tiny(&model);
    pe_engine *engine = open_engine(file, params_of(2, 16));  // batches mix sessions
    uint32_t tokens[N][50];
    static float together[N][50 * TINY_VOCAB];
    pe_feed feeds[N];
    for (uint32_t i = 0; i < N; i++) {
        random_tokens(tokens[i], 50);
        const uint32_t n_logits = i == 0 ? 5 : lengths[i];
        feeds[i] = (pe_feed){new_session(engine), tokens[i], lengths[i], n_logits, together[i]};
    }
    const float gap = untouched();
    memcpy(&together[0][5 * TINY_VOCAB], &gap, sizeof gap);
    CHECK_OK(pe_engine_forward(engine, feeds, N, NULL, err));
    CHECK(memcmp(&together[0][5 * TINY_VOCAB], &gap, sizeof gap) == 0, "behind the last row");
    for (uint32_t i = 0; i < N; i++) {
        feed_in_cuts(engine, tokens[i], lengths[i], lengths[i], logits_a);
        check_logits("beside others", together[i],
                     logits_a + (lengths[i] - feeds[i].n_logits) * TINY_VOCAB, feeds[i].n_logits);
        CHECK_U64(pe_session_n_tokens(feeds[i].session), lengths[i]);
    }
    CHECK_OK(pe_engine_forward(engine, NULL, 0, NULL, err));
    pe_session_free(feeds[1].session);
    feeds[1].session = feeds[0].session;
    CHECK_FAILS(pe_engine_forward(engine, feeds, N, NULL, err), PE_ERR_ARG, "once");
    feeds[1].session = NULL;
    CHECK_FAILS(pe_engine_forward(engine, feeds, N, NULL, err), PE_ERR_ARG, "session");
    CHECK_U64(pe_session_n_tokens(feeds[0].session), 50);
    CHECK_U64(pe_session_n_tokens(feeds[2].session), 33);
    // The refusals above have let go of the sessions.
    CHECK_OK(feed_one(feeds[0].session, engine, tokens[0], 1, NULL, err));
    pe_session_free(feeds[0].session);
    pe_session_free(feeds[2].session);
    close_all(engine, file);
}

typedef struct caller {
    pe_engine *engine;
    const uint32_t *tokens;
    float logits[80 * TINY_VOCAB];
    pe_status status;
} caller;

static void *call_in_thread(void *arg) {
    caller *c = arg;
    pe_session *session = NULL;
    c->status = pe_session_new(&session, c->engine, NULL);
    for (uint32_t i = 0; i < 80 && c->status == PE_OK; i++) {
        c->status =
            feed_one(session, c->engine, c->tokens + i, 1, c->logits + i * TINY_VOCAB, NULL);
    }
    pe_session_free(session);
    return NULL;
}

static void callers_at_once(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_Q4_0};
    pe_file *file = open_tiny(&model);
    pe_engine *engine = open_engine(file, params_of(2, 8));
    uint32_t tokens[80];
    random_tokens(tokens, 80);
    feed_in_cuts(engine, tokens, 80, 80, logits_a);
    static caller callers[4];
    pthread_t threads[LEN(callers)];
    for (size_t i = 0; i < LEN(callers); i++) {
        callers[i] = (caller){.engine = engine, .tokens = tokens};
        CHECK(pthread_create(&threads[i], NULL, call_in_thread, &callers[i]) == 0, "thread %zu", i);
    }
    for (size_t i = 0; i < LEN(callers); i++) {
        pthread_join(threads[i], NULL);
        CHECK_U64(callers[i].status, PE_OK);
        check_logits("caller", callers[i].logits, logits_a, 80);
    }
    close_all(engine, file);
}

/* ---- refusals while running ------------------------------------------- */

static void limits(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = open_tiny(&model);
    pe_engine *engine = NULL;
    pe_engine_params params = params_of(1, 8);
    params.n_ctx = TINY_CTX + 1;
    CHECK_FAILS(pe_engine_open(&engine, file, &params, err), PE_ERR_ARG, "n_ctx");
    params.n_ctx = 70;
    params.struct_bytes = 8;
    CHECK_FAILS(pe_engine_open(&engine, file, &params, err), PE_ERR_ARG, "versions");
    params.struct_bytes = sizeof params;
    params.n_threads = 100000;
    CHECK_FAILS(pe_engine_open(&engine, file, &params, err), PE_ERR_ARG, "n_threads");
    params.n_threads = 1;
    params.isa = 99;
    CHECK_FAILS(pe_engine_open(&engine, file, &params, err), PE_ERR_ARG, "isa");
    params.isa = 0;
    params.kv_type = PE_KV_Q4_0 + 1;
    CHECK_FAILS(pe_engine_open(&engine, file, &params, err), PE_ERR_ARG, "kv_type");
    params.kv_type = PE_KV_F32;
    params.n_batch = 1u << 20;
    CHECK_FAILS(pe_engine_open(&engine, file, &params, err), PE_ERR_ARG, "n_batch");
    params.n_batch = 8;
    CHECK(engine == NULL, "left by a failure");
    engine = open_engine(file, params);
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    CHECK_U64(info.n_ctx, 70);
    CHECK_U64(info.n_ctx_train, TINY_CTX);
    CHECK_U64(info.kv_type, PE_KV_F32);
    CHECK_U64(info.kv_page_bytes, 2 * 2 * 32 * (16 + 16) * 4);
    CHECK(strcmp(info.architecture, "llama") == 0, "%s", info.architecture);

    pe_session *session = new_session(engine);
    uint32_t tokens[71];
    random_tokens(tokens, 71);
    CHECK_FAILS(feed_one(session, engine, tokens, 71, NULL, err), PE_ERR_CONTEXT, "at most 70");
    CHECK_OK(feed_one(session, engine, tokens, 40, NULL, err));
    CHECK_FAILS(feed_one(session, engine, tokens, 31, NULL, err), PE_ERR_CONTEXT, "40 held");
    tokens[5] = TINY_VOCAB;
    CHECK_FAILS(feed_one(session, engine, tokens, 20, NULL, err), PE_ERR_ARG, "token 5");
    tokens[5] = 0;
    CHECK_FAILS(feed_one(session, engine, tokens, 0, NULL, err), PE_ERR_ARG, "1 token");
    pe_feed feed = {
        .session = session, .tokens = tokens, .n_tokens = 2, .n_logits = 3, .logits = logits_a};
    CHECK_FAILS(pe_engine_forward(engine, &feed, 1, NULL, err), PE_ERR_ARG, "rows of logits");
    feed = (pe_feed){.session = session, .tokens = tokens, .n_tokens = 2, .n_logits = 1};
    CHECK_FAILS(pe_engine_forward(engine, &feed, 1, NULL, err), PE_ERR_ARG, "no room");
    const int32_t cancel = 1;
    feed.n_logits = 0;
    CHECK_FAILS(pe_engine_forward(engine, &feed, 1, &cancel, err), PE_ERR_CANCELLED, "layer 0");
    feed.n_tokens = 30;  // into the third page, which goes back
    CHECK_FAILS(pe_engine_forward(engine, &feed, 1, &cancel, err), PE_ERR_CANCELLED, "layer 0");
    pe_engine_describe(&info, engine);
    CHECK_U64(info.kv_bytes, 2 * info.kv_page_bytes);
    CHECK_U64(pe_session_n_tokens(session), 40);
    CHECK_OK(feed_one(session, engine, tokens, 30, NULL, err));
    pe_engine *other = open_engine(file, params);
    CHECK_FAILS(feed_one(session, other, tokens, 1, NULL, err), PE_ERR_ARG, "this engine");
    pe_engine_close(other);
    pe_session_free(session);
    pe_session_free(NULL);
    pe_engine_close(NULL);
    close_all(engine, file);
}

/* A refused call leaves session and pages as if it had not been. */
static void kv_budget(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_F16};
    pe_file *file = open_tiny(&model);
    pe_engine_params params = params_of(1, 8);
    params.max_kv_bytes = 2 * 2 * 2 * 32 * 32 * 2;  // two pages of fp16
    pe_engine *engine = open_engine(file, params);
    uint32_t tokens[65];
    random_tokens(tokens, 65);
    feed_in_cuts(engine, tokens, 64, 64, logits_a);
    pe_session *a = new_session(engine);
    pe_session *b = new_session(engine);
    CHECK_OK(feed_one(a, engine, tokens, 40, NULL, err));
    const pe_feed feeds[] = {{a, tokens + 40, 24, 0, NULL}, {b, tokens, 1, 0, NULL}};
    CHECK_FAILS(pe_engine_forward(engine, feeds, 2, NULL, err), PE_ERR_NOMEM, "KV cache");
    CHECK_FAILS(feed_one(a, engine, tokens, 25, NULL, err), PE_ERR_NOMEM, "KV cache");
    CHECK_U64(pe_session_n_tokens(a), 40);
    CHECK_U64(pe_session_n_tokens(b), 0);
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    CHECK_U64(info.kv_bytes, 2 * info.kv_page_bytes);
    CHECK_OK(feed_one(a, engine, tokens + 40, 24, logits_b, err));
    check_logits("after refusals", logits_b, logits_a + 40 * TINY_VOCAB, 24);
    pe_session_free(a);
    CHECK_OK(feed_one(b, engine, tokens, 64, NULL, err));
    pe_session_free(b);
    close_all(engine, file);
}

/* NaN weights are told apart from numbers, and the session survives. */
static void not_a_number(void) {
    for (size_t t = 0; t < LEN(DTYPES); t++) {
        const tiny_llama model = {.dtype = DTYPES[t],
                                  .poisoned = DTYPES[t] == PE_DTYPE_Q6_K ? "output_norm.weight"
                                                                         : "token_embd.weight"};
        pe_file *file = open_tiny(&model);
        pe_engine *engine = open_engine(file, params_of(2, 4));
        pe_session *session = new_session(engine);
        const uint32_t good[] = {5, 6, 7, 8, 9, 10};
        const uint32_t bad[] = {5, 6, 7, 8, 9, 0};  // row 0 of the embedding is poisoned
        if (DTYPES[t] == PE_DTYPE_Q6_K) {
            CHECK_FAILS(feed_one(session, engine, good, 6, logits_b, err), PE_ERR_NUMERIC, "NaN");
            CHECK_U64(pe_session_n_tokens(session), 0);
        } else {
            CHECK_OK(feed_one(session, engine, good, 6, logits_a, err));
            CHECK_OK(pe_session_rewind(session, 3, err));
            CHECK_FAILS(feed_one(session, engine, bad + 3, 3, logits_b, err), PE_ERR_NUMERIC,
                        "logits");
            CHECK_U64(pe_session_n_tokens(session), 3);
            CHECK_OK(feed_one(session, engine, good + 3, 3, logits_b, err));
            check_logits("after NaN", logits_b, logits_a + 3 * TINY_VOCAB, 3);
        }
        pe_session_free(session);
        close_all(engine, file);
    }
}

/* ---- refusals of models ----------------------------------------------- */

static void unfit_models(void) {
    static const struct {
        tiny_llama model;
        pe_status status;
        const char *fragment;
    } table[] = {
        {{.without = "blk.1.attn_k.weight"}, PE_ERR_FORMAT, "blk.1.attn_k.weight: expected"},
        {{.without = "token_embd.weight"}, PE_ERR_FORMAT, "token_embd.weight"},
        {{.misshaped = "blk.0.ffn_down.weight"}, PE_ERR_FORMAT, "[96, 64], found [96, 65, 1, 1]"},
        {{.misshaped = "output.weight"}, PE_ERR_FORMAT, "output.weight"},
        {{.narrow = "blk.1.attn_q.weight"}, PE_ERR_FORMAT, "[64, 64], found [32, 64, 1, 1]"},
        {{.narrow = "blk.0.ffn_norm.weight"}, PE_ERR_FORMAT, "[64, 1], found [32, 1, 1, 1]"},
        {{.extra = "blk.0.attn_q_norm.weight"}, PE_ERR_UNSUPPORTED, "blk.0.attn_q_norm.weight"},
        {{.extra = "blk.2.attn_q.weight"}, PE_ERR_UNSUPPORTED, "blk.2.attn_q.weight"},
        {{.extra = "blk.01.attn_q.weight"}, PE_ERR_UNSUPPORTED, "blk.01.attn_q.weight"},
        {{.extra = "xoutput.weight"}, PE_ERR_UNSUPPORTED, "xoutput.weight"},
        {{.retyped = "token_embd.weight", .new_dtype = PE_DTYPE_F16, .misshaped = "output.weight"},
         PE_ERR_FORMAT,
         "output.weight"},
        {{.retyped = "output_norm.weight", .new_dtype = PE_DTYPE_F16}, PE_ERR_UNSUPPORTED, "F16"},
        {{.retyped = "blk.0.attn_v.weight", .new_dtype = 28}, PE_ERR_UNSUPPORTED, "found F64"},
        {{.arch = "mamba"}, PE_ERR_UNSUPPORTED, "\"mamba\""},
        {{.n_experts = 8}, PE_ERR_FORMAT, "experts used: expected 1 to 8, found 0"},
        {{.scaling = "ntk"}, PE_ERR_UNSUPPORTED, "\"ntk\""},
        {{.scaling = "longrope"}, PE_ERR_FORMAT, "rope_factors_long.weight"},
        {{.n_tokens = 95}, PE_ERR_FORMAT, "found 95 in tokenizer.ggml.tokens"},
        {{.n_kv_heads = 3}, PE_ERR_FORMAT, "multiple of the 3 KV heads"},
        {{.without_key = "llama.block_count"}, PE_ERR_FORMAT, "llama.block_count"},
        {{.without_key = "llama.attention.head_count"}, PE_ERR_FORMAT, "head_count"},
    };
    for (size_t i = 0; i < LEN(table); i++) {
        pe_file *file = open_tiny(&table[i].model);
        pe_engine *engine = NULL;
        const pe_engine_params params = params_of(1, 8);
        CHECK_FAILS(pe_file_check(file, err), table[i].status, table[i].fragment);
        CHECK_FAILS(pe_engine_open(&engine, file, &params, err), table[i].status,
                    table[i].fragment);
        CHECK(engine == NULL, "%s", table[i].fragment);
        pe_file_close(file);
    }
    // IQ2_XXS rows are 256 wide: the model that has such rows.
    const tiny_llama iq2 = {
        .dtype = PE_DTYPE_Q6_K, .retyped = "blk.1.ffn_up.weight", .new_dtype = 16};
    pe_file *file = open_tiny(&iq2);
    CHECK_FAILS(pe_file_check(file, err), PE_ERR_UNSUPPORTED, "blk.1.ffn_up.weight: expected");
    CHECK_FAILS(pe_file_check(file, err), PE_ERR_UNSUPPORTED, "found IQ2_XXS");
    pe_file_close(file);
    const tiny_llama fine = {.n_tokens = TINY_VOCAB, .scaling = "linear", .tied = true};
    file = open_tiny(&fine);
    CHECK_OK(pe_file_check(file, err));
    pe_file_close(file);
}

/* ---- out of memory ---------------------------------------------------- */

static uint64_t n_spared;  // allocations that were not to fail

/* Everything a program does, ending at the first failure, with all released. */
/* Whether kernels here read strips of a type faster than rows. */
static bool gains_by_strips(uint32_t dtype) {
    pe_kernels kernels;
    pe_kernels_init(&kernels, PE_ISA_BEST);
    return kernels.fast_strips[dtype];
}

static pe_status whole_life(const char *path, uint32_t resident, pe_error *err) {
    static const uint32_t tokens[] = {1, 2, 3, 4, 5};
    pe_file *file = NULL;
    pe_engine *engine = NULL;
    pe_session *session = NULL;
    pe_session *fork = NULL;
    pe_sampler *sampler = NULL;
    pe_engine_params params = params_of(2, 2);
    params.resident = resident;
    const pe_sampler_params greedy = {
        .struct_bytes = sizeof greedy, .top_p = 1.0f, .repeat_penalty = 1.0f, .penalty_window = 4};
    uint32_t token;
    float logprob;
    pe_status status = pe_file_open(&file, path, err);
    status = status != PE_OK ? status : pe_engine_open(&engine, file, &params, err);
    status = status != PE_OK ? status : pe_session_new(&session, engine, err);
    status = status != PE_OK ? status : feed_one(session, engine, tokens, 5, logits_a, err);
    status = status != PE_OK ? status : pe_session_fork(&fork, session, err);
    if (status == PE_OK) {
        status = feed_one(fork, engine, tokens, 5, logits_a, err);
        // A refused copy leaves both timelines usable.
        CHECK_U64(pe_session_n_tokens(fork), status == PE_OK ? 10 : 5);
        CHECK_U64(pe_session_n_tokens(session), 5);
        const uint64_t before = n_allocations;
        const uint64_t k = failing_allocation;
        failing_allocation = 0;
        CHECK(feed_one(session, engine, tokens, 1, logits_b, NULL) == PE_OK, "after NOMEM");
        failing_allocation = k;
        n_spared = n_allocations - before;
    }
    status = status != PE_OK ? status : pe_sampler_new(&sampler, &greedy, tokens, logits_a, 1, err);
    status = status != PE_OK ? status : pe_sampler_pick(sampler, &token, logits_a, TINY_VOCAB, err);
    status =
        status != PE_OK ? status : pe_top_logprobs(&token, &logprob, 1, logits_a, TINY_VOCAB, err);
    pe_sampler_free(sampler);
    pe_session_free(fork);
    pe_session_free(session);
    pe_engine_close(engine);
    pe_file_close(file);
    return status;
}

static void fail_each_allocation(const char *path, uint32_t resident) {
    n_allocations = 0;
    failing_allocation = 0;
    CHECK_OK(whole_life(path, resident, err));
    const uint64_t n = n_allocations;
    const uint64_t n_sound = n_spared;
    CHECK(n > 20, "%u allocations", (unsigned)n);
    uint64_t n_failed = 0;
    for (uint64_t k = 1; k <= n; k++) {
        pe_error err = {0, ""};
        n_allocations = 0;
        failing_allocation = k;
        const pe_status status = whole_life(path, resident, &err);
        failing_allocation = 0;
        n_failed += status == PE_ERR_NOMEM;
        CHECK(status == PE_ERR_NOMEM ? err.code == PE_ERR_NOMEM && err.message[0] != '\0'
                                     : status == PE_OK,
              "allocation %u: status %d: %s", (unsigned)k, (int)status, err.message);
    }
    // Weights that may stay where they are do so when there is no room for their list.
    const uint64_t n_optional =
        resident == PE_RESIDENT_AUTO && gains_by_strips(PE_DTYPE_Q8_0) ? 1 : 0;
    CHECK_U64(n_failed, n - n_sound - n_optional);
    n_allocations = 0;
}

static void every_allocation_fails_once(void) {
    bytes b = {NULL, 0, 0};
    const tiny_llama model = {.dtype = PE_DTYPE_Q8_0};
    put_tiny_llama(&b, &model);
    const char *path = temp_file("memory.gguf", b.data, b.n);
    bytes_free(&b);
    fail_each_allocation(path, PE_RESIDENT_AUTO);
    fail_each_allocation(path, PE_RESIDENT_OFF);
    if (gains_by_strips(PE_DTYPE_Q8_0)) {
        fail_each_allocation(path, PE_RESIDENT_ON);
    }
}

/* ---- resident weights ------------------------------------------------- */

static pe_engine_info info_of(pe_engine *engine) {
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    return info;
}

/* Logits of 8 tokens one by one and 24 at once, before, while and after weights move. */
static void feed_all_ways(pe_engine *engine, const uint32_t *tokens, float *logits) {
    for (uint32_t i = 0; i < 6; i++) {  // a share of the weights moves after each pass
        feed_in_cuts(engine, tokens, 32, i % 2 == 0 ? 1 : 32, logits + i * 32 * TINY_VOCAB);
    }
}

static void resident_weights(void) {
    static float off[6 * 32 * TINY_VOCAB];
    static float moved[6 * 32 * TINY_VOCAB];
    uint32_t tokens[32];
    random_tokens(tokens, 32);
    for (size_t t = 0; t < LEN(DTYPES); t++) {
        const tiny_llama model = {.dtype = DTYPES[t], .has_bias = true};
        pe_file *file = open_tiny(&model);
        pe_engine_params params = params_of(2, 32);
        params.resident = PE_RESIDENT_OFF;
        pe_engine *engine = open_engine(file, params);
        feed_all_ways(engine, tokens, off);
        CHECK_U64(info_of(engine).resident_bytes_goal, 0);
        CHECK(strcmp(info_of(engine).resident_why, "off, as asked") == 0, "found %s",
              info_of(engine).resident_why);
        pe_engine_close(engine);
        const bool gains = gains_by_strips(DTYPES[t]);
        for (uint32_t mode = PE_RESIDENT_AUTO; mode <= PE_RESIDENT_ON; mode += PE_RESIDENT_ON) {
            params.resident = mode;
            if (mode == PE_RESIDENT_ON && !gains) {
                pe_engine *refused = NULL;
                CHECK_FAILS(pe_engine_open(&refused, file, &params, err), PE_ERR_UNSUPPORTED,
                            "resident weights: expected");
                continue;
            }
            engine = open_engine(file, params);
            const uint64_t goal = info_of(engine).resident_bytes_goal;
            CHECK(gains ? goal > 0 : goal == 0, "type %u: goal %u", DTYPES[t], (unsigned)goal);
            CHECK_U64(info_of(engine).resident_bytes, mode == PE_RESIDENT_ON ? goal : 0);
            feed_all_ways(engine, tokens, moved);
            CHECK_U64(info_of(engine).resident_bytes, goal);
            for (uint32_t i = 0; i < 6; i++) {
                const uint32_t at = i * 32 * TINY_VOCAB;
                check_logits("resident", moved + at, off + at, 32);
            }
            pe_engine_close(engine);
        }
        params.resident = PE_RESIDENT_ON + 1;
        pe_engine *none = NULL;
        CHECK_FAILS(pe_engine_open(&none, file, &params, err), PE_ERR_ARG, "resident");
        params.resident = PE_RESIDENT_AUTO;
        params.isa = PE_ISA_SCALAR;
        engine = open_engine(file, params);
        CHECK_U64(info_of(engine).resident_bytes_goal, 0);
        close_all(engine, file);
    }
}

/* ---- between machines ------------------------------------------------- */

/* Prints a hash of logits for each type, to be compared between processors. */
static void hash_of_logits(void) {
    uint64_t hash = 0xcbf29ce484222325u;
    rng_seed(42);
    uint32_t tokens[40];
    random_tokens(tokens, 40);
    for (size_t t = 0; t < LEN(DTYPES); t++) {
        const tiny_llama model = {.dtype = DTYPES[t], .has_bias = true};
        pe_file *file = open_tiny(&model);
        pe_engine *engine = open_engine(file, params_of(2, 16));
        feed_in_cuts(engine, tokens, 40, 9, logits_a);
        for (size_t i = 0; i < 40 * TINY_VOCAB; i++) {
            uint32_t bits;
            memcpy(&bits, &logits_a[i], sizeof bits);
            hash = (hash ^ bits) * 0x100000001b3u;
        }
        close_all(engine, file);
    }
    printf("  logits hash %016llx\n", (unsigned long long)hash);
}

int main(void) {
    static const test_case tests[] = {
        TEST(same_bits_however_computed),
        TEST(fork_and_rewind),
        TEST(sessions_together),
        TEST(callers_at_once),
        TEST(limits),
        TEST(kv_budget),
        TEST(not_a_number),
        TEST(unfit_models),
        TEST(resident_weights),
        TEST(every_allocation_fails_once),
        TEST(hash_of_logits),
    };
    return run_tests(tests, LEN(tests));
}
