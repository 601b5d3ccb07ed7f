/* KV pages: where numbers land, sharing, copy on write, budget, reference counts. */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_f16.h"
#include "pe_kv.h"
#include "pe_rotate.h"

#define LAYERS 2
#define HEADS 3
#define D_K 5
#define D_V 7

static const pe_kv_layer ALIKE[LAYERS] = {{HEADS, D_K, D_V, false}, {HEADS, D_K, D_V, false}};
static const pe_kv_shape SHAPE = {.n_layers = LAYERS, .layers = ALIKE, .type = PE_KV_F32};

static pe_kv_pool new_pool(uint64_t max_pages) {
    pe_kv_pool pool;
    const uint64_t page = sizeof(float) * PE_PAGE_TOKENS * (D_K + D_V) * HEADS * LAYERS;
    CHECK_OK(pe_kv_pool_init(&pool, &SHAPE, max_pages * page, err));
    CHECK_U64(pool.page_bytes, page);
    return pool;
}

/* A number that tells its place and who wrote it; small, so exact in fp16 too. */
static float mark(uint32_t writer, uint32_t layer, uint64_t position, uint32_t head, uint32_t d) {
    return (float)((writer * 7919 + layer * 541 + (uint32_t)position * 97 + head * 31 + d) % 2039);
}

static void write_at(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t position,
                     uint32_t writer) {
    float k[HEADS * D_K];
    float v[HEADS * D_V];
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < HEADS * D_K; i++) {
            k[i] = mark(writer, layer, position, i / D_K, i % D_K);
        }
        for (uint32_t i = 0; i < HEADS * D_V; i++) {
            v[i] = -mark(writer, layer, position, i / D_V, i % D_V);
        }
        pe_kv_store(pool, table, layer, position, k, v);
    }
}

static float item(const pe_kv_pool *pool, const void *data, size_t i) {
    return pool->type == PE_KV_F32 ? ((const float *)data)[i]
                                   : pe_f16_to_f32(((const pe_f16 *)data)[i]);
}

/* Keys lie dimension by dimension, values position by position. */
static void check_at(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t position,
                     uint32_t writer) {
    const uint64_t page = position / PE_PAGE_TOKENS;
    const size_t slot = position % PE_PAGE_TOKENS;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t head = 0; head < HEADS; head++) {
            const void *keys = pe_kv_keys(pool, table, page, layer, head);
            const void *values = pe_kv_values(pool, table, page, layer, head);
            for (uint32_t d = 0; d < D_V; d++) {
                const float expected = mark(writer, layer, position, head, d);
                CHECK(d >= D_K || item(pool, keys, d * PE_PAGE_TOKENS + slot) == expected,
                      "writer %u position %u key %u", writer, (unsigned)position, d);
                CHECK(item(pool, values, slot * D_V + d) == -expected,
                      "writer %u position %u value %u", writer, (unsigned)position, d);
            }
        }
    }
}

static void layout(void) {
    for (pe_kv_type type = PE_KV_F32; type <= PE_KV_F16; type++) {
        pe_kv_shape shape = SHAPE;
        shape.type = type;
        pe_kv_pool pool;
        pe_kv_table table = {0};
        CHECK_OK(pe_kv_pool_init(&pool, &shape, UINT64_MAX, err));
        CHECK_U64(pool.page_bytes, LAYERS * HEADS * 32 * 12 * (type == PE_KV_F32 ? 4 : 2));
        CHECK_OK(pe_kv_reserve(&pool, &table, 0, 70, err));
        CHECK_U64(table.n_pages, 3);
        CHECK_U64(pool.n_pages, 3);
        for (uint64_t position = 0; position < 70; position++) {
            write_at(&pool, &table, position, 1);
        }
        for (uint64_t position = 0; position < 70; position++) {
            check_at(&pool, &table, position, 1);
        }
        // A fresh page holds zeros behind what was written.
        CHECK(item(&pool, pe_kv_keys(&pool, &table, 2, 0, 0), 6) == 0.0f, "after position 69");
        pe_kv_clear(&pool, &table);
        CHECK_U64(pool.n_pages, 0);
        CHECK_U64(pool.budget.n_bytes_peak, 3 * pool.page_bytes);
        CHECK(table.pages == NULL && table.n_pages == 0 && table.capacity == 0, "not empty");
        pe_kv_pool_free(&pool);
    }
}

/* Quantized pages hold GGUF's blocks of the rotated heads, scales apart. */
static void quantized_layout(void) {
    enum { WIDTH = 80, WIDE = 64 };  // 80: its last block is half full, 16 divides it: no rotation
    for (pe_kv_type type = PE_KV_Q8_0; type <= PE_KV_Q4_0; type++) {
        const pe_kv_layer layer = {2, WIDTH, WIDE, false};
        const pe_kv_shape shape = {.n_layers = 1, .layers = &layer, .type = type};
        const uint32_t dtype = type == PE_KV_Q8_0 ? PE_DTYPE_Q8_0 : PE_DTYPE_Q4_0;
        const size_t n_bytes = type == PE_KV_Q8_0 ? 32 : 16;  // of a block's integers
        pe_kv_pool pool;
        pe_kv_table table = {0};
        CHECK_OK(pe_kv_pool_init(&pool, &shape, UINT64_MAX, err));
        CHECK_U64(pool.page_bytes, 2 * 32 * (3 + 2) * (n_bytes + 2));
        CHECK_OK(pe_kv_reserve(&pool, &table, 0, 40, err));
        for (uint64_t position = 0; position < 40; position++) {
            float k[2 * WIDTH];
            float v[2 * WIDE];
            float expected_k[2][96] = {{0}};
            float expected_v[2][WIDE];
            for (size_t i = 0; i < 2 * WIDTH; i++) {
                k[i] = expected_k[i / WIDTH][i % WIDTH] = rng_f32(-3.0f, 3.0f);
            }
            for (size_t i = 0; i < 2 * WIDE; i++) {
                v[i] = expected_v[i / WIDE][i % WIDE] = rng_f32(-3.0f, 3.0f);
            }
            pe_kv_store(&pool, &table, 0, position, k, v);
            for (uint32_t head = 0; head < 2; head++) {
                pe_rotate(expected_v[head], WIDE, pe_rotate_run(WIDE));
                uint8_t blocks[3 * 34];
                const size_t slot = position % 32;
                const uint8_t *keys = pe_kv_keys(&pool, &table, position / 32, 0, head);
                const uint8_t *values = pe_kv_values(&pool, &table, position / 32, 0, head);
                CHECK_OK(pe_quantize(blocks, dtype, expected_k[head], 96, err));
                for (size_t b = 0; b < 3; b++) {
                    const uint8_t *block = blocks + b * (n_bytes + 2);
                    CHECK(memcmp(keys + (b * 32 + slot) * 2, block, 2) == 0, "key scale");
                    for (size_t i = 0; i < n_bytes; i++) {
                        CHECK_U64(keys[3 * 64 + (b * n_bytes + i) * 32 + slot], block[2 + i]);
                    }
                }
                CHECK_OK(pe_quantize(blocks, dtype, expected_v[head], WIDE, err));
                for (size_t b = 0; b < 2; b++) {
                    const uint8_t *block = blocks + b * (n_bytes + 2);
                    CHECK(memcmp(values + (b * 32 + slot) * 2, block, 2) == 0, "value scale");
                    for (size_t i = 0; i < n_bytes; i++) {
                        CHECK_U64(values[2 * 64 + (slot * 2 + b) * n_bytes + i], block[2 + i]);
                    }
                }
            }
        }
        // What is not a number makes its block NaN.
        float k[2 * WIDTH] = {[40] = NAN};
        float v[2 * WIDE] = {0};
        pe_kv_store(&pool, &table, 0, 0, k, v);
        const pe_f16 *scales = pe_kv_keys(&pool, &table, 0, 0, 0);
        CHECK(!is_nan(pe_f16_to_f32(scales[0])) && is_nan(pe_f16_to_f32(scales[32])), "NaN");
        pe_kv_clear(&pool, &table);
        pe_kv_pool_free(&pool);
    }
}

/* Layers of other heads and widths stand side by side; one without keys and values of its own
 * takes no room. */
static void unlike_layers(void) {
    static const pe_kv_layer layers[] = {{3, 32, 16, false}, {0, 64, 64, false}, {1, 8, 40, false}};
    const pe_kv_shape shape = {.n_layers = 3, .layers = layers, .type = PE_KV_F32};
    pe_kv_pool pool;
    pe_kv_table table = {0};
    CHECK_OK(pe_kv_pool_init(&pool, &shape, UINT64_MAX, err));
    CHECK_U64(pool.page_bytes, sizeof(float) * PE_PAGE_TOKENS * (3 * (32 + 16) + 8 + 40));
    CHECK_OK(pe_kv_reserve(&pool, &table, 0, PE_PAGE_TOKENS, err));
    for (uint32_t layer = 0; layer < 3; layer += 2) {
        float k[3 * 32];
        float v[3 * 16];
        for (size_t i = 0; i < PE_LEN(k); i++) {
            k[i] = (float)(1000 * layer + i);
        }
        for (size_t i = 0; i < PE_LEN(v); i++) {
            v[i] = -(float)(1000 * layer + i);
        }
        for (uint64_t position = 0; position < PE_PAGE_TOKENS; position++) {
            pe_kv_store(&pool, &table, layer, position, k, v);
        }
    }
    for (uint32_t layer = 0; layer < 3; layer += 2) {
        const pe_kv_layer *shape_of = &layers[layer];
        for (uint32_t head = 0; head < shape_of->n_kv_heads; head++) {
            const float *keys = pe_kv_keys(&pool, &table, 0, layer, head);
            const float *values = pe_kv_values(&pool, &table, 0, layer, head);
            const float first = (float)(1000 * layer);
            CHECK(keys[0] == first + (float)(head * shape_of->d_k), "layer %u head %u", layer,
                  head);
            CHECK(values[0] == -first - (float)(head * shape_of->d_v), "layer %u head %u", layer,
                  head);
        }
    }
    pe_kv_clear(&pool, &table);
    pe_kv_pool_free(&pool);
}

/* Twice is not at all; one dimension is spread over its run. */
static void rotation(void) {
    static const size_t widths[] = {32, 64, 96, 128, 80, 5};
    for (size_t w = 0; w < PE_LEN(widths); w++) {
        float x[128];
        float y[128];
        for (size_t i = 0; i < widths[w]; i++) {
            x[i] = y[i] = rng_f32(-1.0f, 1.0f);
        }
        pe_rotate(y, widths[w], pe_rotate_run(widths[w]));
        CHECK((memcmp(x, y, widths[w] * sizeof *x) == 0) == (w >= 4), "width %zu", widths[w]);
        pe_rotate(y, widths[w], pe_rotate_run(widths[w]));
        for (size_t i = 0; i < widths[w]; i++) {
            CHECK(fabs((double)(x[i] - y[i])) < 1e-5, "width %zu", widths[w]);
        }
    }
    float one[64] = {[3] = 8.0f};
    pe_rotate(one, 64, 64);
    for (size_t i = 0; i < 64; i++) {
        // Entry (i, 3) of Sylvester's matrix is negative when i & 3 has an odd count of bits.
        const float expected = i % 4 == 1 || i % 4 == 2 ? -1.0f : 1.0f;
        CHECK(one[i] == expected, "item %zu", i);
    }
}

static void truncation(void) {
    pe_kv_pool pool = new_pool(100);
    pe_kv_table table = {0};
    static const struct {
        uint64_t positions, pages;
    } steps[] = {{320, 10}, {319, 10}, {289, 10}, {288, 9}, {33, 2}, {32, 1}, {1, 1}, {0, 0}};
    CHECK_OK(pe_kv_reserve(&pool, &table, 0, 320, err));
    for (size_t i = 0; i < PE_LEN(steps); i++) {
        pe_kv_truncate(&pool, &table, steps[i].positions);
        CHECK_U64(table.n_pages, steps[i].pages);
        CHECK_U64(pool.n_pages, steps[i].pages);
    }
    pe_kv_truncate(&pool, &table, 1000);  // more than there is
    CHECK_OK(pe_kv_reserve(&pool, &table, 0, 0, err));
    CHECK_U64(table.n_pages, 0);
    CHECK_OK(pe_kv_reserve(&pool, &table, 0, 1, err));
    CHECK_U64(table.n_pages, 1);
    CHECK_OK(pe_kv_reserve(&pool, &table, 5, 20, err));
    CHECK_U64(table.n_pages, 1);
    pe_kv_clear(&pool, &table);
    pe_kv_clear(&pool, &table);
    CHECK_U64(pool.n_pages, 0);
    pe_kv_pool_free(&pool);
    pe_kv_pool_free(&pool);
}

static void copy_on_write(void) {
    pe_kv_pool pool = new_pool(100);
    pe_kv_table a = {0};
    pe_kv_table b = {0};
    CHECK_OK(pe_kv_reserve(&pool, &a, 0, 80, err));
    for (uint64_t position = 0; position < 80; position++) {
        write_at(&pool, &a, position, 1);
    }
    CHECK_OK(pe_kv_share(&b, &a, err));
    CHECK_U64(pool.n_pages, 3);
    CHECK_U64(b.n_pages, 3);
    CHECK(pe_kv_keys(&pool, &b, 1, 1, 2) == pe_kv_keys(&pool, &a, 1, 1, 2), "not shared");
    // b goes its own way from 70 on: only the third page is copied.
    CHECK_OK(pe_kv_reserve(&pool, &b, 70, 75, err));
    CHECK_U64(pool.n_pages, 4);
    CHECK(pe_kv_keys(&pool, &b, 0, 0, 0) == pe_kv_keys(&pool, &a, 0, 0, 0), "page 0 copied");
    CHECK(pe_kv_keys(&pool, &b, 2, 0, 0) != pe_kv_keys(&pool, &a, 2, 0, 0), "page 2 shared");
    for (uint64_t position = 70; position < 75; position++) {
        write_at(&pool, &b, position, 2);
    }
    for (uint64_t position = 0; position < 80; position++) {
        check_at(&pool, &a, position, 1);
        check_at(&pool, &b, position, position >= 70 && position < 75 ? 2 : 1);
    }
    // Now both own their third page: nothing more to copy.
    CHECK_OK(pe_kv_reserve(&pool, &a, 64, 80, err));
    CHECK_OK(pe_kv_reserve(&pool, &b, 64, 80, err));
    CHECK_U64(pool.n_pages, 4);
    // A write across all pages takes them all over.
    CHECK_OK(pe_kv_reserve(&pool, &a, 0, 80, err));
    CHECK_U64(pool.n_pages, 6);
    pe_kv_clear(&pool, &a);
    CHECK_U64(pool.n_pages, 3);
    for (uint64_t position = 0; position < 70; position++) {
        check_at(&pool, &b, position, 1);
    }
    pe_kv_clear(&pool, &b);
    CHECK_U64(pool.n_pages, 0);
    pe_kv_pool_free(&pool);
}

static void budget(void) {
    pe_kv_pool pool = new_pool(4);
    pe_kv_table a = {0};
    pe_kv_table b = {0};
    CHECK_OK(pe_kv_reserve(&pool, &a, 0, 96, err));
    write_at(&pool, &a, 95, 1);
    // One page is left: two are refused, and none is kept.
    CHECK_FAILS(pe_kv_reserve(&pool, &b, 0, 64, err), PE_ERR_NOMEM, "expected to stay within");
    CHECK_U64(b.n_pages, 0);
    CHECK_FAILS(pe_kv_reserve(&pool, &a, 96, 161, err), PE_ERR_NOMEM, "in use and a page of");
    CHECK_U64(a.n_pages, 3);
    CHECK_U64(pool.n_pages, 3);
    check_at(&pool, &a, 95, 1);
    // A copy needs budget too.
    CHECK_OK(pe_kv_reserve(&pool, &a, 96, 128, err));
    CHECK_OK(pe_kv_share(&b, &a, err));
    CHECK_FAILS(pe_kv_reserve(&pool, &b, 95, 96, err), PE_ERR_NOMEM, "KV cache");
    CHECK_U64(b.n_pages, 4);
    check_at(&pool, &b, 95, 1);
    pe_kv_truncate(&pool, &a, 64);  // b still holds those pages
    CHECK_U64(pool.n_pages, 4);
    pe_kv_truncate(&pool, &b, 96);
    CHECK_U64(pool.n_pages, 3);
    CHECK_OK(pe_kv_reserve(&pool, &a, 64, 96, err));
    CHECK_U64(pool.n_pages, 4);
    pe_kv_clear(&pool, &a);
    pe_kv_clear(&pool, &b);
    CHECK_U64(pool.n_pages, 0);
    pe_kv_pool none = new_pool(0);
    CHECK_FAILS(pe_kv_reserve(&none, &a, 0, 1, err), PE_ERR_NOMEM, "within 0 bytes");
    pe_kv_clear(&none, &a);
    pe_kv_pool_free(&none);
    pe_kv_pool_free(&pool);

    const pe_kv_layer wide[] = {{1, D_K, D_V, false}, {UINT32_MAX, UINT32_MAX, D_V, false}};
    const pe_kv_shape huge = {.n_layers = 2, .layers = wide, .type = PE_KV_F32};
    CHECK_FAILS(pe_kv_pool_init(&pool, &huge, UINT64_MAX, err), PE_ERR_ARG, "fits 64 bits");
}

/* Random forks, writes, truncations and releases against a plain copy of everything. */
static void random_timelines(void) {
    enum { N_TABLES = 6, MAX_POSITIONS = 200 };
    pe_kv_pool pool = new_pool(1000);
    pe_kv_table tables[N_TABLES] = {{0}};
    uint32_t writers[N_TABLES][MAX_POSITIONS] = {{0}};
    uint64_t lengths[N_TABLES] = {0};
    for (uint32_t round = 1; round <= 1500; round++) {
        const uint32_t t = rng_below(N_TABLES);
        const uint32_t other = rng_below(N_TABLES);
        const uint32_t action = rng_below(8);
        if (action == 0) {
            pe_kv_clear(&pool, &tables[t]);
            lengths[t] = 0;
        } else if (action == 1 && other != t) {
            pe_kv_clear(&pool, &tables[t]);
            CHECK_OK(pe_kv_share(&tables[t], &tables[other], err));
            lengths[t] = lengths[other];
            memcpy(writers[t], writers[other], sizeof writers[t]);
        } else if (action == 2) {
            lengths[t] = rng_below((uint32_t)lengths[t] + 1);
            pe_kv_truncate(&pool, &tables[t], lengths[t]);
        } else {
            const uint64_t end = lengths[t] + rng_below((uint32_t)(MAX_POSITIONS - lengths[t]) + 1);
            CHECK_OK(pe_kv_reserve(&pool, &tables[t], lengths[t], end, err));
            for (; lengths[t] < end; lengths[t]++) {
                write_at(&pool, &tables[t], lengths[t], round);
                writers[t][lengths[t]] = round;
            }
        }
        for (uint32_t i = 0; i < N_TABLES; i++) {
            CHECK_U64(tables[i].n_pages, (lengths[i] + PE_PAGE_TOKENS - 1) / PE_PAGE_TOKENS);
            for (int probe = 0; probe < 4 && lengths[i] > 0; probe++) {
                const uint32_t position = rng_below((uint32_t)lengths[i]);
                check_at(&pool, &tables[i], position, writers[i][position]);
            }
        }
    }
    for (uint32_t i = 0; i < N_TABLES; i++) {
        pe_kv_clear(&pool, &tables[i]);
    }
    CHECK_U64(pool.n_pages, 0);
    pe_kv_pool_free(&pool);
}

int main(void) {
    static const test_case tests[] = {
        TEST(layout),        TEST(quantized_layout), TEST(rotation),         TEST(truncation),
        TEST(copy_on_write), TEST(budget),           TEST(random_timelines), TEST(unlike_layers),
    };
    return run_tests(tests, PE_LEN(tests));
}
