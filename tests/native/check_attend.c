/* Attention pages, norm and activation: every instruction set has the bits of
 * scalar.c, and scalar.c is within its rounding errors of plain formulas in double.
 */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_kernels.h"

#define EPS 0x1p-24
#define MAX_WIDTH 256
#define MAX_QUERIES 37
#define MAX_PAGES 3

static pe_kernels kernels[MAX_ISAS];  // by pe_isa

static void init_kernels(void) {
    FOR_EACH_ISA(isa) {
        pe_kernels_init(&kernels[isa], isa);
    }
}

/* ---- attention -------------------------------------------------------- */

typedef struct scene {
    pe_kv_type type;
    size_t d_k, d_v, n_queries, n_pages;
    uint32_t n_valid[MAX_QUERIES];  // of the last page; the others are full
    float scale;
    float softcap;
    float *q;
    void *keys[MAX_PAGES];
    void *values[MAX_PAGES];
} scene;

static size_t round_up(size_t d_v) {
    return (d_v + PE_LANES - 1) / PE_LANES * PE_LANES;
}

/* Where dimension d of position j lies among the integers (or floats). */
static size_t place_of(const scene *s, bool is_key, size_t d, size_t j) {
    const size_t width = is_key ? s->d_k : s->d_v;
    const size_t padded = (width + 31) / 32 * 32;
    switch (s->type) {
    case PE_KV_Q8_0: return is_key ? d * 32 + j : j * padded + d;
    case PE_KV_Q4_0:
        return is_key ? (d / 32 * 16 + d % 16) * 32 + j : j * padded / 2 + d / 32 * 16 + d % 16;
    default: return is_key ? d * 32 + j : j * width + d;
    }
}

static size_t integers_at(const scene *s, bool is_key) {
    return ((is_key ? s->d_k : s->d_v) + 31) / 32 * 32 * sizeof(pe_f16);
}

static float item(const scene *s, const void *data, bool is_key, size_t d, size_t j) {
    const size_t at = place_of(s, is_key, d, j);
    if (s->type == PE_KV_F32) {
        return ((const float *)data)[at];
    }
    if (s->type == PE_KV_F16) {
        return pe_f16_to_f32(((const pe_f16 *)data)[at]);
    }
    const float scale = pe_f16_to_f32(((const pe_f16 *)data)[d / 32 * 32 + j]);
    const uint8_t q = ((const uint8_t *)data + integers_at(s, is_key))[at];
    if (s->type == PE_KV_Q8_0) {
        return scale * (float)(int8_t)q;
    }
    return scale * (float)((d % 32 < 16 ? q & 15 : q >> 4) - 8);
}

/* Sets an item; for quantized types only the scale of its block, where x is NaN. */
static void set_item(const scene *s, void *data, bool is_key, size_t d, size_t j, float x) {
    const size_t at = place_of(s, is_key, d, j);
    if (s->type == PE_KV_F32) {
        ((float *)data)[at] = x;
    } else if (s->type == PE_KV_F16 || is_nan(x)) {
        ((pe_f16 *)data)[s->type == PE_KV_F16 ? at : d / 32 * 32 + j] = pe_f16_from_f32(x);
    } else {
        ((pe_f16 *)data)[d / 32 * 32 + j] = pe_f16_from_f32(s->type == PE_KV_Q8_0 ? 0.01f : 0.13f);
        ((uint8_t *)data + integers_at(s, is_key))[at] = (uint8_t)rng_below(256);
    }
}

static size_t valid_in(const scene *s, size_t i, size_t page) {
    return page + 1 < s->n_pages ? PE_PAGE_TOKENS : s->n_valid[i];
}

/* Positions of a page that any query sees. */
static size_t seen_in(const scene *s, size_t page) {
    size_t n = 0;
    for (size_t i = 0; i < s->n_queries; i++) {
        n = PE_MAX(n, valid_in(s, i, page));
    }
    return n;
}

static void *make_part(const scene *s, unsigned slot, bool is_key, size_t n_seen) {
    const size_t d = is_key ? s->d_k : s->d_v;
    const size_t n_bytes = (size_t)pe_page_bytes(s->type, d);
    void *data = guarded(slot, n_bytes);
    memset(data, 0, n_bytes);
    for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
        for (size_t i = 0; i < d; i++) {
            set_item(s, data, is_key, i, j, j < n_seen ? rng_f32(-1.0f, 1.0f) : NAN);
        }
    }
    return data;
}

/* Random queries up to width, keys and values up to about 1; NaN where nobody looks. */
static void make_scene(scene *s, float width) {
    s->scale = 1.0f / sqrtf((float)s->d_k);
    s->q = guarded(0, s->n_queries * s->d_k * sizeof *s->q);
    for (size_t i = 0; i < s->n_queries * s->d_k; i++) {
        s->q[i] = rng_f32(-width, width);
    }
    for (unsigned page = 0; page < s->n_pages; page++) {
        s->keys[page] = make_part(s, 1 + 2 * page, true, seen_in(s, page));
        s->values[page] = make_part(s, 2 + 2 * page, false, seen_in(s, page));
    }
}

/* Queries [first, first + n) over all pages; acc rows are round_up(d_v) floats. */
static void attend(pe_isa isa, const scene *s, size_t first, size_t n, pe_softmax *softmax,
                   float *acc) {
    static float keys_room[MAX_WIDTH * PE_PAGE_TOKENS];
    static float values_room[MAX_WIDTH * PE_PAGE_TOKENS];
    const size_t d_v = round_up(s->d_v);
    for (size_t i = 0; i < n; i++) {
        softmax[i] = (pe_softmax){.max = -INFINITY, .sum = 0.0f};
    }
    memset(acc, 0, n * d_v * sizeof *acc);
    for (size_t page = 0; page < s->n_pages; page++) {
        const size_t next = PE_MIN(page + 1, s->n_pages - 1);
        const float *keys =
            kernels[isa].open_keys[s->type](keys_room, s->keys[page], s->keys[next], s->d_k);
        const float *values = kernels[isa].open_values[s->type](values_room, s->values[page],
                                                                s->values[next], s->d_v);
        uint32_t n_valid[MAX_QUERIES];
        for (size_t i = 0; i < n; i++) {
            n_valid[i] = (uint32_t)valid_in(s, first + i, page);
        }
        for (size_t j = 0; j < PE_PAGE_TOKENS && first == 0; j++) {
            for (size_t d = 0; d < PE_MAX(s->d_k, s->d_v); d++) {
                const float k = d < s->d_k ? keys[d * PE_PAGE_TOKENS + j] : 0.0f;
                const float v = d < s->d_v ? values[j * d_v + d] : 0.0f;
                const float k_in = d < s->d_k ? item(s, s->keys[page], true, d, j) : 0.0f;
                const float v_in = d < s->d_v ? item(s, s->values[page], false, d, j) : 0.0f;
                CHECK(first_difference(&k, &k_in, 1) == 1, "isa %d key %zu of %zu", (int)isa, d, j);
                CHECK(first_difference(&v, &v_in, 1) == 1, "isa %d value %zu of %zu", (int)isa, d,
                      j);
            }
        }
        kernels[isa].attend(softmax, acc, s->q + first * s->d_k, n_valid, n, keys, values, s->d_k,
                            d_v, s->scale, s->softcap);
    }
}

/* Softmax attention of query i in double. A score of d_k products is off by at most
 * (d_k + 2) EPS of their magnitudes, which is the relative error of its p; the exp
 * adds 4 EPS, the running maxima as much per page, the sums one EPS per position. */
static void check_query(const scene *s, size_t i, pe_softmax softmax, const float *acc) {
    double score[MAX_PAGES * PE_PAGE_TOKENS];
    double max = (double)-INFINITY;
    double widest = 0.0;
    const size_t n = (s->n_pages - 1) * PE_PAGE_TOKENS + s->n_valid[i];
    for (size_t j = 0; j < n; j++) {
        double magnitude = 0.0;
        score[j] = 0.0;
        for (size_t d = 0; d < s->d_k; d++) {
            const double k =
                (double)item(s, s->keys[j / PE_PAGE_TOKENS], true, d, j % PE_PAGE_TOKENS);
            score[j] += (double)s->q[i * s->d_k + d] * k * (double)s->scale;
            magnitude += fabs((double)s->q[i * s->d_k + d] * k * (double)s->scale);
        }
        if (s->softcap > 0.0f) {
            score[j] = (double)s->softcap * tanh(score[j] / (double)s->softcap);
            magnitude += 8.0 / ((double)s->d_k + 2.0) * (double)s->softcap;
        }
        max = fmax(max, score[j]);
        widest = fmax(widest, magnitude);
    }
    const double relative =
        2.0 * ((double)s->d_k + 4.0) * EPS * widest + (2.0 * (double)n + 40.0) * EPS;
    double sum = 0.0;
    for (size_t j = 0; j < n; j++) {
        sum += exp(score[j] - max);
    }
    for (size_t d = 0; d < s->d_v; d++) {
        double mix = 0.0;
        double magnitude = 0.0;
        for (size_t j = 0; j < n; j++) {
            const double v =
                (double)item(s, s->values[j / PE_PAGE_TOKENS], false, d, j % PE_PAGE_TOKENS);
            mix += exp(score[j] - max) * v / sum;
            magnitude += exp(score[j] - max) * fabs(v) / sum;
        }
        // e^-87 stands for everything below it.
        CHECK(fabs((double)(acc[d] / softmax.sum) - mix) <= relative * magnitude + 0x1p-118,
              "d_k %zu d_v %zu n %zu query %zu dim %zu: found %.9g, in double %.9g", s->d_k, s->d_v,
              n, i, d, (double)(acc[d] / softmax.sum), mix);
    }
    CHECK(fabs((double)softmax.max - max) <= ((double)s->d_k + 2.0) * EPS * widest,
          "largest score: found %.9g, in double %.9g", (double)softmax.max, max);
}

/* The bits of a query's d_v sums and its softmax, wherever it stood in a tile. */
static bool same_query(const scene *s, pe_softmax a, const float *acc_a, pe_softmax b,
                       const float *acc_b) {
    return memcmp(&a, &b, sizeof a) == 0 && memcmp(acc_a, acc_b, s->d_v * sizeof *acc_a) == 0;
}

static void check_scene(const scene *s) {
    static float expected_acc[MAX_QUERIES * MAX_WIDTH];
    pe_softmax expected[MAX_QUERIES];
    const size_t d_v = round_up(s->d_v);
    attend(PE_ISA_SCALAR, s, 0, s->n_queries, expected, expected_acc);
    for (size_t i = 0; i < s->n_queries; i++) {
        check_query(s, i, expected[i], expected_acc + i * d_v);
    }
    FOR_EACH_ISA(isa) {
        pe_softmax softmax[MAX_QUERIES];
        // The whole tile, then some of its queries alone, then cut at a random place.
        const size_t cut = rng_below((uint32_t)s->n_queries);
        for (size_t first = 0, n = s->n_queries, turn = 0; turn < 6; turn++) {
            float *acc = guarded(7, n * d_v * sizeof *acc);
            attend(isa, s, first, n, softmax, acc);
            for (size_t i = 0; i < n; i++) {
                CHECK(same_query(s, softmax[i], acc + i * d_v, expected[first + i],
                                 expected_acc + (first + i) * d_v),
                      "isa %d type %d d_k %zu d_v %zu query %zu of %zu from %zu, valid %u, pages"
                      " %zu",
                      (int)isa, (int)s->type, s->d_k, s->d_v, i, n, first, s->n_valid[first + i],
                      s->n_pages);
            }
            first = turn == 4 ? cut : rng_below((uint32_t)s->n_queries);
            n = turn == 4 ? s->n_queries - cut : 1;
        }
    }
    check_guards();
}

static const size_t WIDTHS[] = {1, 3, 8, 20, 32, 40, 48, 64, 80, 96, 128, 256};

static void attend_pages(pe_kv_type type) {
    init_kernels();
    for (uint32_t round = 0; round < PE_PAGE_TOKENS; round++) {
        for (size_t w = 0; w < PE_LEN(WIDTHS); w++) {
            scene s = {.type = type,
                       .d_k = WIDTHS[w],
                       .d_v = WIDTHS[(w + round) % PE_LEN(WIDTHS)],
                       .softcap = round % 4 == 3 ? 5.0f : 0.0f,
                       .n_queries = 1 + (round + w) % MAX_QUERIES,
                       .n_pages = 1 + (round + w) % MAX_PAGES};
            for (size_t i = 0; i < s.n_queries; i++) {
                // All the same, rising as a prompt's tokens do, at random.
                s.n_valid[i] = 1 + (w % 3 == 0   ? round % PE_PAGE_TOKENS
                                    : w % 3 == 1 ? (round + (uint32_t)i / 4) % PE_PAGE_TOKENS
                                                 : rng_below(PE_PAGE_TOKENS));
            }
            // Widths where the softmax is flat, usual, and a single one.
            make_scene(&s, round % 5 == 0 ? 1000.0f : round % 5 == 1 ? 0.01f : 3.0f);
            check_scene(&s);
        }
    }
}

static void attend_f32(void) {
    attend_pages(PE_KV_F32);
}
static void attend_f16(void) {
    attend_pages(PE_KV_F16);
}
static void attend_q8_0(void) {
    attend_pages(PE_KV_Q8_0);
}
static void attend_q4_0(void) {
    attend_pages(PE_KV_Q4_0);
}

/* What is not a number shows up in what reads it, and nowhere else. */
static void attend_not_numbers(void) {
    init_kernels();
    for (uint32_t round = 0; round < 600; round++) {
        scene s = {.type = PE_KV_F32 + round % 4,
                   .d_k = WIDTHS[rng_below(PE_LEN(WIDTHS))],
                   .d_v = WIDTHS[rng_below(PE_LEN(WIDTHS))],
                   .n_queries = 3,
                   .n_pages = 2};
        s.n_valid[0] = s.n_valid[1] = s.n_valid[2] = 1 + rng_below(PE_PAGE_TOKENS);
        make_scene(&s, 1.0f);
        const size_t page = rng_below(2);
        const size_t j = rng_below((uint32_t)valid_in(&s, 0, page));
        const size_t dim = rng_below((uint32_t)s.d_v);
        const size_t reach = s.type >= PE_KV_Q8_0 ? 32 : 1;  // a block shares its scale
        const uint32_t what = round / 4 % 3;
        if (what == 0) {
            s.q[s.d_k + rng_below((uint32_t)s.d_k)] = NAN;  // query 1
        } else if (what == 1) {
            set_item(&s, s.keys[page], true, rng_below((uint32_t)s.d_k), j, NAN);
        } else {
            set_item(&s, s.values[page], false, dim, j, NAN);
        }
        pe_softmax expected[MAX_QUERIES];
        static float expected_acc[MAX_QUERIES * MAX_WIDTH];
        static float acc[MAX_QUERIES * MAX_WIDTH];
        const size_t d_v = round_up(s.d_v);
        FOR_EACH_ISA(isa) {
            pe_softmax softmax[MAX_QUERIES];
            attend(isa, &s, 0, s.n_queries, softmax, acc);
            for (size_t i = 0; i < s.n_queries * d_v; i++) {
                const size_t d = i % d_v;
                const bool nan = what == 0   ? i / d_v == 1
                                 : what == 1 ? true
                                             : d / reach == dim / reach;
                CHECK(d >= s.d_v || is_nan(acc[i] / softmax[i / d_v].sum) == nan,
                      "case %u item %zu: %g", what, i, (double)acc[i]);
            }
            if (isa == PE_ISA_SCALAR) {
                memcpy(expected, softmax, sizeof expected);
                memcpy(expected_acc, acc, s.n_queries * d_v * sizeof *acc);
            }
            for (size_t i = 0; i < s.n_queries; i++) {
                CHECK_U64(first_difference(acc + i * d_v, expected_acc + i * d_v, s.d_v), s.d_v);
            }
            CHECK_U64(first_difference(&softmax->max, &expected->max, 2 * s.n_queries),
                      2 * s.n_queries);
        }
    }
}

/* ---- values out of keys ----------------------------------------------- */

static void turning(void) {
    static const size_t widths[] = {1, 3, 4, 5, 16, 20, 31, 64, 512};
    init_kernels();
    for (uint32_t round = 0; round < PE_LEN(widths); round++) {
        const size_t d = widths[round];
        float *keys = guarded(0, d * PE_PAGE_TOKENS * sizeof *keys);
        for (size_t i = 0; i < d * PE_PAGE_TOKENS; i++) {
            keys[i] = i % 97 == 5 ? NAN : rng_f32(-1.0f, 1.0f);
        }
        FOR_EACH_ISA(isa) {
            float *out = guarded(1, round_up(d) * PE_PAGE_TOKENS * sizeof *out);
            kernels[isa].turn_keys(out, keys, d);
            for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
                for (size_t i = 0; i < d; i++) {
                    const float expected = keys[i * PE_PAGE_TOKENS + j];
                    CHECK_U64(first_difference(&out[j * round_up(d) + i], &expected, 1), 1);
                }
            }
        }
        check_guards();
    }
}

/* ---- norm and activation ---------------------------------------------- */

/* The sum has n / 16 + 5 roundings, its root halves them; then a few operations. */
static void rms_norm(void) {
    static const size_t sizes[] = {1, 7, 15, 16, 17, 31, 33, 100, 512, 4096};
    init_kernels();
    for (uint32_t round = 0; round < 40 * PE_LEN(sizes); round++) {
        const size_t n = sizes[round / 40];
        const float width = round % 4 == 0 ? 1e4f : round % 4 == 1 ? 1e-4f : 1.0f;
        const float eps = round % 4 == 1 ? 1e-6f : 1e-5f;
        float *x = guarded(0, n * sizeof *x);
        float *weight = guarded(1, n * sizeof *weight);
        float expected[4096];
        double sum = 0.0;
        for (size_t i = 0; i < n; i++) {
            x[i] = rng_f32(-width, width);
            weight[i] = rng_f32(-2.0f, 2.0f);
        }
        const size_t hit = rng_below((uint32_t)n);
        x[hit] = round % 10 == 9 ? NAN : round % 10 == 8 ? INFINITY : x[hit];
        for (size_t i = 0; i < n; i++) {
            sum += (double)x[i] * (double)x[i];
        }
        const double r = 1.0 / sqrt(sum / (double)n + (double)eps);
        FOR_EACH_ISA(isa) {
            float *out = guarded(2, n * sizeof *out);
            kernels[isa].rms_norm(out, x, weight, n, eps);
            for (size_t i = 0; i < n && isa == PE_ISA_SCALAR; i++) {
                const double y = (double)x[i] * r * (double)weight[i];
                const double bound = ((double)n / 32.0 + 8.0) * EPS * fabs(y);
                expected[i] = out[i];
                CHECK(isfinite(sum) ? fabs((double)out[i] - y) <= bound
                      : i == hit    ? is_nan(out[i])
                                    : is_nan(out[i]) == isnan(sum),
                      "n %zu item %zu: found %g, in double %g", n, i, (double)out[i], y);
            }
            CHECK_U64(first_difference(out, expected, n), n);
            memcpy(out, x, n * sizeof *x);
            kernels[isa].rms_norm(out, out, weight, n, eps);
            CHECK_U64(first_difference(out, expected, n), n);
        }
        check_guards();
    }
}

/* Mean and variance have n / 16 + 5 roundings each; what the mean is off by shows in every item. */
static void layer_norm(void) {
    static const size_t sizes[] = {1, 7, 15, 16, 17, 31, 33, 100, 384, 4096};
    init_kernels();
    for (uint32_t round = 0; round < 40 * PE_LEN(sizes); round++) {
        const size_t n = sizes[round / 40];
        const float middle = round % 4 == 2 ? 30.0f : 0.0f;
        float *x = guarded(0, n * sizeof *x);
        float *weight = guarded(1, n * sizeof *weight);
        float *bias = guarded(2, n * sizeof *bias);
        float expected[4096];
        double mean = 0.0;
        double squares = 0.0;
        for (size_t i = 0; i < n; i++) {
            x[i] = middle + rng_f32(-2.0f, 2.0f);
            weight[i] = rng_f32(-2.0f, 2.0f);
            bias[i] = rng_f32(-1.0f, 1.0f);
        }
        x[rng_below((uint32_t)n)] = round % 10 == 9 ? NAN : middle;
        for (size_t i = 0; i < n; i++) {
            mean += (double)x[i] / (double)n;
        }
        for (size_t i = 0; i < n; i++) {
            squares += ((double)x[i] - mean) * ((double)x[i] - mean);
        }
        const double r = 1.0 / sqrt(squares / (double)n + 1e-3);
        FOR_EACH_ISA(isa) {
            float *out = guarded(3, n * sizeof *out);
            kernels[isa].layer_norm(out, x, weight, bias, n, 1e-3f);
            for (size_t i = 0; i < n && isa == PE_ISA_SCALAR; i++) {
                const double y = ((double)x[i] - mean) * r * (double)weight[i] + (double)bias[i];
                const double size = (2.0 + (double)middle) * r * 2.0 + 1.0;
                expected[i] = out[i];
                CHECK(isnan(mean)
                          ? is_nan(out[i])
                          : fabs((double)out[i] - y) <= ((double)n / 16.0 + 12.0) * EPS * size,
                      "n %zu item %zu: found %g, in double %g", n, i, (double)out[i], y);
            }
            CHECK_U64(first_difference(out, expected, n), n);
            memcpy(out, x, n * sizeof *x);
            kernels[isa].layer_norm(out, out, weight, bias, n, 1e-3f);
            CHECK_U64(first_difference(out, expected, n), n);
        }
        check_guards();
    }
}

/* As PE_GELU_ERF says. */
static void gelu_erf(void) {
    init_kernels();
    for (uint32_t round = 0; round < 6000; round++) {
        const size_t n = 1 + round % 40;
        const float width = round % 3 == 0 ? 20.0f : round % 3 == 1 ? 4.0f : 0.01f;
        float *out = guarded(0, n * sizeof *out);
        float x[40];
        float expected[40];
        for (size_t i = 0; i < n; i++) {
            x[i] = rng_f32(-width, width);
        }
        x[rng_below((uint32_t)n)] = round % 16 == 0   ? NAN
                                    : round % 16 == 1 ? -0.0f
                                    : round % 16 == 2 ? 3e38f
                                    : round % 16 == 3 ? -3e38f
                                                      : 1.0f;
        FOR_EACH_ISA(isa) {
            memcpy(out, x, n * sizeof *out);
            kernels[isa].gelu_erf(out, n);
            for (size_t i = 0; i < n && isa == PE_ISA_SCALAR; i++) {
                const double y = 0.5 * (double)x[i] * erfc((double)x[i] * -0.7071067811865476);
                expected[i] = out[i];
                CHECK(isnan(y) ? is_nan(out[i])
                               : fabs((double)out[i] - y) <= 2.5e-7 * fabs((double)x[i]),
                      "gelu(%g): found %.9g, in double %.9g", (double)x[i], (double)out[i], y);
            }
            CHECK_U64(first_difference(out, expected, n), n);
        }
        check_guards();
    }
}

/* exp is off by less than 2 ulp (4 EPS); sum, quotient and product round once. The
 * exponential is held at e^88, so that a gate below -88 gives up to 88 e^-88 more. */
static void silu_mul(void) {
    init_kernels();
    for (uint32_t round = 0; round < 4000; round++) {
        const size_t n = 1 + round % 40;
        const float width = round % 3 == 0 ? 100.0f : round % 3 == 1 ? 10.0f : 0.01f;
        float *gate = guarded(0, n * sizeof *gate);
        float *up = guarded(1, n * sizeof *up);
        float expected[40];
        for (size_t i = 0; i < n; i++) {
            gate[i] = rng_f32(-width, width);
            up[i] = rng_f32(-3.0f, 3.0f);
        }
        gate[rng_below((uint32_t)n)] = round % 16 == 0 ? NAN : round % 16 == 1 ? INFINITY : 0.0f;
        up[rng_below((uint32_t)n)] = round % 16 == 2 ? NAN : 1.0f;
        FOR_EACH_ISA(isa) {
            float *out = guarded(2, n * sizeof *out);
            kernels[isa].silu_mul(out, gate, up, n);
            for (size_t i = 0; i < n && isa == PE_ISA_SCALAR; i++) {
                const double y = (double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i];
                expected[i] = out[i];
                CHECK(isnan(y)       ? is_nan(out[i])
                      : !isfinite(y) ? (double)out[i] == y
                                     : fabs((double)out[i] - y) <= 7.0 * EPS * fabs(y) + 2e-35,
                      "silu(%g) * %g: found %g, in double %g", (double)gate[i], (double)up[i],
                      (double)out[i], y);
            }
            CHECK_U64(first_difference(out, expected, n), n);
            memcpy(out, gate, n * sizeof *out);
            kernels[isa].silu_mul(out, out, up, n);
            CHECK_U64(first_difference(out, expected, n), n);
            memcpy(out, up, n * sizeof *out);
            kernels[isa].silu_mul(out, gate, out, n);
            CHECK_U64(first_difference(out, expected, n), n);
        }
        check_guards();
    }
}

static double gelu(double x) {
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static double clamped_gate(double x) {
    x = x > 7.0 ? 7.0 : x;
    return x / (1.0 + exp(-1.702 * x));
}

static double clamped_up(double x) {
    return (x > 7.0 ? 7.0 : x < -7.0 ? -7.0 : x) + 1.0;
}

/* An argument of exp near 20 that is off by 2 EPS of itself makes 40 EPS of the result;
 * larger ones leave nothing of it. */
static void gates(void) {
    init_kernels();
    for (uint32_t round = 0; round < 4000; round++) {
        const size_t n = 1 + round % 40;
        const float width = round % 3 == 0 ? 30.0f : round % 3 == 1 ? 5.0f : 0.01f;
        float *gate = guarded(0, n * sizeof *gate);
        float *up = guarded(1, n * sizeof *up);
        float expected[3][40];
        for (size_t i = 0; i < n; i++) {
            gate[i] = rng_f32(-width, width);
            up[i] = rng_f32(-9.0f, 9.0f);
        }
        const size_t hit = rng_below((uint32_t)n);
        gate[hit] = round % 16 == 0 ? NAN : round % 16 == 1 ? -0.0f : gate[hit];
        up[hit] = round % 16 == 2 ? NAN : up[hit];
        FOR_EACH_ISA(isa) {
            float *out = guarded(2, n * sizeof *out);
            for (uint32_t what = 0; what < 3; what++) {
                if (what == 0) {
                    kernels[isa].gelu_mul(out, gate, up, n);
                } else if (what == 1) {
                    kernels[isa].clamped_mul(out, gate, up, n, 7.0f);
                } else {
                    memcpy(out, gate, n * sizeof *out);
                    kernels[isa].softcap(out, n, 3.0f);
                }
                for (size_t i = 0; i < n && isa == PE_ISA_SCALAR; i++) {
                    const double g = (double)gate[i];
                    const double u = (double)up[i];
                    const double y = what == 0   ? gelu(g) * u
                                     : what == 1 ? clamped_gate(g) * clamped_up(u)
                                                 : 3.0 * tanh(g / 3.0);
                    const double size = what == 2 ? 3.0 : fabs(what == 0 ? g * u : g * 8.0);
                    expected[what][i] = out[i];
                    CHECK(isnan(y) ? is_nan(out[i]) : fabs((double)out[i] - y) <= 16.0 * EPS * size,
                          "gate %u of %g, %g: found %g, in double %g", what, g, u, (double)out[i],
                          y);
                }
                CHECK_U64(first_difference(out, expected[what], n), n);
            }
            memcpy(out, gate, n * sizeof *out);
            kernels[isa].gelu_mul(out, out, up, n);
            CHECK_U64(first_difference(out, expected[0], n), n);
            memcpy(out, gate, n * sizeof *out);
            kernels[isa].clamped_mul(out, out, up, n, 7.0f);
            CHECK_U64(first_difference(out, expected[1], n), n);
        }
        check_guards();
    }
}

/* As the gates above: exp off by 4 EPS, sum and quotient rounded once. */
static void sigmoid_mul(void) {
    init_kernels();
    for (uint32_t round = 0; round < 4000; round++) {
        const size_t n = 1 + round % 40;
        const float width = round % 3 == 0 ? 85.0f : round % 3 == 1 ? 10.0f : 0.01f;
        float *gate = guarded(0, n * sizeof *gate);
        float *x = guarded(1, n * sizeof *x);
        float expected[40];
        for (size_t i = 0; i < n; i++) {
            gate[i] = rng_f32(-width, width);
            x[i] = rng_f32(-3.0f, 3.0f);
        }
        gate[rng_below((uint32_t)n)] = round % 16 == 0 ? NAN : round % 16 == 1 ? INFINITY : 0.0f;
        x[rng_below((uint32_t)n)] = round % 16 == 2 ? NAN : 1.0f;
        FOR_EACH_ISA(isa) {
            float *out = guarded(2, n * sizeof *out);
            kernels[isa].sigmoid_mul(out, gate, x, n);
            for (size_t i = 0; i < n && isa == PE_ISA_SCALAR; i++) {
                const double y = (double)x[i] / (1.0 + exp(-(double)gate[i]));
                expected[i] = out[i];
                CHECK(isnan(y) ? is_nan(out[i]) : fabs((double)out[i] - y) <= 6.0 * EPS * fabs(y),
                      "%g sigmoid(%g): found %g, in double %g", (double)x[i], (double)gate[i],
                      (double)out[i], y);
            }
            CHECK_U64(first_difference(out, expected, n), n);
            memcpy(out, gate, n * sizeof *out);
            kernels[isa].sigmoid_mul(out, out, x, n);
            CHECK_U64(first_difference(out, expected, n), n);
            memcpy(out, x, n * sizeof *out);
            kernels[isa].sigmoid_mul(out, gate, out, n);
            CHECK_U64(first_difference(out, expected, n), n);
        }
        check_guards();
    }
}

/* The exponential by itself: the softmax sum of one score, seen from maximum 0. */
static void exponential(void) {
    init_kernels();
    double worst = 0.0;
    for (int32_t i = 0; i <= 87 * 4096; i++) {
        const float x = -(float)i / 4096.0f;
        float sums[MAX_ISAS];
        FOR_EACH_ISA(isa) {
            const float one = 1.0f;
            const float page[PE_PAGE_TOKENS] = {x};
            static const float values[PE_PAGE_TOKENS * PE_LANES] = {0};
            float acc[PE_LANES] = {0};
            const uint32_t n_valid = 1;
            pe_softmax softmax = {.max = 0.0f, .sum = 0.0f};
            kernels[isa].attend(&softmax, acc, &one, &n_valid, 1, page, values, 1, PE_LANES, 1.0f,
                                0.0f);
            sums[isa] = softmax.sum;
            CHECK_U64(first_difference(&sums[isa], &sums[PE_ISA_SCALAR], 1), 1);
        }
        worst = fmax(worst, fabs((double)sums[PE_ISA_SCALAR] / exp((double)x) - 1.0));
    }
    CHECK(worst <= 2.0 * 0x1p-23, "relative error up to %g", worst);
}

int main(void) {
    static const test_case tests[] = {
        TEST(attend_f32),         TEST(attend_f16), TEST(attend_q8_0), TEST(attend_q4_0),
        TEST(attend_not_numbers), TEST(rms_norm),   TEST(silu_mul),    TEST(gates),
        TEST(exponential),        TEST(turning),    TEST(sigmoid_mul), TEST(layer_norm),
        TEST(gelu_erf),
    };
    return run_tests(tests, PE_LEN(tests));
}
