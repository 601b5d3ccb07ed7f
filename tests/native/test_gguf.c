/* The GGUF reader: what it reads, what it refuses and how it says so, and that no
 * byte of a file can make it crash, hang or take memory.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "gguf_writer.h"
#include "pe_base.h"
#include "pe_file.h"

static pe_file *open_bytes(const bytes *b) {
    pe_file *file = NULL;
    CHECK_OK(pe_file_open(&file, temp_file("good.gguf", b->data, b->n), err));
    return file;
}

/* The file is refused with this status and message; frees its bytes. */
static void refused(bytes *b, pe_status status, const char *fragment) {
    pe_file *file = NULL;
    const char *path = temp_file("bad.gguf", b->data, b->n);
    CHECK_FAILS(pe_file_open(&file, path, err), status, fragment);
    CHECK(file == NULL, "left by a failure: %s", fragment);
    bytes_free(b);
}

static bool name_is(const char *text, uint64_t n_bytes, const char *expected) {
    return n_bytes == strlen(expected) && memcmp(text, expected, (size_t)n_bytes) == 0;
}

/* ---- good files ------------------------------------------------------- */

static void scalars_of_all_types(void) {
    for (uint32_t version = 2; version <= 3; version++) {
        bytes b = {NULL, 0, 0};
        static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        put_header(&b, version, 0, 12);
        for (uint32_t type = 0; type < PE_LEN(sizes); type++) {
            char key[16];
            snprintf(key, sizeof key, "key.%u", type);
            if (type == PE_META_STRING) {
                put_meta_string(&b, key, "text");
            } else if (type != PE_META_ARRAY) {
                put_string(&b, key);
                put_u32(&b, type);
                for (uint8_t i = 0; i < sizes[type]; i++) {
                    put(&b, &(uint8_t){(uint8_t)(0x40 + type + i)}, 1);
                }
            }
        }
        pe_file *file = open_bytes(&b);
        pe_file_info info;
        pe_file_describe(&info, file);
        CHECK_U64(info.version, version);
        CHECK_U64(info.n_meta, 12);
        CHECK_U64(info.n_tensors, 0);
        CHECK_U64(info.n_bytes, b.n);
        for (uint32_t i = 0; i < 12; i++) {
            const uint32_t type = i < PE_META_ARRAY ? i : i + 1;
            pe_meta meta = {0};
            CHECK_OK(pe_file_meta(&meta, file, i, err));
            CHECK_U64(meta.type, type);
            CHECK_U64(meta.item_type, type);
            CHECK_U64(meta.n_items, 1);
            CHECK_U64(meta.n_bytes, type == PE_META_STRING ? 4 : sizes[type]);
            CHECK_U64(*(const uint8_t *)meta.data, type == PE_META_STRING ? 't' : 0x40 + type);
        }
        pe_meta meta;
        CHECK_FAILS(pe_file_meta(&meta, file, 12, err), PE_ERR_ARG, "below 12, found 12");
        CHECK(pe_file_find_meta(file, "key.10") != NULL, "by name");
        CHECK(pe_file_find_meta(file, "key.1x") == NULL, "by no name");
        pe_file_close(file);
        bytes_free(&b);
    }
    pe_file_close(NULL);
}

static void arrays(void) {
    bytes b = {NULL, 0, 0};
    put_header(&b, 3, 0, 4);
    put_string(&b, "numbers");
    put_u32(&b, PE_META_ARRAY);
    put_u32(&b, PE_META_U16);
    put_u64(&b, 3);
    put(&b, "\1\0\2\0\3\0", 6);
    put_string(&b, "words");
    put_u32(&b, PE_META_ARRAY);
    put_u32(&b, PE_META_STRING);
    put_u64(&b, 2);
    put_string(&b, "");
    put_string(&b, "ab");
    put_string(&b, "nested");
    put_u32(&b, PE_META_ARRAY);
    for (int depth = 1; depth < 4; depth++) {
        put_u32(&b, PE_META_ARRAY);
        put_u64(&b, 1);
    }
    put_u32(&b, PE_META_U8);
    put_u64(&b, 2);
    put(&b, "xy", 2);
    put_meta_u32(&b, "last", 7);
    pe_file *file = open_bytes(&b);
    const struct {
        uint32_t item_type;
        uint64_t n_items, n_bytes;
    } expected[] = {{PE_META_U16, 3, 6}, {PE_META_STRING, 2, 18}, {PE_META_ARRAY, 1, 38}};
    for (uint32_t i = 0; i < 3; i++) {
        pe_meta meta = {0};
        CHECK_OK(pe_file_meta(&meta, file, i, err));
        CHECK_U64(meta.type, PE_META_ARRAY);
        CHECK_U64(meta.item_type, expected[i].item_type);
        CHECK_U64(meta.n_items, expected[i].n_items);
        CHECK_U64(meta.n_bytes, expected[i].n_bytes);
    }
    uint32_t value = 0;
    const pe_meta *last = pe_file_find_meta(file, "last");
    CHECK(last != NULL, "last");
    CHECK_OK(pe_meta_get_u32(&value, last, err));
    CHECK_U64(value, 7);
    pe_file_close(file);
    bytes_free(&b);
}

static void numbers(void) {
    const int8_t minus = -1;
    const uint64_t large = UINT64_C(1) << 32;
    const float infinity = 1e30f * 1e30f;
    const double pi = 3.25;
    const pe_meta negative = {"a", 1, PE_META_I8, PE_META_I8, 1, &minus, 1};
    const pe_meta wide = {"b", 1, PE_META_U64, PE_META_U64, 1, &large, 8};
    const pe_meta endless = {"c", 1, PE_META_F32, PE_META_F32, 1, &infinity, 4};
    const pe_meta real = {"d", 1, PE_META_F64, PE_META_F64, 1, &pi, 8};
    const pe_meta text = {"e", 1, PE_META_STRING, PE_META_STRING, 1, "xy", 2};
    uint32_t u32;
    float f32;
    CHECK_FAILS(pe_meta_get_u32(&u32, &negative, err), PE_ERR_FORMAT, "found -1");
    CHECK_FAILS(pe_meta_get_u32(&u32, &wide, err), PE_ERR_FORMAT, "found 4294967296");
    CHECK_FAILS(pe_meta_get_u32(&u32, &real, err), PE_ERR_FORMAT, "d: expected an integer");
    CHECK_FAILS(pe_meta_get_f32(&f32, &endless, err), PE_ERR_FORMAT, "finite");
    CHECK_FAILS(pe_meta_get_f32(&f32, &text, err), PE_ERR_FORMAT, "e: expected a number");
    CHECK_OK(pe_meta_get_f32(&f32, &real, err));
    CHECK(f32 == 3.25f, "found %g", (double)f32);
    CHECK_OK(pe_meta_get_f32(&f32, &negative, err));
    CHECK(f32 == -1.0f, "found %g", (double)f32);
    CHECK(pe_meta_is_string(&text, "xy") && !pe_meta_is_string(&text, "x"), "strings");
}

/* Two tensors whose places depend on the alignment. */
static void put_two_tensors(bytes *b, uint32_t alignment) {
    put_header(b, 3, 2, alignment != 0 ? 1 : 0);
    if (alignment != 0) {
        put_meta_u32(b, "general.alignment", alignment);
    }
    alignment = alignment != 0 ? alignment : 32;
    put_tensor(b, "one", 1, (const uint64_t[]){3}, PE_DTYPE_F32, 0);
    put_tensor(b, "two", 3, (const uint64_t[]){32, 2, 1}, PE_DTYPE_Q8_0,
               alignment < 16 ? 16 : alignment);
    pad(b, alignment);
    put(b, "\1\2\3\4\5\6\7\10\11\12\13\14", 12);
    put_zeros(b, (alignment < 16 ? 16 : alignment) - 12);
    put_zeros(b, 67);
    put(b, "\x7f", 1);
}

static void alignments(void) {
    static const uint32_t table[] = {0, 8, 16, 32, 64, 4096, 65536};
    for (size_t i = 0; i < PE_LEN(table); i++) {
        bytes b = {NULL, 0, 0};
        put_two_tensors(&b, table[i]);
        pe_file *file = open_bytes(&b);
        pe_tensor_info one = {0};
        pe_tensor_info two = {0};
        CHECK_OK(pe_file_tensor(&one, file, 0, err));
        CHECK_OK(pe_file_tensor(&two, file, 1, err));
        CHECK(name_is(one.name, one.name_bytes, "one"), "first name");
        CHECK_U64(*(const uint8_t *)one.data, 1);
        CHECK_U64(one.n_bytes, 12);
        CHECK_U64(two.n_dims, 3);
        CHECK_U64(two.dims[1], 2);
        CHECK_U64(two.dims[3], 1);
        CHECK_U64(two.n_bytes, 68);
        CHECK_U64(((const uint8_t *)two.data)[67], 0x7f);
        CHECK_U64(two.offset + 68, b.n);
        CHECK_FAILS(pe_file_tensor(&two, file, 2, err), PE_ERR_ARG, "below 2, found 2");
        CHECK(pe_file_find_tensor(file, "two") == pe_file_tensor_at(file, 1), "by name");
        CHECK(pe_file_find_tensor(file, "tw") == NULL, "by a part of a name");
        pe_file_close(file);
        bytes_free(&b);
    }
    static const uint32_t bad[] = {1, 4, 24, 131072, UINT32_MAX};
    for (size_t i = 0; i < PE_LEN(bad); i++) {
        bytes b = {NULL, 0, 0};
        put_header(&b, 3, 0, 1);
        put_meta_u32(&b, "general.alignment", bad[i]);
        refused(&b, PE_ERR_FORMAT, "general.alignment: expected a power of two");
    }
}

/* ---- bad files -------------------------------------------------------- */

static void bad_headers(void) {
    bytes b = {NULL, 0, 0};
    refused(&b, PE_ERR_FORMAT, "empty");
    put(&b, "GGML\3\0\0\0", 8);
    put_zeros(&b, 16);
    refused(&b, PE_ERR_FORMAT, "47 47 4d 4c");
    put_header(&b, 3u << 24, 0, 0);
    refused(&b, PE_ERR_UNSUPPORTED, "big-endian");
    put_header(&b, 1, 0, 0);
    refused(&b, PE_ERR_UNSUPPORTED, "found 1");
    put_header(&b, 4, 0, 0);
    refused(&b, PE_ERR_UNSUPPORTED, "found 4");
    put_header(&b, 0, 0, 0);
    refused(&b, PE_ERR_UNSUPPORTED, "found 0");
    put_header(&b, 3, UINT64_C(1) << 40, 0);
    put_zeros(&b, 100);
    refused(&b, PE_ERR_FORMAT, "tensor count: expected at most 4");
    put_header(&b, 3, 0, UINT64_MAX);
    put_zeros(&b, 100);
    refused(&b, PE_ERR_FORMAT, "metadata count: expected at most 7");
    pe_file *file = NULL;
    CHECK_FAILS(pe_file_open(&file, temp_path("absent.gguf"), err), PE_ERR_IO, "absent.gguf");
    CHECK_FAILS(pe_file_open(&file, "/", err), PE_ERR_IO, "directory");
    CHECK_FAILS(pe_file_open(&file, "/dev/null", err), PE_ERR_IO, "device");
}

static void bad_metadata(void) {
    bytes b = {NULL, 0, 0};
    put_header(&b, 3, 0, 1);
    put_string(&b, "key");
    put_u32(&b, PE_META_STRING);
    put_u64(&b, UINT64_C(1) << 62);
    refused(&b, PE_ERR_FORMAT, "metadata string at byte 47: expected 4611686018427387904");
    put_header(&b, 3, 0, 1);
    put_u64(&b, UINT64_MAX);
    put_zeros(&b, 20);
    refused(&b, PE_ERR_FORMAT, "metadata key at byte 32");
    put_header(&b, 3, 0, 1);
    put_string(&b, "key");
    put_u32(&b, 13);
    put_zeros(&b, 20);
    refused(&b, PE_ERR_FORMAT, "key: expected a metadata type from 0 to 12, found 13");
    static const uint32_t items[] = {PE_META_U8, PE_META_F64, PE_META_STRING, PE_META_ARRAY, 99};
    for (size_t i = 0; i < PE_LEN(items); i++) {
        put_header(&b, 3, 0, 1);
        put_string(&b, "huge");
        put_u32(&b, PE_META_ARRAY);
        put_u32(&b, items[i]);
        put_u64(&b, (UINT64_MAX >> 3) + 2);  // times 8 it wraps to a small number
        put_zeros(&b, 100);
        refused(&b, PE_ERR_FORMAT, "huge: array length");
    }
    put_header(&b, 3, 0, 1);
    put_string(&b, "odd");
    put_u32(&b, PE_META_ARRAY);
    put_u32(&b, 99);
    put_u64(&b, 1);
    put_zeros(&b, 100);
    refused(&b, PE_ERR_FORMAT, "odd: array items");
    for (int n_deep = 4; n_deep < 50; n_deep += 15) {  // one more than the test arrays above
        put_header(&b, 3, 0, 1);
        put_string(&b, "deep");
        put_u32(&b, PE_META_ARRAY);
        for (int depth = 0; depth < n_deep; depth++) {
            put_u32(&b, PE_META_ARRAY);
            put_u64(&b, 1);
        }
        put_u32(&b, PE_META_U8);
        put_u64(&b, 0);
        refused(&b, PE_ERR_FORMAT, "nested at most 4 deep");
    }
    put_header(&b, 3, 0, 3);
    put_meta_u32(&b, "twice", 1);
    put_meta_u32(&b, "once", 1);
    put_meta_u32(&b, "twice", 1);
    refused(&b, PE_ERR_FORMAT, "twice: expected each key once");
    put_header(&b, 3, 0, 1);
    put_meta_string(&b, "general.alignment", "32");
    refused(&b, PE_ERR_FORMAT, "general.alignment: expected an integer");
}

static void bad_tensors(void) {
    static const uint64_t large = UINT64_C(1) << 32;
    static const struct {
        uint64_t dims[5];
        uint32_t n_dims, dtype;
        uint64_t offset;
        pe_status status;
        const char *fragment;
    } table[] = {
        {{8}, 1, 0, 64, PE_ERR_FORMAT, "cut short"},
        {{8}, 1, 0, UINT64_MAX - 31, PE_ERR_FORMAT, "cut short"},
        {{17}, 1, 0, 0, PE_ERR_FORMAT, "expected 68 bytes at offset 0"},
        {{8}, 1, 0, 4, PE_ERR_FORMAT, "offset: expected a multiple of 32, found 4"},
        {{8, 0}, 2, 0, 0, PE_ERR_FORMAT, "dimension 1: expected 1 or more"},
        {{large, large}, 2, 0, 0, PE_ERR_FORMAT, "product below 2^63"},
        {{large, large / 2}, 2, 0, 0, PE_ERR_FORMAT, "product below 2^63"},
        {{large, large / 4}, 2, 0, 0, PE_ERR_FORMAT, "fits 64 bits"},
        {{1, 1, 1, 1, 1}, 5, 0, 0, PE_ERR_FORMAT, "at most 4 dimensions, found 5"},
        {{8}, UINT32_MAX, 0, 0, PE_ERR_FORMAT, "at most 4 dimensions"},
        {{8}, 1, 4, 0, PE_ERR_UNSUPPORTED, "found number 4"},
        {{8}, 1, UINT32_MAX, 0, PE_ERR_UNSUPPORTED, "found number 4294967295"},
        {{33}, 1, PE_DTYPE_Q4_0, 0, PE_ERR_FORMAT, "whole Q4_0 blocks of 32 weights"},
        {{16, 2}, 2, PE_DTYPE_Q4_0, 0, PE_ERR_FORMAT, "found rows of 16"},
    };
    for (size_t i = 0; i < PE_LEN(table); i++) {
        bytes b = {NULL, 0, 0};
        put_header(&b, 3, 1, 0);
        put_tensor(&b, "the.tensor", table[i].n_dims <= 5 ? table[i].n_dims : 0, table[i].dims,
                   table[i].dtype, table[i].offset);
        if (table[i].n_dims > 5) {
            memcpy(b.data + 24 + 8 + 10, &table[i].n_dims, 4);
        }
        pad(&b, 32);
        put_zeros(&b, 64);
        refused(&b, table[i].status, table[i].fragment);
    }
    static const struct {
        const char *second;
        uint64_t offset;
        const char *fragment;
    } pairs[] = {
        {"a", 64, "a: expected each tensor once"},
        {"b", 0, "overlapping"},
        {"b", 32, "overlapping"},
    };
    for (size_t i = 0; i < PE_LEN(pairs); i++) {
        bytes b = {NULL, 0, 0};
        put_header(&b, 3, 2, 0);
        put_tensor(&b, "a", 1, (const uint64_t[]){9}, PE_DTYPE_F32, 0);
        put_tensor(&b, pairs[i].second, 1, (const uint64_t[]){8}, PE_DTYPE_F32, pairs[i].offset);
        pad(&b, 32);
        put_zeros(&b, 96);
        refused(&b, PE_ERR_FORMAT, pairs[i].fragment);
    }
}

/* ---- split files ------------------------------------------------------ */

/* Part i of n: numbered as told, one tensor named after the part. */
static void write_part(const char *name, uint32_t number, uint32_t count, uint32_t n_promised,
                       const char *tensor) {
    bytes b = {NULL, 0, 0};
    put_header(&b, 3, 1, 4);
    put_meta_u32(&b, "split.no", number);
    put_meta_u32(&b, "split.count", count);
    put_meta_u32(&b, "split.tensors.count", n_promised);
    put_meta_string(&b, "of", tensor);
    put_tensor(&b, tensor, 1, (const uint64_t[]){2}, PE_DTYPE_F32, 0);
    pad(&b, 32);
    put_f32(&b, (float)number);
    put_f32(&b, 1.0f);
    temp_file(name, b.data, b.n);
    bytes_free(&b);
}

static void split_files(void) {
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                        "m-00003-of-00003.gguf"};
    static const char *const tensors[] = {"a", "b", "c"};
    for (uint32_t i = 0; i < 3; i++) {
        write_part(names[i], i, 3, 3, tensors[i]);
    }
    pe_file *file = NULL;
    CHECK_OK(pe_file_open(&file, temp_path(names[0]), err));
    pe_file_info info;
    pe_file_describe(&info, file);
    CHECK_U64(info.n_parts, 3);
    CHECK_U64(info.n_tensors, 3);
    CHECK_U64(info.tensor_bytes, 24);
    for (uint32_t i = 0; i < 3; i++) {
        pe_tensor_info tensor = {0};
        CHECK_OK(pe_file_tensor(&tensor, file, i, err));
        CHECK_U64(tensor.part, i);
        CHECK(name_is(tensor.name, tensor.name_bytes, tensors[i]), "tensor %u", i);
        CHECK(*(const float *)tensor.data == (float)i, "tensor %u", i);
    }
    CHECK(pe_meta_is_string(pe_file_find_meta(file, "of"), "a"), "metadata of the first part");
    pe_file_close(file);

    CHECK_FAILS(pe_file_open(&file, temp_path(names[1]), err), PE_ERR_ARG, "the first part");
    write_part(names[1], 2, 3, 3, "b");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_FORMAT,
                "expected part 2 of 3, found part 3 of 3");
    write_part(names[1], 1, 4, 3, "b");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_FORMAT, "part 2 of 4");
    write_part(names[1], 1, 3, 3, "a");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_FORMAT,
                "a: expected each tensor once");
    write_part(names[1], 1, 3, 3, "b");
    write_part(names[0], 0, 3, 4, "a");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_FORMAT,
                "expected 4 tensors in all parts, found 3");
    write_part(names[0], 1, 3, 3, "a");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_FORMAT, "part 1 of 3");
    write_part(names[0], 0, 100000, 3, "a");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_FORMAT, "split.count");
    write_part(names[0], 0, 4, 3, "a");
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_ARG, "-00001-of-00004.gguf");
    write_part(names[0], 0, 3, 3, "a");
    remove(temp_path(names[2]));
    CHECK_FAILS(pe_file_open(&file, temp_path(names[0]), err), PE_ERR_IO, names[2]);
    CHECK(file == NULL, "left by a failure");
    write_part("single.gguf", 0, 1, 1, "a");
    CHECK_OK(pe_file_open(&file, temp_path("single.gguf"), err));
    pe_file_close(file);
}

/* ---- any bytes -------------------------------------------------------- */

/* Opens, checks and runs one token of whatever the file holds. */
static pe_status use_file(const char *path, pe_error *err) {
    pe_file *file = NULL;
    pe_engine *engine = NULL;
    pe_session *session = NULL;
    static float logits[4096];
    pe_status status = pe_file_open(&file, path, err);
    if (status == PE_OK) {
        const pe_engine_params params = {
            .struct_bytes = sizeof params, .n_threads = 1, .n_batch = 4};
        const pe_status checked = pe_file_check(file, NULL);
        status = pe_engine_open(&engine, file, &params, err);
        CHECK(checked == status || status == PE_ERR_NOMEM, "check %d, open %d", (int)checked,
              (int)status);
    }
    status = status != PE_OK ? status : pe_session_new(&session, engine, err);
    if (status == PE_OK) {
        pe_engine_info info;
        pe_engine_describe(&info, engine);
        const uint32_t token = info.n_vocab - 1;
        const uint32_t n_logits = info.n_vocab <= PE_LEN(logits) ? 1 : 0;
        const pe_feed feed = {session, &token, 1, n_logits, n_logits > 0 ? logits : NULL};
        status = pe_engine_forward(engine, &feed, 1, NULL, err);
    }
    pe_session_free(session);
    pe_engine_close(engine);
    pe_file_close(file);
    return status;
}

static void truncated_anywhere(void) {
    bytes b = {NULL, 0, 0};
    put_two_tensors(&b, 64);
    for (size_t n = 0; n < b.n; n++) {
        bytes cut = {NULL, 0, 0};
        put(&cut, b.data, n);
        refused(&cut, PE_ERR_FORMAT, "");
    }
    put_zeros(&b, 50);  // behind the last tensor anything may follow
    pe_file_close(open_bytes(&b));
    bytes_free(&b);
    // Without tensors the padding may be missing.
    put_header(&b, 3, 0, 1);
    put_meta_u32(&b, "some.key", 1);
    const size_t n_needed = b.n;
    pad(&b, 32);
    for (; b.n >= n_needed; b.n--) {
        pe_file_close(open_bytes(&b));
    }
    refused(&b, PE_ERR_FORMAT, "metadata value");
}

static size_t directory_bytes(const bytes *b) {
    pe_file *file = open_bytes(b);
    size_t first = b->n;
    pe_file_info info;
    pe_file_describe(&info, file);
    for (uint64_t i = 0; i < info.n_tensors; i++) {
        first = PE_MIN(first, (size_t)pe_file_tensor_at(file, i)->offset);
    }
    pe_file_close(file);
    return first;
}

/* Every byte of the directory, several values; and bytes of the weights. No change
 * of one byte may ask for more than half a gigabyte. */
static void mutated_anywhere(void) {
    const tiny_llama model = {.dtype = PE_DTYPE_Q8_0, .n_tokens = TINY_VOCAB};
    bytes b = {NULL, 0, 0};
    put_tiny_llama(&b, &model);
    struct rlimit before;
    getrlimit(RLIMIT_AS, &before);
    const struct rlimit limit = {.rlim_cur = 512u << 20, .rlim_max = before.rlim_max};
    if (!has_sanitizer()) {
        CHECK(setrlimit(RLIMIT_AS, &limit) == 0, "no limit set");
    }
    pe_error err = {0, ""};
    const char *path = temp_file("fuzz.gguf", b.data, b.n);
    const int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && use_file(path, &err) == PE_OK, "%s", err.message);
    const size_t n_directory = directory_bytes(&b);
    unsigned n_refused = 0;
    for (size_t i = 0; i < b.n; i += i < n_directory ? 1 : 997) {
        const uint8_t sound = b.data[i];
        const uint8_t values[] = {0,
                                  0xff,
                                  0x80,
                                  (uint8_t)(sound + 1),
                                  (uint8_t)(sound - 1),
                                  (uint8_t)(sound ^ 0x40),
                                  (uint8_t)rng_below(256)};
        // All values where it matters; under sanitizers, which are slow, one.
        const size_t first = has_sanitizer() ? rng_below(PE_LEN(values)) : 0;
        const size_t n_values = has_sanitizer() ? 1 : PE_LEN(values);
        for (size_t j = first; j < first + n_values; j++) {
            CHECK(pwrite(fd, &values[j], 1, (off_t)i) == 1, "byte %zu", i);
            const pe_status status = use_file(path, &err);
            n_refused += status != PE_OK;
            CHECK(status != PE_ERR_NOMEM && status != PE_ERR_IO && status != PE_ERR_CONTEXT,
                  "byte %zu as %02x: status %d: %s", i, values[j], (int)status, err.message);
        }
        CHECK(pwrite(fd, &sound, 1, (off_t)i) == 1, "byte %zu", i);
    }
    close(fd);
    setrlimit(RLIMIT_AS, &before);
    CHECK(n_refused > 1000, "only %u mutations were refused", n_refused);
    bytes_free(&b);
}

int main(void) {
    static const test_case tests[] = {
        TEST(scalars_of_all_types), TEST(arrays),           TEST(numbers),     TEST(alignments),
        TEST(bad_headers),          TEST(bad_metadata),     TEST(bad_tensors), TEST(split_files),
        TEST(truncated_anywhere),   TEST(mutated_anywhere),
    };
    return run_tests(tests, PE_LEN(tests));
}
