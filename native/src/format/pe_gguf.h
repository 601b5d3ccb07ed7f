/* One GGUF file in memory: header, metadata and tensor directory, read through a
 * bounds-checked cursor. Every count, length, offset and product is checked here,
 * so that nothing above has to distrust the file again. Tensor data is not read.
 *
 *     "GGUF" | version u32 | n_tensors u64 | n_meta u64
 *     n_meta x    key string | type u32 | value
 *     n_tensors x name string | n_dims u32 | dims u64[] | type u32 | offset u64
 *     padding to general.alignment, then tensor data; offsets count from here
 *
 * A string is a u64 length and its bytes. All numbers are little-endian.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
#ifndef PE_GGUF_H
#define PE_GGUF_H

#include "pe_dtype.h"

typedef struct pe_gguf {
    uint32_t version;
    uint64_t n_meta;
    uint64_t n_tensors;
    pe_meta *meta;            // in file order
    pe_tensor_info *tensors;  // in file order
} pe_gguf;

/* Reads the directory of the n_bytes at data.
 * owner    out_gguf's arrays are freed with pe_gguf_free; what they point at stays
 *          in data, which must outlive them
 * errors   PE_ERR_FORMAT and PE_ERR_UNSUPPORTED name path, thing, expected, found;
 *          PE_ERR_NOMEM; memory taken is below 1 KiB per tensor or entry, and
 *          those are bounded by the file's size and by the limits in pe_gguf.c */
pe_status pe_gguf_read(pe_gguf *out_gguf, const uint8_t *data, uint64_t n_bytes, const char *path,
                       pe_error *err);

/* A zeroed or freed gguf is allowed. */
void pe_gguf_free(pe_gguf *gguf);

/* Metadata as numbers. The value must be of a fitting type and in range.
 * errors   PE_ERR_FORMAT names the key, what was expected and found */
pe_status pe_meta_get_u32(uint32_t *out, const pe_meta *meta, pe_error *err);
pe_status pe_meta_get_f32(float *out, const pe_meta *meta, pe_error *err);
pe_status pe_meta_get_bool(uint32_t *out, const pe_meta *meta, pe_error *err);

/* Element index of an array of booleans or integers, false for zero; false when there is
 * no such element. */
bool pe_meta_flag_at(bool *out, const pe_meta *meta, uint64_t index);

/* Element index of an array of integers that are no smaller than 0 and fit; false when there
 * is no such element. */
bool pe_meta_u32_at(uint32_t *out, const pe_meta *meta, uint64_t index);

/* Whether the entry is this string. */
bool pe_meta_is_string(const pe_meta *meta, const char *text);

#endif
