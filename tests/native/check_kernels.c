/* Matrix products and activation blocks: every instruction set has the bits of
 * scalar.c, and scalar.c is within its rounding errors of a computation in double
 * that shares no code with it.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "pe_kernels.h"

/* One rounding of a float. */
#define EPS 0x1p-24

#define MAX_ROWS 65
#define MAX_COLS 300

static pe_kernels kernels[MAX_ISAS];  // by pe_isa

static void init_kernels(void) {
    FOR_EACH_ISA(isa) {
        pe_kernels_init(&kernels[isa], isa);
        CHECK_U64(kernels[isa].isa, isa);
    }
}

/* ---- operands --------------------------------------------------------- */

typedef enum fill {
    RANDOM,
    HIGH,         // the largest weights and activations
    LOW,          // the most negative
    ALTERNATING,  // both in turn
    ZERO_SCALE,   // zero weights, or blocks of scale 0 whose integers are not
    TINY,         // subnormal weights or scales
    NAN_ACT,      // one activation is NaN
    INF_ACT,      // one activation is infinite
    NAN_WEIGHT,   // one weight or scale is NaN
    INF_WEIGHT,
    N_FILLS
} fill;

typedef struct operands {
    pe_dtype dtype;
    fill kind;
    size_t n_rows, n_cols, n_k;
    size_t row_bytes, act_bytes;  // with gaps
    size_t hit_row, hit_col;      // where NAN_ and INF_ strike
    uint8_t *weights;
    uint8_t *acts;
} operands;

static bool is_q8(pe_dtype dtype) {
    return pe_dtype_find(dtype)->acts == PE_ACTS_Q8;
}

static float pick(fill kind, size_t i, float extreme) {
    switch (kind) {
    case HIGH: return extreme;
    case LOW: return -extreme;
    case ALTERNATING: return i % 2 == 0 ? extreme : -extreme;
    default: return rng_f32(-1.0f, 1.0f);
    }
}

static void fill_float_row(const operands *o, uint8_t *row) {
    for (size_t i = 0; i < o->n_k; i++) {
        float x = pick(o->kind, i, 60000.0f);
        x = o->kind == ZERO_SCALE ? 0.0f : o->kind == TINY ? x * 0x1p-15f : x;
        if (o->dtype == PE_DTYPE_F32) {
            x = o->kind == TINY ? x * 0x1p-120f : x;
            memcpy(row + 4 * i, &x, sizeof x);
        } else {
            x = o->kind == TINY && o->dtype == PE_DTYPE_BF16 ? x * 0x1p-115f : x;
            const uint16_t half =
                o->dtype == PE_DTYPE_F16 ? pe_f16_from_f32(x) : pe_bf16_from_f32(x);
            memcpy(row + 2 * i, &half, sizeof half);
        }
    }
}

static pe_f16 pick_scale(fill kind) {
    switch (kind) {
    case HIGH:
    case LOW:
    case ALTERNATING: return 0x7bff;  // 65504
    case ZERO_SCALE: return 0;
    case TINY: return (pe_f16)(1 + rng_below(3));
    default: return pe_f16_from_f32(rng_f32(-0.1f, 0.1f));
    }
}

/* Where a block keeps its fp16 scales. */
static size_t scale_fields(size_t *at, pe_dtype dtype) {
    const size_t n_bytes = pe_dtype_find(dtype)->info.block_bytes;
    switch (dtype) {
    case PE_DTYPE_Q4_1:
    case PE_DTYPE_Q5_1:
    case PE_DTYPE_Q4_K:
    case PE_DTYPE_Q5_K: at[0] = 0, at[1] = 2; return 2;
    case PE_DTYPE_Q2_K: at[0] = n_bytes - 4, at[1] = n_bytes - 2; return 2;
    case PE_DTYPE_Q3_K:
    case PE_DTYPE_Q6_K: at[0] = n_bytes - 2; return 1;
    case PE_DTYPE_MXFP4: return 0;
    default: at[0] = 0; return 1;
    }
}

/* Random bytes, or extreme integers and sub-scales; every byte pattern is a valid block. */
static void fill_block_row(const operands *o, uint8_t *row) {
    const pe_dtype_info info = pe_dtype_find(o->dtype)->info;
    for (size_t b = 0; b < o->n_k / info.block_weights; b++, row += info.block_bytes) {
        const uint8_t low = o->dtype == PE_DTYPE_Q8_0 ? 0x80 : 0;
        const uint8_t high = o->dtype == PE_DTYPE_Q8_0 ? 0x7f : 0xff;
        for (size_t i = 0; i < info.block_bytes; i++) {
            row[i] = o->kind == HIGH          ? high
                     : o->kind == LOW         ? low
                     : o->kind == ALTERNATING ? (i % 2 == 0 ? high : low)
                                              : (uint8_t)rng_below(256);
        }
        size_t at[2];
        const size_t n_fields = scale_fields(at, o->dtype);
        for (size_t i = 0; i < n_fields; i++) {
            const pe_f16 d = pick_scale(o->kind);
            memcpy(row + at[i], &d, sizeof d);
        }
        if (o->dtype == PE_DTYPE_MXFP4) {
            row[0] = o->kind == ZERO_SCALE || o->kind == TINY ? (uint8_t)rng_below(4)
                     : o->kind == RANDOM                      ? (uint8_t)(100 + rng_below(40))
                                                              : 150;
        }
        if (o->dtype == PE_DTYPE_Q6_K && (o->kind == HIGH || o->kind == LOW)) {
            memset(row + offsetof(pe_block_q6_k, scale), o->kind == HIGH ? 127 : -128, 16);
        }
    }
}

static void strike_weight(const operands *o, uint8_t *row) {
    const uint16_t half = o->kind == NAN_WEIGHT ? 0x7e00 : 0x7c00;
    const uint32_t bits = o->kind == NAN_WEIGHT ? 0x7fc00000u : 0x7f800000u;
    const pe_dtype_info info = pe_dtype_find(o->dtype)->info;
    const size_t block = rng_below((uint32_t)(o->n_k / info.block_weights)) * info.block_bytes;
    size_t at[2];
    switch (o->dtype) {
    case PE_DTYPE_F32: memcpy(row + block, &bits, sizeof bits); break;
    case PE_DTYPE_BF16: memcpy(row + block, (const uint8_t *)&bits + 2, 2); break;
    case PE_DTYPE_F16: memcpy(row + block, &half, sizeof half); break;
    case PE_DTYPE_MXFP4: row[block] = 255; break;  // NaN in OCP's terms, 2^127 in ggml's
    default:
        memcpy(row + block + at[rng_below((uint32_t)scale_fields(at, o->dtype))], &half,
               sizeof half);
        break;
    }
}

static void fill_acts(const operands *o, uint8_t *column, bool hit) {
    const uint32_t at = rng_below((uint32_t)o->n_k);
    if (!is_q8(o->dtype)) {
        float *x = (float *)(void *)column;
        for (size_t i = 0; i < o->n_k; i++) {
            x[i] = pick(o->kind, i / 2, 1e30f);
        }
        x[at] = !hit ? x[at] : o->kind == NAN_ACT ? NAN : INFINITY;
        return;
    }
    pe_act_block *blocks = (pe_act_block *)(void *)column;
    for (size_t b = 0; b < o->n_k / PE_BLOCK; b++) {
        blocks[b] = (pe_act_block){.d = rng_f32(0.0f, 0.1f)};
        for (size_t i = 0; i < PE_BLOCK; i++) {
            blocks[b].q[i] = (int8_t)(int)(o->kind == RANDOM || o->kind > ALTERNATING
                                               ? (int)rng_below(255) - 127
                                               : (int)pick(o->kind, i / 2, 127.0f));
            blocks[b].half[i / 16] += (float)blocks[b].q[i];
            blocks[b].sum += (float)blocks[b].q[i];
        }
    }
    if (hit) {  // as quantize_acts writes it
        blocks[at / PE_BLOCK] = (pe_act_block){.d = NAN};
    }
}

static void make_operands(operands *o, pe_dtype dtype, fill kind, size_t n_rows, size_t n_cols,
                          size_t n_k) {
    const pe_dtype_info info = pe_dtype_find(dtype)->info;
    const size_t row = n_k / info.block_weights * info.block_bytes;
    const size_t act = is_q8(dtype) ? n_k / PE_BLOCK * sizeof(pe_act_block) : n_k * sizeof(float);
    *o = (operands){.dtype = dtype, .kind = kind, .n_rows = n_rows, .n_cols = n_cols, .n_k = n_k};
    o->row_bytes = row + info.block_bytes * rng_below(2);
    o->act_bytes = act + 8 * rng_below(2);
    o->hit_row = rng_below((uint32_t)n_rows);
    o->hit_col = rng_below((uint32_t)n_cols);
    o->weights = guarded(0, (n_rows - 1) * o->row_bytes + row);
    o->acts = guarded(1, (n_cols - 1) * o->act_bytes + act);
    for (size_t r = 0; r < n_rows; r++) {
        if (info.block_weights == 1) {
            fill_float_row(o, o->weights + r * o->row_bytes);
        } else {
            fill_block_row(o, o->weights + r * o->row_bytes);
        }
    }
    for (size_t c = 0; c < n_cols; c++) {
        const bool hit = (kind == NAN_ACT || kind == INF_ACT) && c == o->hit_col;
        fill_acts(o, o->acts + c * o->act_bytes, hit);
    }
    if (kind == NAN_WEIGHT || kind == INF_WEIGHT) {
        strike_weight(o, o->weights + o->hit_row * o->row_bytes);
    }
}

/* ---- the independent computation -------------------------------------- */

static double half_value(const uint8_t *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    const int exponent = bits >> 10 & 31;
    const double fraction = bits & 0x3ff;
    const double value = exponent == 31  ? (fraction != 0 ? (double)NAN : (double)INFINITY)
                         : exponent == 0 ? ldexp(fraction, -24)
                                         : ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 != 0 ? -value : value;
}

/* Bit n of a run of bytes. */
static int bit_of(const uint8_t *bytes, size_t n) {
    return bytes[n / 8] >> (n % 8) & 1;
}

/* Weight j of a run of nibble bytes, the first n_low of them low nibbles. */
static int nibble_of(const uint8_t *bytes, size_t j, size_t n_low) {
    return j < n_low ? bytes[j] % 16 : bytes[j - n_low] / 16;
}

/* The 6-bit number j of Q4_K's 12 bytes: 0-7 scales, 8-15 minimums. */
static int six_bits_of(const uint8_t *bytes, size_t j) {
    const size_t u = j % 8;
    const size_t kind = j / 8;  // 0 scale, 1 minimum
    if (u < 4) {
        return bytes[4 * kind + u] % 64;
    }
    const int low = kind == 0 ? bytes[u + 4] % 16 : bytes[u + 4] / 16;
    return low + 16 * (bytes[4 * kind + u - 4] / 64);
}

/* Weight k of a row and its minimum apart, from the formats' bit maps as GGUF's
 * documentation gives them. */
static double weight_at(pe_dtype dtype, const uint8_t *row, size_t k, double *minimum) {
    static const int iq4[] = {PE_IQ4_VALUES};
    static const double e2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6};
    const pe_dtype_info info = pe_dtype_find(dtype)->info;
    const uint8_t *block = row + k / info.block_weights * info.block_bytes;
    const size_t j = k % info.block_weights;
    *minimum = 0.0;
    switch (dtype) {
    case PE_DTYPE_F32: {
        float x;
        memcpy(&x, block, sizeof x);
        return (double)x;
    }
    case PE_DTYPE_BF16: {
        const uint32_t bits = (uint32_t)block[1] << 24 | (uint32_t)block[0] << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        return (double)x;
    }
    case PE_DTYPE_F16: return half_value(block);
    case PE_DTYPE_Q8_0: return half_value(block) * (int8_t)block[2 + j];
    case PE_DTYPE_Q4_0: return half_value(block) * (nibble_of(block + 2, j, 16) - 8);
    case PE_DTYPE_Q4_1:
        *minimum = half_value(block + 2);
        return half_value(block) * nibble_of(block + 4, j, 16);
    case PE_DTYPE_Q5_0:
        return half_value(block) * (nibble_of(block + 6, j, 16) + 16 * bit_of(block + 2, j) - 16);
    case PE_DTYPE_Q5_1:
        *minimum = half_value(block + 2);
        return half_value(block) * (nibble_of(block + 8, j, 16) + 16 * bit_of(block + 4, j));
    case PE_DTYPE_IQ4_NL: return half_value(block) * iq4[nibble_of(block + 2, j, 16)];
    case PE_DTYPE_MXFP4: return ldexp(e2m1[nibble_of(block + 1, j, 16)], block[0] - 127);
    case PE_DTYPE_Q2_K:
        *minimum = -half_value(block + 82) * (block[j / 16] / 16);
        return half_value(block + 80) * (block[j / 16] % 16) *
               (block[16 + j / 128 * 32 + j % 32] >> (j / 32 % 4 * 2) & 3);
    case PE_DTYPE_Q3_K: {
        const uint8_t *six = block + 96;
        const size_t i = j / 16;
        const int scale =
            (i < 8 ? six[i] % 16 : six[i - 8] / 16) + 16 * (six[8 + i % 4] >> (i / 4 * 2) & 3) - 32;
        const int low = block[32 + j / 128 * 32 + j % 32] >> (j / 32 % 4 * 2) & 3;
        const int high = block[j % 32] >> (j / 32) & 1;
        return half_value(block + 108) * scale * (low + (high != 0 ? 0 : -4));
    }
    case PE_DTYPE_Q4_K:
        *minimum = -half_value(block + 2) * six_bits_of(block + 4, 8 + j / 32);
        return half_value(block) * six_bits_of(block + 4, j / 32) *
               nibble_of(block + 16 + j / 64 * 32, j % 64, 32);
    case PE_DTYPE_Q5_K:
        *minimum = -half_value(block + 2) * six_bits_of(block + 4, 8 + j / 32);
        return half_value(block) * six_bits_of(block + 4, j / 32) *
               (nibble_of(block + 48 + j / 64 * 32, j % 64, 32) +
                16 * (block[16 + j % 32] >> (j / 32) & 1));
    case PE_DTYPE_IQ4_XS: {
        const size_t u = j / 32;
        const int low = nibble_of(block + 4 + u / 2, u % 2, 1);
        const int high = (block[2] | block[3] << 8) >> (2 * u) & 3;
        return half_value(block) * (low + 16 * high - 32) *
               iq4[nibble_of(block + 8 + 16 * u, j % 32, 16)];
    }
    default: {  // Q6_K
        const size_t in_half = j % 128;
        const uint8_t *low = block + j / 128 * 64 + in_half % 64;
        const uint8_t *high = block + 128 + j / 128 * 32 + in_half % 32;
        const int q = (*low >> in_half / 64 * 4 & 15) | (*high >> in_half / 32 * 2 & 3) << 4;
        return half_value(block + 208) * (int8_t)block[192 + j / 16] * (q - 32);
    }
    }
}

static double act_at(const operands *o, size_t c, size_t k) {
    const void *column = o->acts + c * o->act_bytes;
    if (is_q8(o->dtype)) {
        const pe_act_block *block = (const pe_act_block *)column + k / PE_BLOCK;
        return (double)block->d * block->q[k % PE_BLOCK];
    }
    return (double)((const float *)column)[k];
}

/* Float types: each of n_k / 16 fmas of a lane and 4 additions of lanes round once.
 * Units of 32: s takes at most two products, their addition and two fmas, each of them
 * within the unit's own magnitude, and acc one fma per unit; the integer sums are exact,
 * but their terms may cancel, so magnitudes are added up per weight. */
static void check_value(const operands *o, size_t r, size_t c, float found) {
    if (o->dtype == PE_DTYPE_MXFP4 && (o->kind == NAN_WEIGHT || o->kind == INF_WEIGHT)) {
        return;  // 2^127 leaves the range of the magic number: NaN, like other overflow
    }
    const pe_dtype_info info = pe_dtype_find(o->dtype)->info;
    const uint8_t *row = o->weights + r * o->row_bytes;
    double sum = 0.0;
    double magnitude = 0.0;
    for (size_t k = 0; k < o->n_k; k++) {
        double minimum;
        const double w = weight_at(o->dtype, row, k, &minimum);
        const double x = act_at(o, c, k);
        const double shift = minimum != 0.0 ? minimum * x : 0.0;
        sum += w * x + shift;
        magnitude += fabs(w * x) + fabs(shift);
    }
    if (!isfinite(magnitude)) {
        // Infinities may cancel to NaN; none of them, and no NaN, becomes a number.
        const bool must_be_nan = o->kind == NAN_ACT || o->kind == NAN_WEIGHT;
        CHECK(must_be_nan ? is_nan(found) : !is_finite(found),
              "%s fill %d row %zu column %zu: found %g", info.name, (int)o->kind, r, c,
              (double)found);
        return;
    }
    const double n_steps =
        info.block_weights == 1 ? (double)o->n_k / PE_LANES + 5.0 : (double)o->n_k / PE_BLOCK + 6.0;
    // Products below 2^-126 lose up to half of 2^-149 each, times the block's integers.
    const double bound = n_steps * EPS * magnitude + (double)o->n_k * 0x1p-136;
    if (magnitude > 3.4e38) {
        return;  // partial sums may overflow
    }
    CHECK(fabs((double)found - sum) <= bound,
          "%s fill %d n_k %zu row %zu column %zu: found %.9g, in double %.9g +- %.3g", info.name,
          (int)o->kind, o->n_k, r, c, (double)found, sum, bound);
}

/* ---- matmul ----------------------------------------------------------- */

static void run_kernel(pe_isa isa, const operands *o, float *out, size_t out_stride, size_t row,
                       size_t n_rows, size_t col, size_t n_cols) {
    kernels[isa].matmul[o->dtype](out, out_stride, o->weights + row * o->row_bytes, o->row_bytes,
                                  n_rows, o->acts + col * o->act_bytes, o->act_bytes, n_cols,
                                  o->n_k);
}

static void run_column(pe_isa isa, const operands *o, float *out, size_t col) {
    kernels[isa].matvec[o->dtype](out, o->n_rows, o->weights, o->row_bytes, o->n_rows,
                                  o->acts + col * o->act_bytes, o->act_bytes, 1, o->n_k);
}

/* The kernel for one column gives the bits of the one for several. */
static void check_matvec(pe_isa isa, const operands *o, const float *expected) {
    float *out = guarded(3, o->n_rows * sizeof *out);
    run_column(isa, o, out, 0);
    const size_t same = first_difference(out, expected, o->n_rows);
    CHECK(same == o->n_rows, "matvec %s isa %d fill %d: %zu rows, n_k %zu: row %zu",
          pe_dtype_find(o->dtype)->info.name, (int)isa, (int)o->kind, o->n_rows, o->n_k, same);
}

/* Interleaved weights give the same bits, and go back to what they were. */
static void check_strips(pe_isa isa, const operands *o, const float *expected) {
    const pe_dtype_info info = pe_dtype_find(o->dtype)->info;
    const size_t n_blocks = o->n_k / info.block_weights;
    const size_t row_bytes = n_blocks * info.block_bytes;
    uint8_t *rows = guarded(3, o->n_rows * row_bytes);
    for (size_t r = 0; r < o->n_rows; r++) {
        memcpy(rows + r * row_bytes, o->weights + r * o->row_bytes, row_bytes);
    }
    uint8_t *strips = guarded(4, pe_strip_bytes(o->n_rows, row_bytes));
    pe_strip_pack(strips, o->dtype, rows, o->n_rows, row_bytes);
    for (size_t r = 0; r < o->n_rows && isa == PE_ISA_SCALAR; r++) {
        for (size_t b = 0; b < n_blocks; b++) {
            uint8_t block[256];
            const size_t in_strip = r % PE_STRIP_ROWS;
            pe_strip_read_block(block, o->dtype, strips + (r - in_strip) * row_bytes, b, in_strip);
            CHECK(memcmp(block, rows + r * row_bytes + b * info.block_bytes, info.block_bytes) == 0,
                  "strip of %s: row %zu block %zu", info.name, r, b);
        }
    }
    const size_t out_stride = o->n_rows + 1;
    float *out = guarded(3, ((o->n_cols - 1) * out_stride + o->n_rows) * sizeof *out);
    kernels[isa].matmul_strips[o->dtype](out, out_stride, strips, row_bytes, o->n_rows, o->acts,
                                         o->act_bytes, o->n_cols, o->n_k);
    for (size_t c = 0; c < o->n_cols; c++) {
        const size_t same =
            first_difference(out + c * out_stride, expected + c * o->n_rows, o->n_rows);
        CHECK(same == o->n_rows, "strips %s isa %d fill %d: %zu rows %zu columns n_k %zu: row %zu",
              info.name, (int)isa, (int)o->kind, o->n_rows, o->n_cols, o->n_k, same);
    }
}

/* Each row and column alone gives the bits it gave in the crowd. */
static void check_alone(pe_isa isa, const operands *o, const float *expected) {
    float *alone = guarded(3, o->n_rows * sizeof *alone);
    for (size_t c = 0; c < o->n_cols; c++) {
        run_kernel(isa, o, alone, o->n_rows, 0, o->n_rows, c, 1);
        CHECK_U64(first_difference(alone, expected + c * o->n_rows, o->n_rows), o->n_rows);
    }
    alone = guarded(3, o->n_cols * sizeof *alone);
    for (size_t r = 0; r < o->n_rows; r++) {
        run_kernel(isa, o, alone, 1, r, 1, 0, o->n_cols);
        for (size_t c = 0; c < o->n_cols; c++) {
            CHECK(first_difference(&alone[c], &expected[c * o->n_rows + r], 1) == 1,
                  "row %zu column %zu alone", r, c);
        }
    }
}

static void check_operands(const operands *o) {
    float expected[MAX_ROWS * MAX_COLS];
    const char *name = pe_dtype_find(o->dtype)->info.name;
    FOR_EACH_ISA(isa) {
        const size_t out_stride = o->n_rows + rng_below(3);
        float *out = guarded(2, ((o->n_cols - 1) * out_stride + o->n_rows) * sizeof *out);
        const float gap = untouched();
        run_kernel(isa, o, out, out_stride, 0, o->n_rows, 0, o->n_cols);
        for (size_t c = 0; c < o->n_cols; c++) {
            float *column = out + c * out_stride;
            if (isa == PE_ISA_SCALAR) {
                memcpy(expected + c * o->n_rows, column, o->n_rows * sizeof *out);
                for (size_t r = 0; r < o->n_rows; r++) {
                    check_value(o, r, c, column[r]);
                }
            }
            const size_t same = first_difference(column, expected + c * o->n_rows, o->n_rows);
            CHECK(same == o->n_rows,
                  "%s isa %d fill %d: %zu rows %zu columns n_k %zu: row %zu column %zu: %a, %a",
                  name, (int)isa, (int)o->kind, o->n_rows, o->n_cols, o->n_k, same, c,
                  (double)column[same], (double)expected[c * o->n_rows + same]);
            for (size_t r = o->n_rows; r < out_stride && c + 1 < o->n_cols; r++) {
                CHECK(memcmp(&column[r], &gap, sizeof gap) == 0, "%s: gap %zu written", name, r);
            }
        }
        check_matvec(isa, o, expected);
        if (is_q8(o->dtype) &&
            (isa == PE_ISA_SCALAR || kernels[isa].matmul_strips[o->dtype] !=
                                         kernels[PE_ISA_SCALAR].matmul_strips[o->dtype])) {
            check_strips(isa, o, expected);
        }
        if (o->kind == RANDOM && (o->n_k == 33 || o->n_k == 96 || o->n_k == 512)) {
            check_alone(isa, o, expected);
        }
    }
    check_guards();
}

static void check_shape(pe_dtype dtype, fill kind, size_t n_rows, size_t n_cols, size_t n_k) {
    operands o;
    make_operands(&o, dtype, kind, n_rows, n_cols, n_k);
    check_operands(&o);
}

static void matmul(pe_dtype dtype) {
    static const size_t rows[] = {1, 2, 3, 5, 8, 9, 17};
    static const size_t cols[] = {1, 2, 3, 4, 5, 9};
    static const size_t float_k[] = {1, 7, 15, 16, 17, 31, 33, 100, 512};
    static const size_t block_k[] = {32, 64, 96, 8 * 32, 17 * 32};
    static const size_t super_k[] = {256, 512};
    const size_t unit = pe_dtype_find(dtype)->info.block_weights;
    const size_t *n_k = unit == 1 ? float_k : unit == 32 ? block_k : super_k;
    const size_t n_sizes = unit == 1 ? PE_LEN(float_k) : unit == 32 ? PE_LEN(block_k) : 2;
    for (size_t k = 0; k < n_sizes; k++) {
        for (size_t r = 0; r < PE_LEN(rows); r++) {
            for (size_t c = 0; c < PE_LEN(cols); c++) {
                check_shape(dtype, RANDOM, rows[r], cols[c], n_k[k]);
                // The other fills at the shapes that reach each branch of the tiling.
                const bool corner = (r == 0 || r == 2 || r == 6) && (c == 0 || c == 2 || c == 5);
                for (fill kind = HIGH; corner && kind < N_FILLS; kind++) {
                    check_shape(dtype, kind, rows[r], cols[c], n_k[k]);
                }
            }
        }
    }
    // Shapes that fill whole tiles, panels, column runs and row slices of every level, and
    // leave rests of each.
    check_shape(dtype, RANDOM, 33, 12, unit == 256 ? 512 : 9 * 32);
    check_shape(dtype, RANDOM, 65, 23, unit == 256 ? 256 : 8 * 32);
    check_shape(dtype, RANDOM, 31, 6, unit == 256 ? 768 : 19 * 32);
    check_shape(dtype, RANDOM, 5, 300, unit == 256 ? 256 : 3 * 32);
    check_shape(dtype, RANDOM, 9, 1, 33 * 256);
    check_shape(dtype, HIGH, 9, 2, 33 * 256 + (unit < 256 ? 96 : 0));
}

static void matmul_floats(void) {
    static const pe_dtype dtypes[] = {PE_DTYPE_F32, PE_DTYPE_F16, PE_DTYPE_BF16};
    init_kernels();
    for (size_t i = 0; i < PE_LEN(dtypes); i++) {
        matmul(dtypes[i]);
        // Sums that wait between slices of a row: whole tiles, a rest of columns that is
        // filled up, more rows than share a slice, and an end that is no whole step.
        check_shape(dtypes[i], RANDOM, 65, 23, 1029);
        check_shape(dtypes[i], ALTERNATING, 65, 21, 1029);
        check_shape(dtypes[i], NAN_WEIGHT, 5, 16, 1029);
        check_shape(dtypes[i], INF_ACT, 5, 16, 1029);
    }
}

/* Quantized types whose number has one remainder by three: they share the time evenly. */
static void matmul_third(uint32_t remainder) {
    init_kernels();
    for (uint32_t dtype = 0; dtype < PE_DTYPE_END; dtype++) {
        const pe_dtype_traits *traits = pe_dtype_find(dtype);
        if (traits != NULL && traits->info.can_compute && traits->unpack_unit != NULL &&
            dtype % 3 == remainder) {
            matmul((pe_dtype)dtype);
        }
    }
}

static void matmul_quantized_0(void) {
    matmul_third(0);
}
static void matmul_quantized_1(void) {
    matmul_third(1);
}
static void matmul_quantized_2(void) {
    matmul_third(2);
}

/* ---- activations ------------------------------------------------------ */

static void check_act_block(const pe_act_block *block, const float *x) {
    double max = 0.0;
    bool finite = true;
    int32_t sum[2] = {0, 0};
    for (size_t i = 0; i < PE_BLOCK; i++) {
        finite &= is_finite(x[i]);
        max = fmax(max, fabs((double)x[i]));
        sum[i / 16] += block->q[i];
    }
    CHECK(block->half[0] == (float)sum[0] && block->half[1] == (float)sum[1] &&
              block->sum == (float)(sum[0] + sum[1]),
          "found %g + %g = %g, expected %d and %d", (double)block->half[0], (double)block->half[1],
          (double)block->sum, sum[0], sum[1]);
    if (!finite) {
        CHECK(is_nan(block->d) && sum[0] == 0 && sum[1] == 0 && block->q[0] == 0, "d %g",
              (double)block->d);
        return;
    }
    CHECK(block->d == (float)max / 127.0f, "found %g, max %g", (double)block->d, max);
    for (size_t i = 0; i < PE_BLOCK && max >= 0x1p-119; i++) {
        // Half a step, and two roundings of a number up to 127.
        const double q = (double)x[i] * 127.0 / max;
        CHECK(fabs(q - block->q[i]) <= 0.5 + 127.0 * 3.0 * EPS, "weight %g of %g became %d",
              (double)x[i], max, block->q[i]);
    }
    for (size_t i = 0; i < PE_BLOCK && max < 0x1p-119; i++) {
        CHECK(block->q[i] == 0, "%g became %d", (double)x[i], block->q[i]);
    }
}

static void quantize_acts(void) {
    init_kernels();
    static const float widths[] = {1.0f, 1e-3f, 3.4e38f, 0x1p-119f, 0x1p-120f, 0x1p-140f, 0.0f};
    for (uint32_t round = 0; round < 4000; round++) {
        const size_t n_blocks = 1 + rng_below(5);
        float *x = guarded(0, n_blocks * PE_BLOCK * sizeof *x);
        for (size_t i = 0; i < n_blocks * PE_BLOCK; i++) {
            const float width = widths[round / 16 % PE_LEN(widths)];
            x[i] = round % 3 == 0 ? (i % 2 == 0 ? width : -width) : rng_f32(-width, width);
            // Halves of the step, where rounding to even shows.
            x[i] = round % 3 == 1 ? (i % PE_BLOCK == 0 ? 127.0f : (float)rng_below(254) - 126.5f)
                                  : x[i];
        }
        if (round % 5 == 0) {
            x[rng_below((uint32_t)n_blocks * PE_BLOCK)] = round % 2 == 0 ? NAN : -INFINITY;
        }
        pe_act_block expected[5];
        FOR_EACH_ISA(isa) {
            pe_act_block *out = guarded(1, n_blocks * sizeof *out);
            kernels[isa].quantize_acts(out, x, n_blocks * PE_BLOCK);
            for (size_t b = 0; b < n_blocks; b++) {
                if (isa == PE_ISA_SCALAR) {
                    expected[b] = out[b];
                    check_act_block(&out[b], x + b * PE_BLOCK);
                }
                CHECK(memcmp(&out[b], &expected[b], sizeof *out) == 0, "isa %d block %zu", (int)isa,
                      b);
            }
        }
        check_guards();
    }
}

int main(void) {
    static const test_case tests[] = {
        TEST(matmul_floats),      TEST(matmul_quantized_0), TEST(matmul_quantized_1),
        TEST(matmul_quantized_2), TEST(quantize_acts),
    };
    return run_tests(tests, PE_LEN(tests));
}
