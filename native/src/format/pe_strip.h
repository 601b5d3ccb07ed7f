/* Strips: 16 neighbouring rows of a quantized matrix, interleaved. The same bytes in
 * another order, which is what kernels with rows in lanes would like to find in memory:
 * a register of 4-byte lanes loads the same four bytes of neighbouring rows, and a strip
 * is read from end to end.
 *
 * Blocks of the 16 rows lie together, block by block. Within one, field after field as
 * in the type's block; of a field the first item of all rows, then the second of all. An
 * item is 4 bytes, or 2 of the fp16 and 16-bit fields, or 1 of MXFP4's exponent. So
 *
 *     byte o of a block, of row r, in an item of n bytes that begins at i = o / n * n
 *     (o counted within its field, which begins at s):
 *
 *         strip + block * 16 * block_bytes + 16 * (s + i) + n * r + o % n
 *
 * and what lies at s in a row lies at 16 * s in a strip, for every field.
 */
#ifndef PE_STRIP_H
#define PE_STRIP_H

#include "pe_dtype.h"

#define PE_STRIP_ROWS 16

/* Bytes of the strips of n_rows rows: a last strip that is not full is filled up. */
uint64_t pe_strip_bytes(uint64_t n_rows, uint64_t row_bytes);

/* Interleaves n_rows rows.
 * shape    rows: row_bytes apart, whole blocks, no gaps; out: pe_strip_bytes
 *          rows past the last are copies of the last
 * alias    out and rows do not overlap
 * threads  re-entrant; strips may be made one by one, beginning with a multiple of 16 rows
 * errors   cannot fail; dtype is a quantized type */
void pe_strip_pack(void *out, pe_dtype dtype, const void *rows, uint64_t n_rows,
                   uint64_t row_bytes);

/* One row's block out of a strip, as the row had it. strip: the first block of its strip. */
void pe_strip_read_block(void *out_block, pe_dtype dtype, const void *strip, size_t i_block,
                         size_t row);

#endif
