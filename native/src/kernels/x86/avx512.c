/* Kernels for AVX-512 with VNNI: products of several columns through int8 panels.
 *
 * A run of 32 rows and up to 256 weights of each is unpacked once into a panel, in
 * which four neighbouring weights of one row lie side by side and rows follow each
 * other, so that one vpdpbusd multiplies 16 rows by the same four activations:
 *
 *     q[block][four of k][row][4]   unsigned bytes, the format's offset added
 *     d[block][row], m[block][row]  scales and minimums as floats
 *
 * The tile that multiplies knows no format: only the offset (taken off through the
 * block's sum of activations) and whether there are minimums. A format is the
 * function that fills a panel. Sums are those of pe_kernels.h: exact in int32
 * within a block, then one fused multiply-add per block in block order.
 */
#include "pe_kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

#define ROWS 32       // of a panel: two registers of 16 lanes
#define SLICE 8       // blocks of a panel: 10 KB of it, half of a small L1 cache
#define FOURS 8       // runs of four weights in a block
#define TILE_COLS 12  // 24 sums, 2 weights, 1 activation fit 32 registers
#define MAX_COLS 252  // columns that share an unpacked panel: 32 KB of sums

typedef struct panel {
    uint8_t q[SLICE][FOURS][ROWS][4];
    float d[SLICE][ROWS];
    float m[SLICE][ROWS];
} __attribute__((aligned(64))) panel;

/* ---- formats to panels ------------------------------------------------ */

/* Sixteen rows of eight fours each become eight fours of sixteen rows. v[r] holds
 * rows r and r + 8. Stages: pairs of rows interleaved, pairs of pairs, then
 * 128-bit parts gathered. */
INLINE void transpose_fours(uint8_t (*out)[ROWS][4], size_t first_row, const __m512i *v) {
    __m512i pair[8];
    for (size_t i = 0; i < 4; i++) {
        pair[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        pair[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    // quad[h][f]: rows 4 h .. 4 h + 3 (and + 8), four f in parts 0 and 2, f + 4 in 1 and 3.
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (size_t f = 0; f < 4; f++) {
        __m512i quad[2];
        for (size_t h = 0; h < 2; h++) {
            const __m512i a = pair[4 * h + f / 2];
            const __m512i b = pair[4 * h + 2 + f / 2];
            quad[h] = f % 2 == 0 ? _mm512_unpacklo_epi64(a, b) : _mm512_unpackhi_epi64(a, b);
        }
        _mm512_store_si512(out[f][first_row], _mm512_permutex2var_epi64(quad[0], even, quad[1]));
        _mm512_store_si512(out[f + 4][first_row], _mm512_permutex2var_epi64(quad[0], odd, quad[1]));
    }
}

INLINE size_t block_bytes(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q4_0   ? sizeof(pe_block_q4_0)
           : dtype == PE_DTYPE_Q4_1 ? sizeof(pe_block_q4_1)
                                    : sizeof(pe_block_q8_0);
}

/* Where the integers of a block begin. */
INLINE size_t ints_at(pe_dtype dtype) {
    return dtype == PE_DTYPE_Q4_0   ? offsetof(pe_block_q4_0, q)
           : dtype == PE_DTYPE_Q4_1 ? offsetof(pe_block_q4_1, q)
                                    : offsetof(pe_block_q8_0, q);
}

/* Fills n_blocks of the panel from the rows, each given at its first block. */
INLINE void fill_panel(panel *out, const uint8_t *const *rows, size_t n_blocks, pe_dtype dtype) {
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * block_bytes(dtype);
        for (size_t first = 0; first < ROWS; first += 16) {
            __m512i v[8];
            for (size_t r = 0; r < 8; r++) {
                const uint8_t *low = rows[first + r] + at + ints_at(dtype);
                const uint8_t *high = rows[first + r + 8] + at + ints_at(dtype);
                v[r] =
                    dtype == PE_DTYPE_Q8_0 ? two_byte_runs(low, high) : two_nibble_runs(low, high);
            }
            transpose_fours(out->q[b], first, v);
        }
        pe_f16 d[ROWS];
        pe_f16 m[ROWS];
        for (size_t r = 0; r < ROWS; r++) {
            memcpy(&d[r], rows[r] + at, sizeof d[r]);
            if (dtype == PE_DTYPE_Q4_1) {
                memcpy(&m[r], rows[r] + at + offsetof(pe_block_q4_1, m), sizeof m[r]);
            }
        }
        for (size_t r = 0; r < ROWS; r += 16) {
            _mm512_store_ps(out->d[b] + r,
                            _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(d + r))));
            if (dtype == PE_DTYPE_Q4_1) {
                _mm512_store_ps(out->m[b] + r,
                                _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(m + r))));
            }
        }
    }
}

/* ---- the tile --------------------------------------------------------- */

/* Adds n_blocks of the panel times n_tile_cols columns (a constant) to the sums,
 * [column][ROWS]. */
INLINE void tile(float (*sums)[ROWS], const panel *w, const uint8_t *acts, size_t act_bytes,
                 size_t n_blocks, size_t n_tile_cols, int32_t offset, bool has_min) {
    for (size_t b = 0; b < n_blocks; b++) {
        __m512i isum[TILE_COLS][2];
        const pe_act_block *x[TILE_COLS];
#pragma GCC unroll 12
        for (size_t c = 0; c < n_tile_cols; c++) {
            x[c] = (const pe_act_block *)(acts + c * act_bytes) + b;
            isum[c][0] = isum[c][1] = _mm512_set1_epi32(-offset * x[c]->sum);
        }
#pragma GCC unroll 8
        for (size_t f = 0; f < FOURS; f++) {
            const __m512i w0 = _mm512_load_si512(w->q[b][f][0]);
            const __m512i w1 = _mm512_load_si512(w->q[b][f][16]);
#pragma GCC unroll 12
            for (size_t c = 0; c < n_tile_cols; c++) {
                int32_t four;
                memcpy(&four, x[c]->q + 4 * f, sizeof four);
                const __m512i a = _mm512_set1_epi32(four);
                isum[c][0] = _mm512_dpbusd_epi32(isum[c][0], w0, a);
                isum[c][1] = _mm512_dpbusd_epi32(isum[c][1], w1, a);
            }
        }
        const __m512 d0 = _mm512_load_ps(w->d[b]);
        const __m512 d1 = _mm512_load_ps(w->d[b] + 16);
#pragma GCC unroll 12
        for (size_t c = 0; c < n_tile_cols; c++) {
            const __m512 dx = _mm512_set1_ps(x[c]->d);
            __m512 s0 = _mm512_load_ps(sums[c]);
            __m512 s1 = _mm512_load_ps(sums[c] + 16);
            s0 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[c][0]), _mm512_mul_ps(d0, dx), s0);
            s1 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[c][1]), _mm512_mul_ps(d1, dx), s1);
            if (has_min) {
                const __m512 mx = _mm512_set1_ps(x[c]->d * (float)x[c]->sum);
                s0 = _mm512_fmadd_ps(_mm512_load_ps(w->m[b]), mx, s0);
                s1 = _mm512_fmadd_ps(_mm512_load_ps(w->m[b] + 16), mx, s1);
            }
            _mm512_store_ps(sums[c], s0);
            _mm512_store_ps(sums[c] + 16, s1);
        }
    }
}

/* All columns against one panel, in tiles of 12, then 4, then 1. */
INLINE void multiply_panel(float (*sums)[ROWS], const panel *w, const uint8_t *acts,
                           size_t act_bytes, size_t n_blocks, size_t n_cols, int32_t offset,
                           bool has_min) {
    size_t c = 0;
    for (; c + TILE_COLS <= n_cols; c += TILE_COLS) {
        tile(sums + c, w, acts + c * act_bytes, act_bytes, n_blocks, TILE_COLS, offset, has_min);
    }
    for (; c + 4 <= n_cols; c += 4) {
        tile(sums + c, w, acts + c * act_bytes, act_bytes, n_blocks, 4, offset, has_min);
    }
    for (; c < n_cols; c++) {
        tile(sums + c, w, acts + c * act_bytes, act_bytes, n_blocks, 1, offset, has_min);
    }
}

INLINE void matmul_panels(float *out, size_t out_stride, const void *weights, size_t row_bytes,
                          size_t n_rows, const void *acts, size_t act_bytes, size_t n_cols,
                          size_t n_k, pe_dtype dtype) {
    const int32_t offset = dtype == PE_DTYPE_Q4_0 ? 8 : dtype == PE_DTYPE_Q8_0 ? 128 : 0;
    const size_t n_blocks = n_k / PE_BLOCK;
    panel w;
    float sums[MAX_COLS][ROWS] __attribute__((aligned(64)));
    for (size_t r = 0; r < n_rows; r += ROWS) {
        const size_t n_valid = PE_MIN(n_rows - r, (size_t)ROWS);
        for (size_t c = 0; c < n_cols; c += MAX_COLS) {
            const size_t n_shared = PE_MIN(n_cols - c, (size_t)MAX_COLS);
            memset(sums, 0, n_shared * sizeof *sums);
            for (size_t b = 0; b < n_blocks; b += SLICE) {
                const uint8_t *rows[ROWS];
                for (size_t i = 0; i < ROWS; i++) {  // past the last: the last again
                    rows[i] = (const uint8_t *)weights + PE_MIN(r + i, n_rows - 1) * row_bytes +
                              b * block_bytes(dtype);
                }
                const size_t n_slice = PE_MIN(n_blocks - b, (size_t)SLICE);
                fill_panel(&w, rows, n_slice, dtype);
                const uint8_t *x = (const uint8_t *)acts + c * act_bytes + b * sizeof(pe_act_block);
                multiply_panel(sums, &w, x, act_bytes, n_slice, n_shared, offset,
                               dtype == PE_DTYPE_Q4_1);
            }
            for (size_t i = 0; i < n_shared; i++) {
                memcpy(out + (c + i) * out_stride + r, sums[i], n_valid * sizeof **sums);
            }
        }
    }
}

/* Defines matmul_<name>_avx512 for one type. */
#define MATMUL(name, dtype)                                                                        \
    static void matmul_##name##_avx512(float *out, size_t out_stride, const void *weights,         \
                                       size_t row_bytes, size_t n_rows, const void *acts,          \
                                       size_t act_bytes, size_t n_cols, size_t n_k) {              \
        matmul_panels(out, out_stride, weights, row_bytes, n_rows, acts, act_bytes, n_cols, n_k,   \
                      dtype);                                                                      \
    }

MATMUL(q4_0, PE_DTYPE_Q4_0)
MATMUL(q4_1, PE_DTYPE_Q4_1)
MATMUL(q8_0, PE_DTYPE_Q8_0)

#if defined(__clang__)
#pragma clang attribute pop
#endif

void pe_kernels_init_avx512(pe_kernels *kernels) {
    kernels->isa = PE_ISA_AVX512;
    pe_kernels_init_avx512_rows(kernels);
    kernels->matmul[PE_DTYPE_Q4_0] = matmul_q4_0_avx512;
    kernels->matmul[PE_DTYPE_Q4_1] = matmul_q4_1_avx512;
    kernels->matmul[PE_DTYPE_Q8_0] = matmul_q8_0_avx512;
}

#else

void pe_kernels_init_avx512(pe_kernels *kernels) {
    (void)kernels;  // not this processor family
}

#endif
