#include "pe_strip.h"

/* Neighbouring fields whose items have one size, up to the byte where they end. */
typedef struct run {
    uint8_t end;
    uint8_t item_bytes;
} run;

#define MAX_RUNS 3

#define ENDS(type, field) offsetof(type, field) + sizeof(((type *)0)->field)

static const run RUNS[PE_DTYPE_END][MAX_RUNS] = {
    [PE_DTYPE_Q4_0] = {{2, 2}, {sizeof(pe_block_q4_0), 4}},
    [PE_DTYPE_Q4_1] = {{4, 2}, {sizeof(pe_block_q4_1), 4}},
    [PE_DTYPE_Q5_0] = {{2, 2}, {sizeof(pe_block_q5_0), 4}},
    [PE_DTYPE_Q5_1] = {{4, 2}, {sizeof(pe_block_q5_1), 4}},
    [PE_DTYPE_Q8_0] = {{2, 2}, {sizeof(pe_block_q8_0), 4}},
    [PE_DTYPE_Q2_K] = {{ENDS(pe_block_q2_k, q), 4}, {sizeof(pe_block_q2_k), 2}},
    [PE_DTYPE_Q3_K] = {{ENDS(pe_block_q3_k, scale), 4}, {sizeof(pe_block_q3_k), 2}},
    [PE_DTYPE_Q4_K] = {{4, 2}, {sizeof(pe_block_q4_k), 4}},
    [PE_DTYPE_Q5_K] = {{4, 2}, {sizeof(pe_block_q5_k), 4}},
    [PE_DTYPE_Q6_K] = {{ENDS(pe_block_q6_k, scale), 4}, {sizeof(pe_block_q6_k), 2}},
    [PE_DTYPE_IQ4_NL] = {{2, 2}, {sizeof(pe_block_iq4_nl), 4}},
    [PE_DTYPE_IQ4_XS] = {{4, 2}, {sizeof(pe_block_iq4_xs), 4}},
    [PE_DTYPE_MXFP4] = {{1, 1}, {sizeof(pe_block_mxfp4), 4}},
};

uint64_t pe_strip_bytes(uint64_t n_rows, uint64_t row_bytes) {
    return pe_ceil_div(n_rows, PE_STRIP_ROWS) * PE_STRIP_ROWS * row_bytes;
}

/* n_items items of each row, from at on. A constant size makes the copies single moves. */
static inline __attribute__((always_inline)) void
pack_run(uint8_t *out, const uint8_t *const *rows, size_t at, size_t end, size_t item_bytes) {
    for (; at < end; at += item_bytes) {
        for (size_t r = 0; r < PE_STRIP_ROWS; r++) {
            memcpy(out + PE_STRIP_ROWS * at + item_bytes * r, rows[r] + at, item_bytes);
        }
    }
}

static void pack_strip(uint8_t *out, pe_dtype dtype, const uint8_t **rows, size_t n_blocks) {
    const size_t block_bytes = pe_dtype_find(dtype)->info.block_bytes;
    for (size_t b = 0; b < n_blocks; b++, out += PE_STRIP_ROWS * block_bytes) {
        size_t at = 0;
        for (const run *i = RUNS[dtype]; i < RUNS[dtype] + MAX_RUNS && i->end != 0; i++) {
            switch (i->item_bytes) {
            case 1: pack_run(out, rows, at, i->end, 1); break;
            case 2: pack_run(out, rows, at, i->end, 2); break;
            default: pack_run(out, rows, at, i->end, 4); break;
            }
            at = i->end;
        }
        for (size_t r = 0; r < PE_STRIP_ROWS; r++) {
            rows[r] += block_bytes;
        }
    }
}

void pe_strip_pack(void *out, pe_dtype dtype, const void *rows, uint64_t n_rows,
                   uint64_t row_bytes) {
    const size_t n_blocks = row_bytes / pe_dtype_find(dtype)->info.block_bytes;
    uint8_t *strip = out;
    for (uint64_t first = 0; first < n_rows; first += PE_STRIP_ROWS) {
        const uint8_t *row[PE_STRIP_ROWS];
        for (uint64_t r = 0; r < PE_STRIP_ROWS; r++) {
            row[r] = (const uint8_t *)rows + PE_MIN(first + r, n_rows - 1) * row_bytes;
        }
        pack_strip(strip, dtype, row, n_blocks);
        strip += PE_STRIP_ROWS * row_bytes;
    }
}

void pe_strip_read_block(void *out_block, pe_dtype dtype, const void *strip, size_t i_block,
                         size_t row) {
    const size_t block_bytes = pe_dtype_find(dtype)->info.block_bytes;
    const uint8_t *block = (const uint8_t *)strip + i_block * PE_STRIP_ROWS * block_bytes;
    uint8_t *out = out_block;
    size_t at = 0;
    for (const run *i = RUNS[dtype]; i < RUNS[dtype] + MAX_RUNS && i->end != 0; i++) {
        for (; at < i->end; at += i->item_bytes) {
            memcpy(out + at, block + PE_STRIP_ROWS * at + i->item_bytes * row, i->item_bytes);
        }
    }
}
