/* Attention pages, norm and activation: every instruction set has the bits of
 * scalar.c, and scalar.c is within its rounding errors of plain formulas in double.
 */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_kernels.h"

#define EPS 0x1p-24
#define MAX_WIDTH 128
#define MAX_GROUP 5
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
    size_t d_k, d_v, n_group, n_pages;
    size_t n_valid;  // of the last page; the others are full
    float scale;
    float *q;
    void *keys[MAX_PAGES];
    void *values[MAX_PAGES];
} scene;

static float item(const scene *s, const void *data, size_t i) {
    return s->type == PE_KV_F32 ? ((const float *)data)[i]
                                : pe_f16_to_f32(((const pe_f16 *)data)[i]);
}

static void set_item(const scene *s, void *data, size_t i, float x) {
    if (s->type == PE_KV_F32) {
        ((float *)data)[i] = x;
    } else {
        ((pe_f16 *)data)[i] = pe_f16_from_f32(x);
    }
}

static size_t valid_in(const scene *s, size_t page) {
    return page + 1 < s->n_pages ? PE_PAGE_TOKENS : s->n_valid;
}

/* Random queries up to width, keys and values up to 1; NaN where nothing is valid. */
static void make_scene(scene *s, float width) {
    const size_t item_bytes = s->type == PE_KV_F32 ? sizeof(float) : sizeof(pe_f16);
    s->scale = 1.0f / sqrtf((float)s->d_k);
    s->q = guarded(0, s->n_group * s->d_k * sizeof *s->q);
    for (size_t i = 0; i < s->n_group * s->d_k; i++) {
        s->q[i] = rng_f32(-width, width);
    }
    for (unsigned page = 0; page < s->n_pages; page++) {
        s->keys[page] = guarded(1 + 2 * page, s->d_k * PE_PAGE_TOKENS * item_bytes);
        s->values[page] = guarded(2 + 2 * page, s->d_v * PE_PAGE_TOKENS * item_bytes);
        for (size_t j = 0; j < PE_PAGE_TOKENS; j++) {
            const bool valid = j < valid_in(s, page);
            for (size_t d = 0; d < s->d_k; d++) {
                set_item(s, s->keys[page], d * PE_PAGE_TOKENS + j,
                         valid ? rng_f32(-1.0f, 1.0f) : NAN);
            }
            for (size_t d = 0; d < s->d_v; d++) {
                set_item(s, s->values[page], j * s->d_v + d, valid ? rng_f32(-1.0f, 1.0f) : NAN);
            }
        }
    }
}

/* Heads [first, first + n_heads) over all pages. */
static void attend(pe_isa isa, const scene *s, size_t first, size_t n_heads, pe_softmax *softmax,
                   float *acc) {
    for (size_t g = 0; g < n_heads; g++) {
        softmax[g] = (pe_softmax){.max = -INFINITY, .sum = 0.0f};
    }
    memset(acc, 0, n_heads * s->d_v * sizeof *acc);
    for (size_t page = 0; page < s->n_pages; page++) {
        kernels[isa].attend[s->type](softmax, acc, s->q + first * s->d_k, n_heads, s->keys[page],
                                     s->values[page], s->d_k, s->d_v, valid_in(s, page), s->scale);
    }
}

/* Softmax attention of head g in double. A score of d_k products is off by at most
 * (d_k + 2) EPS of their magnitudes, which is the relative error of its p; the exp
 * adds 4 EPS, the running maxima as much per page, the sums one EPS per position. */
static void check_head(const scene *s, size_t g, pe_softmax softmax, const float *acc) {
    double score[MAX_PAGES * PE_PAGE_TOKENS];
    double max = (double)-INFINITY;
    double widest = 0.0;
    const size_t n = (s->n_pages - 1) * PE_PAGE_TOKENS + s->n_valid;
    for (size_t i = 0; i < n; i++) {
        const void *keys = s->keys[i / PE_PAGE_TOKENS];
        double magnitude = 0.0;
        score[i] = 0.0;
        for (size_t d = 0; d < s->d_k; d++) {
            const double k = (double)item(s, keys, d * PE_PAGE_TOKENS + i % PE_PAGE_TOKENS);
            score[i] += (double)s->q[g * s->d_k + d] * k * (double)s->scale;
            magnitude += fabs((double)s->q[g * s->d_k + d] * k * (double)s->scale);
        }
        max = fmax(max, score[i]);
        widest = fmax(widest, magnitude);
    }
    const double relative =
        2.0 * ((double)s->d_k + 4.0) * EPS * widest + (2.0 * (double)n + 40.0) * EPS;
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += exp(score[i] - max);
    }
    for (size_t d = 0; d < s->d_v; d++) {
        double mix = 0.0;
        double magnitude = 0.0;
        for (size_t i = 0; i < n; i++) {
            const double v =
                (double)item(s, s->values[i / PE_PAGE_TOKENS], i % PE_PAGE_TOKENS * s->d_v + d);
            mix += exp(score[i] - max) * v / sum;
            magnitude += exp(score[i] - max) * fabs(v) / sum;
        }
        // e^-87 stands for everything below it.
        CHECK(fabs((double)(acc[d] / softmax.sum) - mix) <= relative * magnitude + 0x1p-118,
              "d_k %zu d_v %zu n %zu head %zu dim %zu: found %.9g, in double %.9g", s->d_k, s->d_v,
              n, g, d, (double)(acc[d] / softmax.sum), mix);
    }
    CHECK(fabs((double)softmax.max - max) <= ((double)s->d_k + 2.0) * EPS * widest,
          "largest score: found %.9g, in double %.9g", (double)softmax.max, max);
}

static void check_scene(const scene *s) {
    pe_softmax expected[MAX_GROUP];
    float expected_acc[MAX_GROUP * MAX_WIDTH];
    attend(PE_ISA_SCALAR, s, 0, s->n_group, expected, expected_acc);
    for (size_t g = 0; g < s->n_group; g++) {
        check_head(s, g, expected[g], expected_acc + g * s->d_v);
    }
    FOR_EACH_ISA(isa) {
        pe_softmax softmax[MAX_GROUP];
        float *acc = guarded(7, s->n_group * s->d_v * sizeof *acc);
        attend(isa, s, 0, s->n_group, softmax, acc);
        CHECK(memcmp(softmax, expected, s->n_group * sizeof *softmax) == 0 &&
                  memcmp(acc, expected_acc, s->n_group * s->d_v * sizeof *acc) == 0,
              "isa %d d_k %zu d_v %zu group %zu valid %zu pages %zu", (int)isa, s->d_k, s->d_v,
              s->n_group, s->n_valid, s->n_pages);
        for (size_t g = 0; g < s->n_group; g++) {  // alone as in the group
            acc = guarded(7, s->d_v * sizeof *acc);
            attend(isa, s, g, 1, softmax, acc);
            CHECK(memcmp(softmax, &expected[g], sizeof *softmax) == 0 &&
                      memcmp(acc, expected_acc + g * s->d_v, s->d_v * sizeof *acc) == 0,
                  "isa %d head %zu of %zu alone", (int)isa, g, s->n_group);
        }
    }
    check_guards();
}

static const size_t WIDTHS[] = {1, 3, 8, 20, 32, 40, 64, 80, 128};

static void attend_pages(pe_kv_type type) {
    init_kernels();
    for (size_t n_valid = 1; n_valid <= PE_PAGE_TOKENS; n_valid++) {
        for (size_t w = 0; w < PE_LEN(WIDTHS); w++) {
            for (size_t n_group = 1; n_group <= MAX_GROUP; n_group++) {
                scene s = {.type = type,
                           .d_k = WIDTHS[w],
                           .d_v = WIDTHS[(w + n_valid) % PE_LEN(WIDTHS)],
                           .n_group = n_group,
                           .n_pages = 1 + (n_valid + n_group) % MAX_PAGES,
                           .n_valid = n_valid};
                // Widths where the softmax is flat, usual, and a single one.
                make_scene(&s, n_group == 1 ? 1000.0f : n_group == 2 ? 0.01f : 3.0f);
                check_scene(&s);
            }
        }
    }
}

static void attend_f32(void) {
    attend_pages(PE_KV_F32);
}
static void attend_f16(void) {
    attend_pages(PE_KV_F16);
}

/* What is not a number shows up in what reads it, and nowhere else. */
static void attend_not_numbers(void) {
    init_kernels();
    for (uint32_t round = 0; round < 300; round++) {
        scene s = {.type = round % 2 == 0 ? PE_KV_F32 : PE_KV_F16,
                   .d_k = WIDTHS[rng_below(PE_LEN(WIDTHS))],
                   .d_v = WIDTHS[rng_below(PE_LEN(WIDTHS))],
                   .n_group = 3,
                   .n_pages = 2,
                   .n_valid = 1 + rng_below(PE_PAGE_TOKENS)};
        make_scene(&s, 1.0f);
        const size_t page = rng_below(2);
        const size_t j = rng_below((uint32_t)valid_in(&s, page));
        const size_t dim = rng_below((uint32_t)s.d_v);
        const uint32_t what = round / 2 % 3;
        if (what == 0) {
            s.q[s.d_k + rng_below((uint32_t)s.d_k)] = NAN;  // head 1
        } else if (what == 1) {
            set_item(&s, s.keys[page], rng_below((uint32_t)s.d_k) * PE_PAGE_TOKENS + j, NAN);
        } else {
            set_item(&s, s.values[page], j * s.d_v + dim, NAN);
        }
        pe_softmax expected[MAX_GROUP];
        float expected_acc[MAX_GROUP * MAX_WIDTH];
        FOR_EACH_ISA(isa) {
            pe_softmax softmax[MAX_GROUP];
            float acc[MAX_GROUP * MAX_WIDTH];
            attend(isa, &s, 0, s.n_group, softmax, acc);
            for (size_t i = 0; i < s.n_group * s.d_v; i++) {
                const bool nan = what == 0 ? i / s.d_v == 1 : what == 1 ? true : i % s.d_v == dim;
                CHECK(is_nan(acc[i] / softmax[i / s.d_v].sum) == nan, "case %u item %zu: %g", what,
                      i, (double)acc[i]);
            }
            if (isa == PE_ISA_SCALAR) {
                memcpy(expected, softmax, sizeof expected);
                memcpy(expected_acc, acc, s.n_group * s.d_v * sizeof *acc);
            }
            CHECK_U64(first_difference(acc, expected_acc, s.n_group * s.d_v), s.n_group * s.d_v);
            CHECK_U64(first_difference(&softmax->max, &expected->max, 2 * s.n_group),
                      2 * s.n_group);
        }
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

/* The exponential by itself: the softmax sum of one score, seen from maximum 0. */
static void exponential(void) {
    init_kernels();
    double worst = 0.0;
    for (int32_t i = 0; i <= 87 * 4096; i++) {
        const float x = -(float)i / 4096.0f;
        float sums[MAX_ISAS];
        FOR_EACH_ISA(isa) {
            const float one = 1.0f;
            float page[PE_PAGE_TOKENS] = {x};
            float acc = 0.0f;
            pe_softmax softmax = {.max = 0.0f, .sum = 0.0f};
            kernels[isa].attend[PE_KV_F32](&softmax, &acc, &one, 1, page, page, 1, 1, 1, 1.0f);
            sums[isa] = softmax.sum;
            CHECK_U64(first_difference(&sums[isa], &sums[PE_ISA_SCALAR], 1), 1);
        }
        worst = fmax(worst, fabs((double)sums[PE_ISA_SCALAR] / exp((double)x) - 1.0));
    }
    CHECK(worst <= 2.0 * 0x1p-23, "relative error up to %g", worst);
}

int main(void) {
    static const test_case tests[] = {
        TEST(attend_f32), TEST(attend_f16), TEST(attend_not_numbers),
        TEST(rms_norm),   TEST(silu_mul),   TEST(exponential),
    };
    return run_tests(tests, PE_LEN(tests));
}
