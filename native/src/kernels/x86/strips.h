/* Products with strips (pe_strip.h), whose bytes lie as rows in lanes want them: what is left
 * is to unpack integers and scales where they stand, all rows of a register at once. A few
 * columns meet them in registers; for many they become a panel. A new type is a case in
 * expand_fours and in unit_scales.
 *
 * Included by panels.h.
 */
#ifndef PE_X86_STRIPS_H
#define PE_X86_STRIPS_H

/* LANES rows, from row on, of a block of a strip. */
typedef struct lanes {
    const uint8_t *block;
    size_t row;
} lanes;

/* What lies at offset at of each row's block: four bytes, an fp16. */
INLINE vec word_of(lanes p, size_t at) {
    return vec_load(p.block + PE_STRIP_ROWS * at + 4 * p.row);
}

INLINE vecf half_of(lanes p, size_t at) {
    return vecf_widen_f16(p.block + PE_STRIP_ROWS * at + 2 * p.row);
}

/* ---- integers --------------------------------------------------------- */

INLINE vec byte_bits(vec v, int shift, int mask) {
    return vec_and(vec_srl16(v, shift), vec_set1_8((char)mask));
}

/* Bits 4 f to 4 f + 3 of each lane as 16 in the lane's four bytes. */
INLINE vec fifth_bits(vec high, size_t f) {
    const int byte = (int)(f / 2) * 0x01010101;
    const __m128i which =
        _mm_setr_epi32(byte, byte + 0x04040404, byte + 0x08080808, byte + 0x0c0c0c0c);
    const vec mask = vec_set1_32(f % 2 == 0 ? 0x08040201 : (int)0x80402010u);
    const vec bits = vec_and(vec_shuffle8(high, vec_set1_128(which)), mask);
    return vec_sll16(vec_min_u8(bits, vec_set1_8(1)), 4);
}

/* Nibbles of 16 bytes at offset at: fours 0-3 the low ones, 4-7 the high ones. */
INLINE void expand_nibbles(vec *out, lanes p, size_t at, pe_dtype dtype) {
#pragma GCC unroll 4
    for (size_t f = 0; f < 4; f++) {
        const vec both = word_of(p, at + 4 * f);
        out[f] = byte_bits(both, 0, 15);
        out[4 + f] = byte_bits(both, 4, 15);
        if (has_table(dtype)) {
            const vec table = vec_set1_128(table_of(dtype));
            out[f] = vec_shuffle8(table, out[f]);
            out[4 + f] = vec_shuffle8(table, out[4 + f]);
        }
    }
}

/* Four f of unit u of a super-block. */
INLINE vec expand_super(lanes p, size_t u, size_t f, pe_dtype dtype) {
    const size_t at = 4 * f;
    const int crumb = 2 * (int)(u % 4);
    switch (dtype) {
    case PE_DTYPE_Q2_K:
        return byte_bits(word_of(p, offsetof(pe_block_q2_k, q) + 32 * (u / 4) + at), crumb, 3);
    case PE_DTYPE_Q3_K: {
        const vec low = word_of(p, offsetof(pe_block_q3_k, low) + 32 * (u / 4) + at);
        const vec high = word_of(p, offsetof(pe_block_q3_k, high) + at);
        return vec_or(byte_bits(low, crumb, 3), vec_sll16(byte_bits(high, (int)u, 1), 2));
    }
    case PE_DTYPE_Q4_K:
        return byte_bits(word_of(p, offsetof(pe_block_q4_k, q) + 32 * (u / 2) + at),
                         4 * (int)(u % 2), 15);
    case PE_DTYPE_Q5_K: {
        const vec low = word_of(p, offsetof(pe_block_q5_k, low) + 32 * (u / 2) + at);
        const vec high = word_of(p, offsetof(pe_block_q5_k, high) + at);
        return vec_or(byte_bits(low, 4 * (int)(u % 2), 15),
                      vec_sll16(byte_bits(high, (int)u, 1), 4));
    }
    default: {  // Q6_K
        const vec low = word_of(p, 64 * (u / 4) + 32 * (u % 2) + at);
        const vec high = word_of(p, offsetof(pe_block_q6_k, high) + 32 * (u / 4) + at);
        return vec_or(byte_bits(low, 4 * (int)(u % 4 / 2), 15),
                      vec_sll16(byte_bits(high, crumb, 3), 4));
    }
    }
}

/* All fours of unit u of p's block as unsigned bytes. */
INLINE void expand_fours(vec *out, lanes p, size_t u, pe_dtype dtype) {
    if (dtype == PE_DTYPE_Q5_0 || dtype == PE_DTYPE_Q5_1) {
        const size_t low =
            dtype == PE_DTYPE_Q5_0 ? offsetof(pe_block_q5_0, low) : offsetof(pe_block_q5_1, low);
        const vec high = word_of(p, low - 4);
        expand_nibbles(out, p, low, dtype);
#pragma GCC unroll 8
        for (size_t f = 0; f < FOURS; f++) {
            out[f] = vec_or(out[f], fifth_bits(high, f));
        }
    } else if (dtype == PE_DTYPE_Q8_0) {
#pragma GCC unroll 8
        for (size_t f = 0; f < FOURS; f++) {
            out[f] =
                vec_xor(word_of(p, offsetof(pe_block_q8_0, q) + 4 * f), vec_set1_8((char)0x80));
        }
    } else if (is_super(dtype) && dtype != PE_DTYPE_IQ4_XS) {
#pragma GCC unroll 8
        for (size_t f = 0; f < FOURS; f++) {
            out[f] = expand_super(p, u, f, dtype);
        }
    } else {
        expand_nibbles(out, p, nibbles_at(is_super(dtype) ? u : 0, dtype), dtype);
    }
}

/* ---- scales ----------------------------------------------------------- */

INLINE vec lane_bits(vec v, int shift, int mask) {
    return vec_and(vec_srl32(v, (unsigned)shift), vec_set1_32(mask));
}

/* Six bits of Q4_K and Q5_K: the scale (kind 0) or the minimum (1) of unit u. */
INLINE vec six_bits_of(lanes p, size_t u, size_t kind) {
    const size_t at = offsetof(pe_block_q4_k, scale);  // Q5_K begins alike
    const int byte = 8 * (int)(u % 4);
    const vec first = word_of(p, at + 4 * kind);
    if (u < 4) {
        return lane_bits(first, byte, 63);
    }
    return vec_or(lane_bits(word_of(p, at + 8), byte + 4 * (int)kind, 15),
                  vec_sll32(lane_bits(first, byte + 6, 3), 4));
}

/* The scale of half h of unit u as an integer, of types that have such. */
INLINE vec sub_scale(lanes p, size_t u, size_t h, pe_dtype dtype) {
    const size_t j = 2 * u + h;  // of two scales
    const int byte = 8 * (int)(j % 4);
    switch (dtype) {
    case PE_DTYPE_Q2_K: return lane_bits(word_of(p, j / 4 * 4), byte, 15);
    case PE_DTYPE_Q3_K: {
        const size_t at = offsetof(pe_block_q3_k, scale);
        const vec low = lane_bits(word_of(p, at + j % 8 / 4 * 4), byte + 4 * (int)(j / 8), 15);
        const vec high = lane_bits(word_of(p, at + 8), byte + 2 * (int)(j / 4), 3);
        return vec_sub32(vec_or(low, vec_sll32(high, 4)), vec_set1_32(32));
    }
    case PE_DTYPE_Q6_K:
        return vec_sra32(vec_sll32(word_of(p, offsetof(pe_block_q6_k, scale) + j / 4 * 4),
                                   (unsigned)(24 - byte)),
                         24);
    case PE_DTYPE_IQ4_XS: {
        const vec low = word_of(p, offsetof(pe_block_iq4_xs, scale_low));
        const vec high = vec_widen_u16(
            p.block + PE_STRIP_ROWS * offsetof(pe_block_iq4_xs, scale_high) + 2 * p.row);
        return vec_sub32(
            vec_or(lane_bits(low, 4 * (int)u, 15), vec_sll32(lane_bits(high, 2 * (int)u, 3), 4)),
            vec_set1_32(32));
    }
    default: return six_bits_of(p, u, 0);
    }
}

INLINE size_t scale_at(pe_dtype dtype) {
    switch (dtype) {
    case PE_DTYPE_Q2_K: return offsetof(pe_block_q2_k, d);
    case PE_DTYPE_Q3_K: return offsetof(pe_block_q3_k, d);
    case PE_DTYPE_Q6_K: return offsetof(pe_block_q6_k, d);
    default: return 0;
    }
}

INLINE vecf minus(vecf x) {
    return vec_as_float(vec_xor(vec_as_int(x), vec_set1_32((int)0x80000000u)));
}

/* Scales and minimums of unit u of p's block, of each half. */
typedef struct unit_numbers {
    vecf d[2];
    vecf m[2];
} unit_numbers;

INLINE unit_numbers unit_scales(lanes p, size_t u, pe_dtype dtype) {
    unit_numbers out;
    if (dtype == PE_DTYPE_MXFP4) {
        // 2^(e - 128), see pe_e8m0_half_to_f32: the two lowest are subnormal.
        const vec e = vec_widen_u8(p.block + p.row);
        const vec normal = vec_sll32(vec_sub32(e, vec_set1_32(1)), 23);
        const vec is_0 = vec_sub32(vec_set1_32(1), vec_min_u8(e, vec_set1_32(1)));
        const vec low = vec_sub32(vec_set1_32(0x00400000), vec_sll32(is_0, 21));
        out.d[0] = vec_as_float(vec_max32(normal, low));
        return out;
    }
    const vecf scale = half_of(p, scale_at(dtype));
    if (!is_super(dtype)) {
        out.d[0] = scale;
        if (has_min(dtype)) {
            out.m[0] = half_of(p, offsetof(pe_block_q4_1, m));
        }
        return out;
    }
    const size_t n_halves = has_two_scales(dtype) ? 2 : 1;
#pragma GCC unroll 2
    for (size_t h = 0; h < n_halves; h++) {
        out.d[h] = vecf_mul(vec_to_float(sub_scale(p, u, h, dtype)), scale);
        if (dtype == PE_DTYPE_Q2_K) {
            const size_t j = 2 * u + h;
            const vec four = lane_bits(word_of(p, j / 4 * 4), 8 * (int)(j % 4) + 4, 15);
            out.m[h] =
                vecf_mul(vec_to_float(four), minus(half_of(p, offsetof(pe_block_q2_k, dmin))));
        } else if (has_min(dtype)) {
            out.m[h] = vecf_mul(vec_to_float(six_bits_of(p, u, 1)),
                                minus(half_of(p, offsetof(pe_block_q4_k, dmin))));
        }
    }
    return out;
}

/* ---- a few columns ---------------------------------------------------- */

/* start plus the exact sums of n_fours fours times the activations at x. */
INLINE vec dot_fours(vec start, const vec *fours, size_t n_fours, const int8_t *x, int limit);

/* Unit u of p's block times n_cols columns, added to sums, [column][row]. What is unpacked
 * stays in registers, so that loads from memory go on while products are computed. */
INLINE void add_unit(float (*sums)[PE_STRIP_ROWS], lanes p, size_t u, const uint8_t *acts,
                     size_t act_bytes, size_t n_cols, pe_dtype dtype) {
    const vecf magic = vecf_set1(PE_SUM_MAGIC);
    const panel_kind kind = kind_of(dtype);
    const size_t n_halves = kind.two_scales ? 2 : 1;
    vec fours[FOURS];
    expand_fours(fours, p, u, dtype);
    const unit_numbers w = unit_scales(p, u, dtype);
    for (size_t c = 0; c < n_cols; c++) {
        const pe_act_block *x = (const pe_act_block *)(acts + c * act_bytes);
        vecf s = magic;
#pragma GCC unroll 2
        for (size_t h = 0; h < n_halves; h++) {
            const vecf sum = vecf_set1(kind.two_scales ? x->half[h] : x->sum);
            const vec start = vec_as_int(
                offset_in_start(kind) ? vecf_fnmadd(vecf_set1(kind.offset), sum, magic) : magic);
            const vec isum =
                dot_fours(start, fours + 4 * h, FOURS / n_halves, x->q + 16 * h, kind.limit);
            const vecf part = vecf_fmsub(vec_as_float(isum), w.d[h], vecf_mul(w.d[h], magic));
            s = h == 0 ? part : vecf_add(s, part);
        }
        if (kind.min) {
            s = vecf_fmadd(vecf_set1(kind.two_scales ? x->half[0] : x->sum), w.m[0], s);
        }
        if (kind.min && kind.two_scales) {
            s = vecf_fmadd(vecf_set1(x->half[1]), w.m[1], s);
        }
        float *to = sums[c] + p.row;
        vecf_store(to, vecf_fmadd(s, vecf_set1(x->d), vecf_load(to)));
    }
}

/* A strip is one stream from end to end, and strips follow each other. Distances of 2 to 4 KB
 * read at the memory's rate here, 1 KB and 16 KB do not. */
#define AHEAD_BYTES 4096

INLINE void prefetch_strip(const uint8_t *p, size_t n_bytes) {
    const uintptr_t at = (uintptr_t)p + AHEAD_BYTES;  // as an integer: see ahead
    for (size_t i = 0; i < n_bytes; i += PE_CACHE_LINE) {
        _mm_prefetch((const char *)(at + i), _MM_HINT_T0);
    }
}

/* The whole product of up to FUSED_COLS columns. */
INLINE void matmul_few(float *out, size_t out_stride, const uint8_t *weights, size_t row_bytes,
                       size_t n_rows, const uint8_t *acts, size_t act_bytes, size_t n_cols,
                       size_t n_k, pe_dtype dtype) {
    const size_t n_units = is_super(dtype) ? UNITS : 1;  // of a block
    const size_t n_blocks = n_k / PE_BLOCK / n_units;
    const size_t n_bytes = PE_STRIP_ROWS * block_bytes(dtype) / n_units;
    for (size_t r = 0; r < n_rows; r += PE_STRIP_ROWS) {
        float sums[FUSED_COLS][PE_STRIP_ROWS] __attribute__((aligned(64))) = {{0}};
        lanes p = {weights + r * row_bytes, 0};
        const uint8_t *x = acts;
        for (size_t b = 0; b < n_blocks; b++, p.block += PE_STRIP_ROWS * block_bytes(dtype)) {
#pragma GCC unroll 8
            for (size_t u = 0; u < n_units; u++, x += sizeof(pe_act_block)) {
                prefetch_strip(p.block + u * n_bytes, n_bytes);
#pragma GCC unroll 2
                for (p.row = 0; p.row < PE_STRIP_ROWS; p.row += (size_t)LANES) {
                    add_unit(sums, p, u, x, act_bytes, n_cols, dtype);
                    // Else GCC unpacks several units at once, and spills.
                    __asm__ volatile("" : : : "memory");
                }
            }
        }
        for (size_t c = 0; c < n_cols; c++) {
            memcpy(out + c * out_stride + r, sums[c],
                   PE_MIN(n_rows - r, (size_t)PE_STRIP_ROWS) * sizeof *out);
        }
    }
}

/* ---- panels ----------------------------------------------------------- */

/* Unit u of a slice, that is, of p's block if that is a super-block; else the block's only
 * one. to_row: where its rows stand in the panel. */
INLINE void fill_unit(panel *out, lanes p, size_t u, size_t to_row, pe_dtype dtype) {
    vec fours[FOURS];
    expand_fours(fours, p, u, dtype);
#pragma GCC unroll 8
    for (size_t f = 0; f < FOURS; f++) {
        vec_store(out->q[u][f][to_row], fours[f]);
    }
    const unit_numbers w = unit_scales(p, u, dtype);
    const size_t n_halves = has_two_scales(dtype) ? 2 : 1;
#pragma GCC unroll 2
    for (size_t h = 0; h < n_halves; h++) {
        vecf_store(&out->d[u][h][to_row], w.d[h]);
        if (has_min(dtype)) {
            vecf_store(&out->m[u][h][to_row], w.m[h]);
        }
    }
}

/* Units of a slice of the panel whose first row is first_row. */
INLINE void fill_from_strips(panel *out, const uint8_t *weights, size_t row_bytes, size_t n_rows,
                             size_t first_row, size_t n_panel_rows, size_t slice, size_t n_units,
                             pe_dtype dtype) {
    const size_t block = PE_STRIP_ROWS * block_bytes(dtype);
    for (size_t i = 0; i < n_panel_rows; i += (size_t)LANES) {
        // Rows past the last strip: some that are there; nobody looks at their sums.
        const size_t row = PE_MIN(first_row + i, (n_rows - 1) / LANES * LANES);
        const size_t in_strip = row % PE_STRIP_ROWS;
        lanes p = {weights + (row - in_strip) * row_bytes +
                       PE_STRIP_ROWS * slice * units_bytes(dtype),
                   in_strip};
        if (is_super(dtype)) {
#pragma GCC unroll 8
            for (size_t u = 0; u < UNITS; u++) {
                fill_unit(out, p, u, i, dtype);
            }
        } else {
            for (size_t u = 0; u < n_units; u++, p.block += block) {
                fill_unit(out, p, u, i, dtype);
            }
        }
    }
}

#endif
