#include "pe_gguf.h"

#include <inttypes.h>
#include <stdlib.h>

#include "pe_mem.h"

/* Far above any real model (the largest have some 2,000 tensors, or 50,000 when
 * experts are stored one by one) and far below what could exhaust memory. */
#define MAX_META 65536u
#define MAX_TENSORS 1048576u

/* Arrays of arrays of arrays do not occur; recursion must end somewhere. */
#define MAX_ARRAY_DEPTH 4

/* The format asks for a multiple of 8, which every type's alignment divides. */
#define MIN_ALIGNMENT 8u
#define MAX_ALIGNMENT 65536u

typedef struct cursor {
    const uint8_t *data;
    uint64_t n_bytes;
    uint64_t pos;
    const char *path;
    pe_error *err;
} cursor;

static uint64_t remaining(const cursor *c) {
    return c->n_bytes - c->pos;
}

/* Steps over n bytes and gives their start; what names the thing for the error. */
static pe_status take(const uint8_t **out, cursor *c, uint64_t n, const char *what) {
    if (n > remaining(c)) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: %s at byte %" PRIu64 ": expected %" PRIu64 " bytes, found %" PRIu64
                       " before the end of the file",
                       c->path, what, c->pos, n, remaining(c));
    }
    *out = c->data + c->pos;
    c->pos += n;
    return PE_OK;
}

static pe_status take_u32(uint32_t *out, cursor *c, const char *what) {
    const uint8_t *bytes;
    PE_TRY(take(&bytes, c, sizeof *out, what));
    memcpy(out, bytes, sizeof *out);
    return PE_OK;
}

static pe_status take_u64(uint64_t *out, cursor *c, const char *what) {
    const uint8_t *bytes;
    PE_TRY(take(&bytes, c, sizeof *out, what));
    memcpy(out, bytes, sizeof *out);
    return PE_OK;
}

static pe_status take_string(const char **out, uint64_t *out_bytes, cursor *c, const char *what) {
    PE_TRY(take_u64(out_bytes, c, what));
    const uint8_t *bytes;
    PE_TRY(take(&bytes, c, *out_bytes, what));
    *out = (const char *)bytes;
    return PE_OK;
}

/* ---- header ----------------------------------------------------------- */

static pe_status read_header(pe_gguf *gguf, cursor *c) {
    const uint8_t *magic;
    PE_TRY(take(&magic, c, 4, "magic"));
    if (memcmp(magic, "GGUF", 4) != 0) {
        return pe_fail(
            c->err, PE_ERR_FORMAT,
            "%s: expected a GGUF file (first bytes 47 47 55 46), found %02x %02x %02x %02x",
            c->path, magic[0], magic[1], magic[2], magic[3]);
    }
    PE_TRY(take_u32(&gguf->version, c, "version"));
    if (gguf->version != 0 && (gguf->version & 0xffffu) == 0) {
        return pe_fail(c->err, PE_ERR_UNSUPPORTED,
                       "%s: expected a little-endian GGUF file, found a big-endian one", c->path);
    }
    if (gguf->version != 2 && gguf->version != 3) {
        return pe_fail(c->err, PE_ERR_UNSUPPORTED, "%s: expected GGUF version 2 or 3, found %u",
                       c->path, gguf->version);
    }
    PE_TRY(take_u64(&gguf->n_tensors, c, "tensor count"));
    PE_TRY(take_u64(&gguf->n_meta, c, "metadata count"));
    // The shortest tensor entry has 24 bytes, the shortest metadata entry 13.
    const uint64_t max_tensors = PE_MIN(remaining(c) / 24, MAX_TENSORS);
    const uint64_t max_meta = PE_MIN(remaining(c) / 13, MAX_META);
    if (gguf->n_tensors > max_tensors) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: tensor count: expected at most %" PRIu64
                       " in a file of this size, found %" PRIu64,
                       c->path, max_tensors, gguf->n_tensors);
    }
    if (gguf->n_meta > max_meta) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: metadata count: expected at most %" PRIu64
                       " in a file of this size, found %" PRIu64,
                       c->path, max_meta, gguf->n_meta);
    }
    return PE_OK;
}

/* ---- metadata --------------------------------------------------------- */

/* Bytes of a fixed-size metadata type; 0 for strings, arrays and unknown types. */
static uint64_t meta_type_bytes(uint32_t type) {
    switch (type) {
    case PE_META_U8:
    case PE_META_I8:
    case PE_META_BOOL: return 1;
    case PE_META_U16:
    case PE_META_I16: return 2;
    case PE_META_U32:
    case PE_META_I32:
    case PE_META_F32: return 4;
    case PE_META_U64:
    case PE_META_I64:
    case PE_META_F64: return 8;
    default: return 0;
    }
}

static pe_status skip_array(cursor *c, uint32_t *out_item_type, uint64_t *out_n_items,
                            const pe_meta *meta, int depth) {
    PE_TRY(take_u32(out_item_type, c, "array type"));
    PE_TRY(take_u64(out_n_items, c, "array length"));
    const uint32_t item_type = *out_item_type;
    const uint64_t n_items = *out_n_items;
    const uint64_t item_bytes = meta_type_bytes(item_type);
    // A string takes at least its length, a nested array its type and length.
    const uint64_t least = item_bytes > 0 ? item_bytes : item_type == PE_META_ARRAY ? 12 : 8;
    if (n_items > remaining(c) / least) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: %.*s: array length: expected at most %" PRIu64
                       " items before the end of the file, found %" PRIu64,
                       c->path, PE_QUOTE(meta->key, meta->key_bytes), remaining(c) / least,
                       n_items);
    }
    if (item_bytes > 0) {
        c->pos += n_items * item_bytes;
        return PE_OK;
    }
    if (item_type == PE_META_STRING) {
        for (uint64_t i = 0; i < n_items; i++) {
            const char *text;
            uint64_t n_bytes;
            PE_TRY(take_string(&text, &n_bytes, c, "string in an array"));
        }
        return PE_OK;
    }
    if (item_type == PE_META_ARRAY && depth < MAX_ARRAY_DEPTH) {
        for (uint64_t i = 0; i < n_items; i++) {
            uint32_t inner_type;
            uint64_t n_inner;
            PE_TRY(skip_array(c, &inner_type, &n_inner, meta, depth + 1));
        }
        return PE_OK;
    }
    return pe_fail(c->err, PE_ERR_FORMAT,
                   "%s: %.*s: array items: expected a metadata type from 0 to 12%s, found %u",
                   c->path, PE_QUOTE(meta->key, meta->key_bytes),
                   item_type == PE_META_ARRAY ? " nested at most 4 deep" : "", item_type);
}

static pe_status read_meta(pe_meta *meta, cursor *c) {
    PE_TRY(take_string(&meta->key, &meta->key_bytes, c, "metadata key"));
    PE_TRY(take_u32(&meta->type, c, "metadata type"));
    meta->item_type = meta->type;
    meta->n_items = 1;
    const uint64_t n_bytes = meta_type_bytes(meta->type);
    if (n_bytes > 0) {
        const uint8_t *bytes;
        PE_TRY(take(&bytes, c, n_bytes, "metadata value"));
        meta->data = bytes;
        meta->n_bytes = n_bytes;
        return PE_OK;
    }
    if (meta->type == PE_META_STRING) {
        const char *text;
        PE_TRY(take_string(&text, &meta->n_bytes, c, "metadata string"));
        meta->data = text;
        return PE_OK;
    }
    if (meta->type == PE_META_ARRAY) {
        PE_TRY(skip_array(c, &meta->item_type, &meta->n_items, meta, 1));
        // The items begin behind the array's type and length, wherever it ended.
        const uint8_t *end = c->data + c->pos;
        meta->data = meta->key + meta->key_bytes + 4 + 4 + 8;
        meta->n_bytes = (uint64_t)(end - (const uint8_t *)meta->data);
        return PE_OK;
    }
    return pe_fail(c->err, PE_ERR_FORMAT,
                   "%s: %.*s: expected a metadata type from 0 to 12, found %u", c->path,
                   PE_QUOTE(meta->key, meta->key_bytes), meta->type);
}

static bool key_is(const pe_meta *meta, const char *key) {
    const size_t n = strlen(key);
    return meta->key_bytes == n && memcmp(meta->key, key, n) == 0;
}

static pe_status read_alignment(uint64_t *out, const pe_gguf *gguf, const cursor *c) {
    *out = 32;  // the format's default
    for (uint64_t i = 0; i < gguf->n_meta; i++) {
        if (!key_is(&gguf->meta[i], "general.alignment")) {
            continue;
        }
        uint32_t value;
        PE_TRY(pe_meta_get_u32(&value, &gguf->meta[i], c->err));
        if (value < MIN_ALIGNMENT || value > MAX_ALIGNMENT || (value & (value - 1)) != 0) {
            return pe_fail(c->err, PE_ERR_FORMAT,
                           "%s: general.alignment: expected a power of two from %u to %u, found %u",
                           c->path, MIN_ALIGNMENT, MAX_ALIGNMENT, value);
        }
        *out = value;
    }
    return PE_OK;
}

/* ---- tensors ---------------------------------------------------------- */

static pe_status read_tensor(pe_tensor_info *tensor, cursor *c, uint64_t alignment) {
    PE_TRY(take_string(&tensor->name, &tensor->name_bytes, c, "tensor name"));
    PE_TRY(take_u32(&tensor->n_dims, c, "tensor dimension count"));
    if (tensor->n_dims > PE_LEN(tensor->dims)) {
        return pe_fail(c->err, PE_ERR_FORMAT, "%s: %.*s: expected at most 4 dimensions, found %u",
                       c->path, PE_QUOTE(tensor->name, tensor->name_bytes), tensor->n_dims);
    }
    uint64_t n_weights = 1;
    for (uint32_t i = 0; i < PE_LEN(tensor->dims); i++) {
        tensor->dims[i] = 1;
        if (i < tensor->n_dims) {
            PE_TRY(take_u64(&tensor->dims[i], c, "tensor dimension"));
        }
        if (tensor->dims[i] == 0 || !pe_mul_u64(&n_weights, n_weights, tensor->dims[i]) ||
            n_weights > INT64_MAX) {
            return pe_fail(c->err, PE_ERR_FORMAT,
                           "%s: %.*s: dimension %u: expected 1 or more with a product below 2^63,"
                           " found %" PRIu64,
                           c->path, PE_QUOTE(tensor->name, tensor->name_bytes), i, tensor->dims[i]);
        }
    }
    PE_TRY(take_u32(&tensor->dtype, c, "tensor type"));
    const pe_dtype_traits *traits = pe_dtype_find(tensor->dtype);
    if (traits == NULL) {
        return pe_fail(c->err, PE_ERR_UNSUPPORTED,
                       "%s: %.*s: expected a known tensor type, found number %u", c->path,
                       PE_QUOTE(tensor->name, tensor->name_bytes), tensor->dtype);
    }
    if (tensor->dims[0] % traits->info.block_weights != 0) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: %.*s: expected rows of whole %s blocks of %u weights, found rows of"
                       " %" PRIu64,
                       c->path, PE_QUOTE(tensor->name, tensor->name_bytes), traits->info.name,
                       traits->info.block_weights, tensor->dims[0]);
    }
    PE_TRY(take_u64(&tensor->offset, c, "tensor offset"));
    if (tensor->offset % alignment != 0) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: %.*s: offset: expected a multiple of %" PRIu64 ", found %" PRIu64,
                       c->path, PE_QUOTE(tensor->name, tensor->name_bytes), alignment,
                       tensor->offset);
    }
    if (!pe_mul_u64(&tensor->n_bytes, n_weights / traits->info.block_weights,
                    traits->info.block_bytes)) {
        return pe_fail(c->err, PE_ERR_FORMAT,
                       "%s: %.*s: expected a size that fits 64 bits, found %" PRIu64 " weights",
                       c->path, PE_QUOTE(tensor->name, tensor->name_bytes), n_weights);
    }
    return PE_OK;
}

/* Turns offsets into places in the file, inside it. */
static pe_status place_tensors(pe_gguf *gguf, const cursor *c, uint64_t alignment) {
    const uint64_t data_start = pe_ceil_div(c->pos, alignment) * alignment;
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        pe_tensor_info *tensor = &gguf->tensors[i];
        uint64_t start = 0;
        uint64_t end = 0;
        if (!pe_add_u64(&start, data_start, tensor->offset) ||
            !pe_add_u64(&end, start, tensor->n_bytes) || end > c->n_bytes) {
            return pe_fail(c->err, PE_ERR_FORMAT,
                           "%s: %.*s: expected %" PRIu64 " bytes at offset %" PRIu64
                           " of the tensor data, found the end of the file (%" PRIu64
                           " bytes long): is it cut short?",
                           c->path, PE_QUOTE(tensor->name, tensor->name_bytes), tensor->n_bytes,
                           tensor->offset, c->n_bytes);
        }
        tensor->offset = start;
        tensor->data = c->data + start;
    }
    return PE_OK;
}

static int compare_offsets(const void *a, const void *b) {
    const pe_tensor_info *x = *(const pe_tensor_info *const *)a;
    const pe_tensor_info *y = *(const pe_tensor_info *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static pe_status check_overlap(const pe_gguf *gguf, const cursor *c) {
    const pe_tensor_info **by_offset = pe_mem_alloc(gguf->n_tensors, sizeof *by_offset);
    if (by_offset == NULL) {
        return pe_fail(c->err, PE_ERR_NOMEM, "%s: no memory for the tensor directory", c->path);
    }
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        by_offset[i] = &gguf->tensors[i];
    }
    qsort(by_offset, (size_t)gguf->n_tensors, sizeof *by_offset, compare_offsets);
    pe_status status = PE_OK;
    for (uint64_t i = 1; i < gguf->n_tensors && status == PE_OK; i++) {
        const pe_tensor_info *a = by_offset[i - 1];
        const pe_tensor_info *b = by_offset[i];
        if (a->offset + a->n_bytes > b->offset) {
            status = pe_fail(c->err, PE_ERR_FORMAT,
                             "%s: %.*s: expected its own place in the file, found it overlapping"
                             " %.*s at byte %" PRIu64,
                             c->path, PE_QUOTE(b->name, b->name_bytes),
                             PE_QUOTE(a->name, a->name_bytes), b->offset);
        }
    }
    pe_mem_free(by_offset);
    return status;
}

static pe_status read_all(pe_gguf *gguf, cursor *c) {
    PE_TRY(read_header(gguf, c));
    gguf->meta = pe_mem_zalloc(gguf->n_meta, sizeof *gguf->meta);
    gguf->tensors = pe_mem_zalloc(gguf->n_tensors, sizeof *gguf->tensors);
    if (gguf->meta == NULL || gguf->tensors == NULL) {
        return pe_fail(c->err, PE_ERR_NOMEM, "%s: no memory for the directory", c->path);
    }
    for (uint64_t i = 0; i < gguf->n_meta; i++) {
        PE_TRY(read_meta(&gguf->meta[i], c));
    }
    uint64_t alignment;
    PE_TRY(read_alignment(&alignment, gguf, c));
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        PE_TRY(read_tensor(&gguf->tensors[i], c, alignment));
    }
    PE_TRY(place_tensors(gguf, c, alignment));
    return check_overlap(gguf, c);
}

pe_status pe_gguf_read(pe_gguf *out_gguf, const uint8_t *data, uint64_t n_bytes, const char *path,
                       pe_error *err) {
    *out_gguf = (pe_gguf){0};
    cursor c = {.data = data, .n_bytes = n_bytes, .path = path, .err = err};
    const pe_status status = read_all(out_gguf, &c);
    if (status != PE_OK) {
        pe_gguf_free(out_gguf);
    }
    return status;
}

void pe_gguf_free(pe_gguf *gguf) {
    pe_mem_free(gguf->meta);
    pe_mem_free(gguf->tensors);
    *gguf = (pe_gguf){0};
}

/* ---- values ----------------------------------------------------------- */

static const char *type_name(uint32_t type) {
    static const char *const names[] = {"an 8-bit number", "an 8-bit number", "a 16-bit number",
                                        "a 16-bit number", "a 32-bit number", "a 32-bit number",
                                        "a 32-bit float",  "a boolean",       "a string",
                                        "an array",        "a 64-bit number", "a 64-bit number",
                                        "a 64-bit float"};
    return type < PE_LEN(names) ? names[type] : "an unknown type";
}

/* Any integer type as i64; false for other types and for u64 above 2^63. */
static bool as_i64(int64_t *out, const pe_meta *meta) {
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } value = {0};
    if (meta->type == PE_META_ARRAY || meta->type == PE_META_STRING) {
        return false;
    }
    memcpy(&value, meta->data, (size_t)meta->n_bytes);
    switch (meta->type) {
    case PE_META_U8: *out = value.u8; return true;
    case PE_META_I8: *out = value.i8; return true;
    case PE_META_U16: *out = value.u16; return true;
    case PE_META_I16: *out = value.i16; return true;
    case PE_META_U32: *out = value.u32; return true;
    case PE_META_I32: *out = value.i32; return true;
    case PE_META_I64: *out = value.i64; return true;
    case PE_META_U64: *out = (int64_t)value.u64; return value.u64 <= INT64_MAX;
    default: return false;
    }
}

pe_status pe_meta_get_u32(uint32_t *out, const pe_meta *meta, pe_error *err) {
    int64_t value;
    if (!as_i64(&value, meta)) {
        return pe_fail(err, PE_ERR_FORMAT, "%.*s: expected an integer, found %s",
                       PE_QUOTE(meta->key, meta->key_bytes), type_name(meta->type));
    }
    if (value < 0 || value > UINT32_MAX) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%.*s: expected a number from 0 to 2^32 - 1, found %" PRId64,
                       PE_QUOTE(meta->key, meta->key_bytes), value);
    }
    *out = (uint32_t)value;
    return PE_OK;
}

pe_status pe_meta_get_f32(float *out, const pe_meta *meta, pe_error *err) {
    int64_t integer;
    double wide;
    if (meta->type == PE_META_F32) {
        memcpy(out, meta->data, sizeof *out);
    } else if (meta->type == PE_META_F64) {
        memcpy(&wide, meta->data, sizeof wide);
        *out = (float)wide;
    } else if (as_i64(&integer, meta)) {
        *out = (float)integer;
    } else {
        return pe_fail(err, PE_ERR_FORMAT, "%.*s: expected a number, found %s",
                       PE_QUOTE(meta->key, meta->key_bytes), type_name(meta->type));
    }
    if (!pe_f32_is_finite(*out)) {
        return pe_fail(err, PE_ERR_FORMAT, "%.*s: expected a finite number, found %g",
                       PE_QUOTE(meta->key, meta->key_bytes), (double)*out);
    }
    return PE_OK;
}

pe_status pe_meta_get_bool(uint32_t *out, const pe_meta *meta, pe_error *err) {
    uint8_t byte;
    if (meta->type != PE_META_BOOL) {
        return pe_fail(err, PE_ERR_FORMAT, "%.*s: expected true or false, found %s",
                       PE_QUOTE(meta->key, meta->key_bytes), type_name(meta->type));
    }
    memcpy(&byte, meta->data, sizeof byte);
    *out = byte != 0;
    return PE_OK;
}

/* Element index of an array of booleans or integers. */
static bool integer_at(int64_t *out, const pe_meta *meta, uint64_t index) {
    if (meta->type != PE_META_ARRAY || index >= meta->n_items ||
        meta->item_type == PE_META_STRING || meta->item_type == PE_META_ARRAY) {
        return false;
    }
    pe_meta item = *meta;
    item.type = meta->item_type;
    item.n_bytes = meta->n_bytes / meta->n_items;
    item.data = (const uint8_t *)meta->data + index * item.n_bytes;
    if (item.type == PE_META_BOOL) {
        uint8_t byte;
        memcpy(&byte, item.data, sizeof byte);
        *out = byte;
        return true;
    }
    return as_i64(out, &item);
}

bool pe_meta_flag_at(bool *out, const pe_meta *meta, uint64_t index) {
    int64_t integer = 0;
    if (!integer_at(&integer, meta, index)) {
        return false;
    }
    *out = integer != 0;
    return true;
}

bool pe_meta_u32_at(uint32_t *out, const pe_meta *meta, uint64_t index) {
    int64_t integer = 0;
    if (!integer_at(&integer, meta, index) || integer < 0 || integer > UINT32_MAX) {
        return false;
    }
    *out = (uint32_t)integer;
    return true;
}

bool pe_meta_is_string(const pe_meta *meta, const char *text) {
    const size_t n = strlen(text);
    return meta->type == PE_META_STRING && meta->n_bytes == n && memcmp(meta->data, text, n) == 0;
}
