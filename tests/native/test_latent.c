/* What latent attention is made of: products of heads against pe_matmul's, and attention over
 * pages whose values are their keys against the same values stored beside them. */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "pe_attend.h"
#include "pe_heads.h"
#include "pe_mem.h"
#include "pe_quant.h"

#define N_HEADS 5
#define N_TOKENS 9
#define N_ROWS 40
#define N_COLS 320  // more than a chunk
#define STRIDE 352

static pe_ops make_ops(uint32_t n_threads) {
    pe_ops ops = {.pool = NULL};
    pe_kernels_init(&ops.kernels, PE_ISA_SCALAR);
    CHECK_OK(pe_pool_new(&ops.pool, n_threads, err));
    return ops;
}

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        x[i] = rng_f32(-1.0f, 1.0f);
    }
}

/* ---- products --------------------------------------------------------- */

static float in[N_TOKENS * N_HEADS * STRIDE];
static float out[N_TOKENS * N_HEADS * STRIDE];
static pe_act_block q8[N_TOKENS * N_HEADS * N_COLS / PE_BLOCK];
static float floats[N_HEADS * N_ROWS * N_COLS];
static uint8_t blocks[sizeof floats];

/* Random matrices, one a head. */
static pe_weight make_weight(pe_dtype dtype) {
    const pe_dtype_traits *traits = pe_dtype_find(dtype);
    const pe_dtype_info *info = &traits->info;
    fill(floats, PE_LEN(floats));
    memcpy(blocks, floats, sizeof floats);
    if (dtype != PE_DTYPE_F32) {
        for (size_t b = 0; b < PE_LEN(floats) / PE_BLOCK; b++) {
            traits->pack_block(blocks + b * info->block_bytes, floats + b * PE_BLOCK);
        }
    }
    return (pe_weight){.data = blocks,
                       .n_rows = N_ROWS,
                       .n_cols = N_COLS,
                       .n_stacked = N_HEADS,
                       .row_bytes = N_COLS / info->block_weights * info->block_bytes,
                       .dtype = dtype};
}

static void check_rows(const pe_ops *ops, const pe_ops *alone_ops, const pe_weight *weight,
                       uint64_t first, uint64_t n) {
    const pe_heads to = {.data = out, .stride = STRIDE - 32};
    const pe_heads from = {.data = in, .stride = STRIDE};
    pe_act_block column_q8[N_COLS / PE_BLOCK];
    pe_heads_matmul(ops, &to, weight, first, n, &from, q8, N_TOKENS);
    for (size_t i = 0; i < (size_t)N_TOKENS * N_HEADS; i++) {
        float expected[N_ROWS];
        pe_weight one = *weight;
        one.data =
            (const uint8_t *)weight->data + (i % N_HEADS * N_ROWS + first) * weight->row_bytes;
        one.n_rows = n;
        const pe_product alone = {.out = expected, .out_stride = n, .weight = &one};
        pe_acts acts = {.f32 = in + i * STRIDE, .q8 = column_q8, .n_cols = 1, .n_k = N_COLS};
        pe_matmul(alone_ops, &alone, 1, &acts);
        CHECK_U64(first_difference(out + i * to.stride, expected, n), n);
    }
}

static void products(void) {
    static const pe_dtype dtypes[] = {PE_DTYPE_F32, PE_DTYPE_Q8_0, PE_DTYPE_Q4_0};
    pe_ops alone = make_ops(1);
    for (uint32_t n_threads = 1; n_threads < 4; n_threads += 2) {
        pe_ops ops = make_ops(n_threads);
        for (size_t t = 0; t < PE_LEN(dtypes); t++) {
            const pe_weight weight = make_weight(dtypes[t]);
            fill(in, PE_LEN(in));
            check_rows(&ops, &alone, &weight, 0, N_ROWS);
            check_rows(&ops, &alone, &weight, 7, N_ROWS - 7);
        }
        pe_pool_free(ops.pool);
    }
    pe_pool_free(alone.pool);
}

static void transposed_products(void) {
    static const pe_dtype dtypes[] = {PE_DTYPE_F32, PE_DTYPE_Q8_0, PE_DTYPE_Q4_0};
    const uint64_t n = N_ROWS - 3;
    pe_ops ops = make_ops(3);
    for (size_t t = 0; t < PE_LEN(dtypes); t++) {
        const pe_weight weight = make_weight(dtypes[t]);
        const pe_heads to = {.data = out, .stride = STRIDE};
        const pe_heads from = {.data = in, .stride = STRIDE};
        fill(in, PE_LEN(in));
        pe_heads_matmul_transposed(&ops, &to, &weight, pe_quant_unpack, n, &from, N_TOKENS);
        for (size_t i = 0; i < (size_t)N_TOKENS * N_HEADS; i++) {
            float expected[N_COLS] = {0};
            for (size_t r = 0; r < n; r++) {
                float row[N_COLS];
                pe_quant_unpack(row, weight.dtype,
                                blocks + (i % N_HEADS * N_ROWS + r) * weight.row_bytes, N_COLS);
                for (size_t c = 0; c < N_COLS; c++) {
                    expected[c] = expected[c] + in[i * STRIDE + r] * row[c];
                }
            }
            CHECK_U64(first_difference(out + i * STRIDE, expected, N_COLS), N_COLS);
        }
    }
    pe_pool_free(ops.pool);
}

/* ---- attention -------------------------------------------------------- */

#define N_POSITIONS 75
#define D_K 96
#define N_QUERY_HEADS 20

static float q[N_POSITIONS * N_QUERY_HEADS * D_K];
static float keys[N_POSITIONS * D_K];
static float mixed[N_POSITIONS * N_QUERY_HEADS * D_K];

/* Stores keys, and values that are their last d_v numbers; all tokens, or the last alone, ask. */
static void attend(float *to, pe_kv_type type, uint32_t d_v, bool are_keys, uint32_t n_asking,
                   uint32_t n_threads) {
    pe_ops ops = make_ops(n_threads);
    pe_kv_pool pool;
    pe_kv_table table = {0};
    const pe_kv_layer layer = {
        .n_kv_heads = 1, .d_k = D_K, .d_v = d_v, .values_are_keys = are_keys};
    const pe_kv_shape shape = {.n_layers = 1, .layers = &layer, .type = type};
    CHECK_OK(pe_kv_pool_init(&pool, &shape, UINT64_MAX, err));
    CHECK_U64(pool.page_bytes,
              pe_page_bytes(type, D_K) + (are_keys ? 0 : pe_page_bytes(type, d_v)));
    CHECK_OK(pe_kv_reserve(&pool, &table, 0, N_POSITIONS, err));
    pe_place places[N_POSITIONS];
    pe_tile tiles[N_POSITIONS];
    for (uint32_t i = 0; i < N_POSITIONS; i++) {
        float k[D_K];
        float v[D_K];
        memcpy(k, keys + (size_t)i * D_K, sizeof k);
        memcpy(v, k + D_K - d_v, d_v * sizeof *v);
        pe_kv_store(&pool, &table, 0, i, k, are_keys ? NULL : v);
        places[i] = (pe_place){.table = &table, .position = i, .end = i + 1};
    }
    const uint64_t n_floats = pe_attend_room_floats(D_K, d_v);
    float *floats_of_threads = pe_mem_zalloc(n_threads * n_floats, sizeof(float));
    const pe_attend_room room = {.floats = floats_of_threads, .n_floats = n_floats, .tiles = tiles};
    const pe_queries queries = {.q = q,
                                .places = places + N_POSITIONS - n_asking,
                                .n_tokens = n_asking,
                                .n_heads = N_QUERY_HEADS,
                                .scale = 0.2f};
    pe_attend(&ops, &pool, 0, to, &queries, &room);
    pe_mem_free(floats_of_threads);
    pe_kv_clear(&pool, &table);
    pe_kv_pool_free(&pool);
    pe_pool_free(ops.pool);
}

/* Keys are rotated in runs of 32: 32 values alone are, too, and blocks are the same. */
static void values_in_keys(void) {
    static float expected[PE_LEN(mixed)];
    fill(q, PE_LEN(q));
    fill(keys, PE_LEN(keys));
    for (pe_kv_type type = PE_KV_F32; type < PE_KV_END; type++) {
        const size_t n = (size_t)N_POSITIONS * N_QUERY_HEADS * 32;
        attend(expected, type, 32, false, N_POSITIONS, 1);
        attend(mixed, type, 32, true, N_POSITIONS, 1);
        CHECK_U64(first_difference(mixed, expected, n), n);
    }
}

/* 64 values alone would be rotated in runs of their own, which is not what keys are. */
static void values_are_turned_back(void) {
    static float expected[PE_LEN(mixed)];
    const size_t n = (size_t)N_POSITIONS * N_QUERY_HEADS * 64;
    attend(expected, PE_KV_F32, 64, true, N_POSITIONS, 1);
    attend(mixed, PE_KV_Q8_0, 64, true, N_POSITIONS, 1);
    // Counted: GCC 12 for Arm crashes on a loop that keeps the largest difference.
    size_t n_close = 0;
    for (size_t i = 0; i < n; i++) {
        n_close += fabs((double)mixed[i] - (double)expected[i]) < 0.02 ? 1 : 0;
    }
    CHECK_U64(n_close, n);
}

/* One token asks: its heads, all of one KV head, are dealt to the threads. */
static void heads_are_dealt(void) {
    float expected[N_QUERY_HEADS * 64];
    attend(expected, PE_KV_F16, 64, true, 1, 1);
    for (uint32_t n_threads = 2; n_threads < 6; n_threads += 3) {
        memset(mixed, 0, sizeof expected);
        attend(mixed, PE_KV_F16, 64, true, 1, n_threads);
        CHECK_U64(first_difference(mixed, expected, PE_LEN(expected)), PE_LEN(expected));
    }
}

int main(void) {
    static const test_case tests[] = {
        TEST(products),        TEST(transposed_products),
        TEST(values_in_keys),  TEST(values_are_turned_back),
        TEST(heads_are_dealt),
    };
    return run_tests(tests, PE_LEN(tests));
}
