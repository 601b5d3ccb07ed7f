/* Recurrent layers on a tiny random LFM 2: whatever a session goes through, cuts, neighbours,
 * forks, rewinds, failures, spent budgets, its logits are those of one that was fed straight.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"
#include "pe_history.h"

#define N 500u
#define LEN(array) (sizeof(array) / sizeof((array)[0]))

static uint32_t tokens[N];
static float expected[N * TINY_VOCAB];
static float found[N * TINY_VOCAB];

/* ---- helpers ---------------------------------------------------------- */

static pe_file *open_tiny(const tiny_lfm2 *options) {
    bytes b = {NULL, 0, 0};
    put_tiny_lfm2(&b, options);
    pe_file *file = NULL;
    CHECK_OK(pe_file_open(&file, temp_file("tiny.gguf", b.data, b.n), err));
    bytes_free(&b);
    return file;
}

static pe_engine *open_engine(pe_file *file, uint32_t n_threads, uint32_t n_batch, pe_isa isa,
                              uint64_t max_kv_bytes) {
    const pe_engine_params params = {.struct_bytes = sizeof params,
                                     .n_threads = n_threads,
                                     .n_batch = n_batch,
                                     .isa = (uint32_t)isa,
                                     .max_kv_bytes = max_kv_bytes};
    pe_engine *engine = NULL;
    CHECK_OK(pe_engine_open(&engine, file, &params, err));
    return engine;
}

static pe_session *new_session(pe_engine *engine) {
    pe_session *session = NULL;
    CHECK_OK(pe_session_new(&session, engine, err));
    return session;
}

static pe_session *fork_of(pe_session *session) {
    pe_session *fork = NULL;
    CHECK_OK(pe_session_fork(&fork, session, err));
    return fork;
}

/* Tokens [n_tokens, to), of whose logits the last n_logits. */
static pe_status feed_to(pe_session *session, pe_engine *engine, uint32_t to, uint32_t n_logits,
                         pe_error *err) {
    const uint32_t from = pe_session_n_tokens(session);
    const pe_feed feed = {.session = session,
                          .tokens = tokens + from,
                          .n_tokens = to - from,
                          .n_logits = n_logits,
                          .logits = found};
    return pe_engine_forward(engine, &feed, 1, NULL, err);
}

static void check_rows(const char *what, const float *rows, uint32_t to, uint32_t n_rows) {
    const size_t n = (size_t)n_rows * TINY_VOCAB;
    const size_t same = first_difference(rows, expected + (size_t)(to - n_rows) * TINY_VOCAB, n);
    CHECK(same == n, "%s: position %zu differs", what, to - n_rows + same / TINY_VOCAB);
}

/* Feeds up to a position and compares all logits. */
static void feed_and_check(const char *what, pe_session *session, pe_engine *engine, uint32_t to) {
    const uint32_t n = to - pe_session_n_tokens(session);
    CHECK_OK(feed_to(session, engine, to, n, err));
    check_rows(what, found, to, n);
    CHECK_U64(pe_session_n_tokens(session), to);
}

static pe_engine_info info_of(pe_engine *engine) {
    pe_engine_info info;
    pe_engine_describe(&info, engine);
    return info;
}

static void close_all(pe_engine *engine, pe_file *file) {
    CHECK_U64(info_of(engine).kv_bytes, 0);  // pages and states have gone back
    pe_engine_close(engine);
    pe_file_close(file);
}

/* Random tokens, never the one that is NaN, and their logits in one batch of scalar code. */
static pe_file *start(const tiny_lfm2 *options) {
    for (uint32_t i = 0; i < N; i++) {
        tokens[i] = 1 + rng_below(TINY_VOCAB - 1);
    }
    pe_file *file = open_tiny(options);
    pe_engine *engine = open_engine(file, 1, N, PE_ISA_SCALAR, 0);
    pe_session *session = new_session(engine);
    CHECK_OK(feed_to(session, engine, N, N, err));
    memcpy(expected, found, sizeof expected);
    CHECK(is_finite(expected[N * TINY_VOCAB - 1]), "not a number");
    pe_session_free(session);
    pe_engine_close(engine);
    return file;
}

/* ---- the same bits ---------------------------------------------------- */

static void however_computed(void) {
    static const uint32_t dtypes[] = {PE_DTYPE_F32, PE_DTYPE_Q8_0, PE_DTYPE_Q4_0};
    static const uint32_t cuts[] = {1, 7, 31, 32, 33, 100};
    static const uint32_t uneven[] = {2, 1, 0};
    for (size_t t = 0; t < LEN(dtypes); t++) {
        // The last of them has layers of 2, 1 and no KV heads.
        const tiny_lfm2 model = {.dtype = dtypes[t],
                                 .n_conv = 1 + (uint32_t)t * 2,
                                 .kv_heads = dtypes[t] == PE_DTYPE_Q4_0 ? uneven : NULL};
        pe_file *file = start(&model);
        uint32_t i = 0;
        FOR_EACH_ISA(isa) {
            for (uint32_t n_batch = 1; n_batch <= 256; n_batch *= 16, i++) {
                pe_engine *engine = open_engine(file, 1 + i % 3, n_batch, isa, 0);
                pe_session *session = new_session(engine);
                const uint32_t cut = cuts[i % LEN(cuts)];
                for (uint32_t to = cut; to < N + cut; to += cut) {
                    feed_and_check("cut", session, engine, to < N ? to : N);
                }
                pe_session_free(session);
                pe_engine_close(engine);
            }
        }
        pe_file_close(file);
    }
}

/* From every length back to every position, each in front of the last. */
static void rewind_to_everywhere(void) {
    const tiny_lfm2 model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = start(&model);
    pe_engine *engine = open_engine(file, 2, 48, PE_ISA_BEST, 0);
    static const uint32_t lengths[] = {1, 32, 33, 64, 95, 257, 500};
    for (size_t i = 0; i < LEN(lengths); i++) {
        pe_session *whole = new_session(engine);
        feed_and_check("straight", whole, engine, lengths[i]);
        for (uint32_t to = 0; to < lengths[i]; to += lengths[i] > 100 ? 7 : 1) {
            pe_session *fork = fork_of(whole);
            CHECK_OK(pe_session_rewind(fork, to, err));
            CHECK_U64(pe_session_n_tokens(fork), to);
            const uint32_t next = to + 40 < lengths[i] ? to + 40 : lengths[i];
            feed_and_check("rewind", fork, engine, to + 1);
            if (next > to + 1) {
                feed_and_check("rewind, more", fork, engine, next);
            }
            pe_session_free(fork);
        }
        for (uint32_t to = lengths[i]; to > 0;) {  // one session, ever shorter
            to -= 1 + rng_below(to < 40 ? to : 40);
            CHECK_OK(pe_session_rewind(whole, to, err));
            if (rng_below(2) == 0) {  // or twice without a feed between
                feed_and_check("ever shorter", whole, engine, to + 1);
                CHECK_OK(pe_session_rewind(whole, to, err));
            }
        }
        pe_session_free(whole);
    }
    close_all(engine, file);
}

/* What a replay costs is bounded: about as much as was dropped. */
static void checkpoints_are_few_and_near(void) {
    const tiny_lfm2 model = {.dtype = PE_DTYPE_F32};
    pe_file *file = start(&model);
    for (uint32_t cut = 1; cut <= N; cut *= 5) {
        pe_engine *engine = open_engine(file, 1, 64, PE_ISA_BEST, 0);
        const pe_engine_info info = info_of(engine);
        CHECK_U64(info.state_bytes, LFM2_STATE_FLOATS * sizeof(float));
        CHECK_U64(info.kv_page_bytes, 2 * 32 * (24 + 24) * 4);  // of one layer
        pe_session *session = new_session(engine);
        for (uint32_t to = cut; to < N + cut; to += cut) {
            CHECK_OK(feed_to(session, engine, to < N ? to : N, 0, err));
        }
        // Of borders 1 to 15: 15, 14, 12, 8; the newest state beside them.
        const uint64_t in_states = info_of(engine).kv_bytes - 16 * info.kv_page_bytes;
        CHECK_U64(in_states, 5 * info.state_bytes);
        pe_session_free(session);
        close_all(engine, NULL);
    }
    pe_file_close(file);
}

/* A history without a model, fed in many ways, back to every position. */
static void replays_are_short(void) {
    pe_budget budget = {.max_bytes = UINT64_MAX};
    const pe_state_pool pool = {.budget = &budget, .n_floats = 1};
    static const uint32_t ids[5000];
    for (uint32_t cut = 1; cut <= 5000; cut = cut * 3 + 1) {
        pe_history history = {0};
        for (uint32_t end = 0; end < 5000;) {
            const uint32_t n = end + cut < 5000 ? cut : 5000 - end;
            CHECK_OK(pe_history_begin(&history, &pool, ids, n, err));
            while (history.planned < history.end) {
                pe_span span;
                pe_history_plan(&history, &pool, &span, 256);
            }
            pe_history_commit(&history, &pool);
            end += n;
            CHECK_U64(history.position, end);
            for (uint32_t to = end; to > 0 && end % 7 == 0; to--) {
                const pe_checkpoint *c = history.checkpoints + history.n_checkpoints;
                while (c > history.checkpoints && c[-1].position > to) {
                    c--;
                }
                const uint32_t at = c > history.checkpoints ? c[-1].position : 0;
                CHECK(to - at < 2 * (end - to) + 64, "from %u to %u: at %u", end, to, at);
            }
        }
        CHECK(history.n_checkpoints <= 10, "%u checkpoints", history.n_checkpoints);
        pe_history_clear(&history, &pool);
        CHECK_U64(budget.n_bytes, 0);
    }
}

static void sessions_together(void) {
    enum { M = 5 };
    const tiny_lfm2 model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = start(&model);
    pe_engine *engine = open_engine(file, 2, 24, PE_ISA_BEST, 0);
    pe_session *sessions[M];
    static float rows[M][N * TINY_VOCAB];
    sessions[0] = new_session(engine);
    CHECK_OK(feed_to(sessions[0], engine, 130, 0, err));
    for (uint32_t i = 1; i < M; i++) {
        sessions[i] = fork_of(sessions[i - 1]);  // one state, five owners
    }
    CHECK_OK(pe_session_rewind(sessions[2], 129, err));
    CHECK_OK(pe_session_rewind(sessions[3], 5, err));
    CHECK_OK(pe_session_rewind(sessions[4], 96, err));
    for (uint32_t round = 0; round < 3; round++) {
        pe_feed feeds[M];
        for (uint32_t i = 0; i < M; i++) {
            const uint32_t from = pe_session_n_tokens(sessions[i]);
            const uint32_t n = 1 + rng_below(70);
            feeds[i] = (pe_feed){sessions[i], tokens + from, n, n, rows[i]};
        }
        CHECK_OK(pe_engine_forward(engine, feeds, M, NULL, err));
        for (uint32_t i = 0; i < M; i++) {
            check_rows("together", rows[i], pe_session_n_tokens(sessions[i]), feeds[i].n_tokens);
        }
        CHECK_OK(pe_session_rewind(sessions[round], pe_session_n_tokens(sessions[round]) / 2, err));
    }
    for (uint32_t i = 0; i < M; i++) {
        pe_session_free(sessions[i]);
    }
    close_all(engine, file);
}

/* ---- failures --------------------------------------------------------- */

/* Feeds the token that is NaN behind the next few, which fails after the state was written. */
static void spoil(pe_session *session, pe_engine *engine, uint32_t n) {
    const uint32_t held = pe_session_n_tokens(session);
    uint32_t bad[N];
    memcpy(bad, tokens + held, n * sizeof *bad);
    bad[n - 1] = 0;
    const pe_feed feed = {session, bad, n, 1, found};
    CHECK_FAILS(pe_engine_forward(engine, &feed, 1, NULL, err), PE_ERR_NUMERIC, "logits");
    CHECK_U64(pe_session_n_tokens(session), held);
}

static void failures_leave_no_trace(void) {
    const tiny_lfm2 model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = start(&model);
    pe_engine *engine = open_engine(file, 2, 20, PE_ISA_BEST, 0);
    static const uint32_t steps[] = {1, 31, 1, 40, 64, 1, 60};
    pe_session *session = new_session(engine);
    uint32_t to = 0;
    for (size_t i = 0; i < LEN(steps); i++) {
        spoil(session, engine, 1 + rng_below(90));  // into several batches, past borders
        pe_session *fork = fork_of(session);
        spoil(fork, engine, 50);
        const int32_t cancel = 1;
        const pe_feed feed = {session, tokens + to, 50, 0, NULL};
        CHECK_FAILS(pe_engine_forward(engine, &feed, 1, &cancel, err), PE_ERR_CANCELLED, "layer");
        to += steps[i];
        feed_and_check("after failures", session, engine, to);
        feed_and_check("a fork's failure", fork, engine, to);
        pe_session_free(fork);
        if (i % 2 == 1) {
            to -= 20;
            CHECK_OK(pe_session_rewind(session, to, err));
            spoil(session, engine, 30);  // while tokens wait to be replayed
        }
    }
    pe_session_free(session);
    close_all(engine, file);
}

/* With room for the pages and one state there are no checkpoints, and all is as before; with
 * less there is a message. */
static void budgets(void) {
    const tiny_lfm2 model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = start(&model);
    pe_engine *engine = open_engine(file, 1, 16, PE_ISA_BEST, 0);
    const uint64_t page = info_of(engine).kv_page_bytes;
    const uint64_t state = info_of(engine).state_bytes;
    pe_engine_close(engine);
    for (uint64_t n_states = 1; n_states <= 4; n_states++) {  // a page is as large as 4 states
        engine = open_engine(file, 1, 16, PE_ISA_BEST, 5 * page + n_states * state);
        pe_session *session = new_session(engine);
        for (uint32_t to = 1; to <= 160; to += 1 + rng_below(40)) {
            feed_and_check("tight", session, engine, to);
        }
        CHECK_OK(pe_session_rewind(session, 33 + rng_below(60), err));
        feed_and_check("tight, rewound", session, engine, 160);
        CHECK_FAILS(feed_to(session, engine, 161, 0, err), PE_ERR_NOMEM, "a page of");
        CHECK_U64(pe_session_n_tokens(session), 160);
        CHECK(info_of(engine).kv_bytes_peak <= 5 * page + n_states * state, "peak");
        pe_session *fork = fork_of(session);
        CHECK_OK(pe_session_rewind(fork, 159, err));
        if (n_states == 1) {  // a fork's last page is to be copied, and there is none
            CHECK_FAILS(feed_to(fork, engine, 160, 0, err), PE_ERR_NOMEM, "KV cache");
            CHECK_U64(pe_session_n_tokens(fork), 159);
        }
        pe_session_free(fork);
        CHECK_OK(pe_session_rewind(session, 100, err));
        feed_and_check("after refusals", session, engine, 160);
        pe_session_free(session);
        close_all(engine, NULL);
    }
    engine = open_engine(file, 1, 16, PE_ISA_BEST, page + state - 1);
    pe_session *session = new_session(engine);
    CHECK_FAILS(feed_to(session, engine, 1, 0, err), PE_ERR_NOMEM, "a state of");
    CHECK_U64(pe_session_n_tokens(session), 0);
    pe_session_free(session);
    close_all(engine, file);
}

static pe_status live(pe_engine *engine, pe_error *err) {
    pe_session *session = NULL;
    pe_session *fork = NULL;
    pe_status status = pe_session_new(&session, engine, err);
    status = status != PE_OK ? status : feed_to(session, engine, 70, 0, err);
    status = status != PE_OK ? status : pe_session_fork(&fork, session, err);
    status = status != PE_OK ? status : feed_to(fork, engine, 100, 0, err);
    if (status == PE_OK) {
        CHECK(pe_session_rewind(fork, 60, NULL) == PE_OK, "rewind");
        status = feed_to(fork, engine, 100, 40, err);
        if (status == PE_OK) {
            check_rows("with a failing allocation", found, 100, 40);
        }
    }
    pe_session_free(fork);
    pe_session_free(session);
    return status;
}

/* Without memory a feed fails or has no checkpoint; it never gives other bits. */
static void every_allocation_fails_once(void) {
    const tiny_lfm2 model = {.dtype = PE_DTYPE_Q8_0};
    pe_file *file = start(&model);
    pe_engine *engine = open_engine(file, 2, 16, PE_ISA_BEST, 0);
    n_allocations = 0;
    CHECK_OK(live(engine, err));
    const uint64_t n = n_allocations;
    CHECK(n > 10, "%u allocations", (unsigned)n);
    for (uint64_t k = 1; k <= n; k++) {
        pe_error err = {0, ""};
        n_allocations = 0;
        failing_allocation = k;
        const pe_status status = live(engine, &err);
        failing_allocation = 0;
        CHECK(status == PE_OK || status == PE_ERR_NOMEM, "allocation %u: %s", (unsigned)k,
              err.message);
        CHECK_U64(info_of(engine).kv_bytes, 0);
    }
    close_all(engine, file);
}

/* ---- random lives ----------------------------------------------------- */

static void random_lives(void) {
    enum { M = 4 };
    const tiny_lfm2 model = {.dtype = PE_DTYPE_Q4_0};
    pe_file *file = start(&model);
    for (uint32_t round = 0; round < 6; round++) {
        pe_engine *engine = open_engine(file, 1 + round % 2, 9 + 20 * round, PE_ISA_BEST, 0);
        const uint64_t page = info_of(engine).kv_page_bytes;
        const uint64_t state = info_of(engine).state_bytes;
        pe_engine_close(engine);
        const uint64_t budget = round % 2 == 0 ? 0 : 4 * 16 * page + (5 + round) * state;
        engine = open_engine(file, 1 + round % 2, 9 + 20 * round, PE_ISA_BEST, budget);
        pe_session *sessions[M];
        for (uint32_t i = 0; i < M; i++) {
            sessions[i] = new_session(engine);
        }
        for (uint32_t act = 0; act < 150; act++) {
            pe_session **session = &sessions[rng_below(M)];
            const uint32_t held = pe_session_n_tokens(*session);
            const uint32_t kind = rng_below(10);
            if (kind < 2) {
                CHECK_OK(pe_session_rewind(*session, held - rng_below(held + 1) / 2, err));
            } else if (kind < 3) {
                pe_session_free(*session);
                *session = fork_of(sessions[(session - sessions + 1) % M]);
            } else if (kind < 4 && held < 400) {
                spoil(*session, engine, 1 + rng_below(80));
            } else if (kind < 5 && held > 300) {
                CHECK_OK(pe_session_rewind(*session, rng_below(40), err));
            } else if (held < 420) {
                feed_and_check("random", *session, engine, held + 1 + rng_below(rng_below(80) + 1));
            }
        }
        for (uint32_t i = 0; i < M; i++) {
            pe_session_free(sessions[i]);
        }
        close_all(engine, NULL);
    }
    pe_file_close(file);
}

/* ---- refusals --------------------------------------------------------- */

static void unfit_models(void) {
    static const uint32_t uneven[] = {3, 1, 0};
    static const uint32_t huge[] = {0, 4000000000u, 0};
    static const uint32_t none[] = {0, 0, 0};
    static const struct {
        tiny_lfm2 model;
        pe_status status;
        const char *fragment;
    } table[] = {
        {{.kv_heads = uneven}, PE_ERR_FORMAT, "expected a multiple of the 3 KV heads, found 4"},
        {{.kv_heads = huge}, PE_ERR_FORMAT, "number of KV heads: expected 1 to 4"},
        {{.kv_heads = none}, PE_ERR_FORMAT, "number of KV heads: expected 1 to 4, found 0"},
        {{.kv_heads = none, .n_kv_heads = 2},
         PE_ERR_FORMAT,
         "each of 3 layers, found an array of 2"},
        {{.two_kv_heads = true}, PE_ERR_FORMAT, "blk.0.attn_q.weight"},
        {{.n_conv = 17}, PE_ERR_FORMAT, "tokens of the convolution: expected 1 to 16, found 17"},
        {{.extra = "blk.0.attn_q.weight"}, PE_ERR_UNSUPPORTED, "blk.0.attn_q.weight"},
        {{.extra = "blk.1.shortconv.in_proj.weight"}, PE_ERR_UNSUPPORTED, "blk.1.shortconv"},
    };
    for (size_t i = 0; i < LEN(table); i++) {
        pe_file *file = open_tiny(&table[i].model);
        CHECK_FAILS(pe_file_check(file, err), table[i].status, table[i].fragment);
        pe_file_close(file);
    }
}

int main(void) {
    static const test_case tests[] = {
        TEST(however_computed),
        TEST(rewind_to_everywhere),
        TEST(checkpoints_are_few_and_near),
        TEST(replays_are_short),
        TEST(sessions_together),
        TEST(failures_leave_no_trace),
        TEST(budgets),
        TEST(every_allocation_fails_once),
        TEST(random_lives),
        TEST(unfit_models),
    };
    return run_tests(tests, LEN(tests));
}
