#include "pe_file.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "pe_map.h"
#include "pe_mem.h"

/* llama.cpp numbers parts with five digits. */
#define MAX_PARTS 99999u

typedef struct part {
    pe_map map;
    pe_gguf gguf;
} part;

struct pe_file {
    atomic_uint n_references;
    char *path;
    uint32_t n_parts;  // opened so far
    part *parts;
    uint64_t n_tensors;
    const pe_tensor_info **tensors;  // of all parts, in file order
    const pe_tensor_info **by_name;  // the same, sorted
    const pe_meta **meta_by_key;     // of the first part, sorted
};

/* ---- names ------------------------------------------------------------ */

static int compare_text(const char *a, uint64_t n_a, const char *b, uint64_t n_b) {
    const int order = memcmp(a, b, (size_t)PE_MIN(n_a, n_b));
    return order != 0 ? order : (n_a > n_b) - (n_a < n_b);
}

static int compare_tensors(const void *a, const void *b) {
    const pe_tensor_info *x = *(const pe_tensor_info *const *)a;
    const pe_tensor_info *y = *(const pe_tensor_info *const *)b;
    return compare_text(x->name, x->name_bytes, y->name, y->name_bytes);
}

static int compare_meta(const void *a, const void *b) {
    const pe_meta *x = *(const pe_meta *const *)a;
    const pe_meta *y = *(const pe_meta *const *)b;
    return compare_text(x->key, x->key_bytes, y->key, y->key_bytes);
}

const pe_meta *pe_file_find_meta(const pe_file *file, const char *key) {
    const pe_meta wanted = {.key = key, .key_bytes = strlen(key)};
    const pe_meta *pointer = &wanted;
    const pe_meta **found = bsearch(&pointer, file->meta_by_key, (size_t)file->parts[0].gguf.n_meta,
                                    sizeof(pointer), compare_meta);
    return found != NULL ? *found : NULL;
}

const pe_tensor_info *pe_file_find_tensor(const pe_file *file, const char *name) {
    const pe_tensor_info wanted = {.name = name, .name_bytes = strlen(name)};
    const pe_tensor_info *pointer = &wanted;
    const pe_tensor_info **found =
        bsearch(&pointer, file->by_name, (size_t)file->n_tensors, sizeof(pointer), compare_tensors);
    return found != NULL ? *found : NULL;
}

static pe_status index_meta(pe_file *file, pe_error *err) {
    const pe_gguf *first = &file->parts[0].gguf;
    file->meta_by_key = pe_mem_alloc(first->n_meta, sizeof *file->meta_by_key);
    if (file->meta_by_key == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "%s: no memory for the directory",
                       pe_path_tail(file->path));
    }
    for (uint64_t i = 0; i < first->n_meta; i++) {
        file->meta_by_key[i] = &first->meta[i];
    }
    qsort(file->meta_by_key, (size_t)first->n_meta, sizeof *file->meta_by_key, compare_meta);
    for (uint64_t i = 1; i < first->n_meta; i++) {
        if (compare_meta(&file->meta_by_key[i - 1], &file->meta_by_key[i]) == 0) {
            const pe_meta *twice = file->meta_by_key[i];
            return pe_fail(err, PE_ERR_FORMAT, "%s: %.*s: expected each key once, found it twice",
                           pe_path_tail(file->path), PE_QUOTE(twice->key, twice->key_bytes));
        }
    }
    return PE_OK;
}

static pe_status index_tensors(pe_file *file, pe_error *err) {
    for (uint32_t i = 0; i < file->n_parts; i++) {
        file->n_tensors += file->parts[i].gguf.n_tensors;
    }
    file->tensors = pe_mem_alloc(file->n_tensors, sizeof *file->tensors);
    file->by_name = pe_mem_alloc(file->n_tensors, sizeof *file->by_name);
    if (file->tensors == NULL || file->by_name == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "%s: no memory for the directory",
                       pe_path_tail(file->path));
    }
    uint64_t n = 0;
    for (uint32_t i = 0; i < file->n_parts; i++) {
        pe_gguf *gguf = &file->parts[i].gguf;
        for (uint64_t j = 0; j < gguf->n_tensors; j++) {
            gguf->tensors[j].part = i;
            file->tensors[n] = &gguf->tensors[j];
            file->by_name[n++] = &gguf->tensors[j];
        }
    }
    qsort(file->by_name, (size_t)n, sizeof *file->by_name, compare_tensors);
    for (uint64_t i = 1; i < n; i++) {
        if (compare_tensors(&file->by_name[i - 1], &file->by_name[i]) == 0) {
            const pe_tensor_info *twice = file->by_name[i];
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: %.*s: expected each tensor once, found it twice",
                           pe_path_tail(file->path), PE_QUOTE(twice->name, twice->name_bytes));
        }
    }
    return PE_OK;
}

/* ---- parts ------------------------------------------------------------ */

static pe_status open_part(pe_file *file, const char *path, pe_error *err) {
    part *p = &file->parts[file->n_parts];
    PE_TRY(pe_map_open(&p->map, path, err));
    file->n_parts++;  // from here on pe_file_close undoes it
    return pe_gguf_read(&p->gguf, p->map.data, p->map.n_bytes, pe_path_tail(path), err);
}

/* A key of one part as a number; absent: the default. */
static pe_status part_u32(uint32_t *out, const part *p, const char *key, uint32_t absent,
                          pe_error *err) {
    *out = absent;
    const size_t n = strlen(key);
    for (uint64_t i = 0; i < p->gguf.n_meta; i++) {
        const pe_meta *meta = &p->gguf.meta[i];
        if (meta->key_bytes == n && memcmp(meta->key, key, n) == 0) {
            return pe_meta_get_u32(out, meta, err);
        }
    }
    return PE_OK;
}

/* Checks that the part opened as number i says so itself. */
static pe_status check_part(const pe_file *file, uint32_t i, uint32_t n_parts, const char *path,
                            pe_error *err) {
    uint32_t number;
    uint32_t count;
    PE_TRY(part_u32(&number, &file->parts[i], "split.no", 0, err));
    PE_TRY(part_u32(&count, &file->parts[i], "split.count", 0, err));
    if (number != i || count != n_parts) {
        return pe_fail(err, PE_ERR_FORMAT, "%s: expected part %u of %u, found part %u of %u",
                       pe_path_tail(path), i + 1, n_parts, number + 1, count);
    }
    return PE_OK;
}

/* Opens parts 2 to n_parts beside the first. */
static pe_status open_rest(pe_file *file, uint32_t n_parts, pe_error *err) {
    char suffix[32];
    snprintf(suffix, sizeof suffix, "-00001-of-%05u.gguf", n_parts);
    const size_t n_path = strlen(file->path);
    const size_t n_suffix = strlen(suffix);
    if (n_path < n_suffix || strcmp(file->path + n_path - n_suffix, suffix) != 0) {
        return pe_fail(err, PE_ERR_ARG,
                       "%s: expected the first part of a split model, named ...%s, found another"
                       " name or part",
                       pe_path_tail(file->path), suffix);
    }
    PE_TRY(check_part(file, 0, n_parts, file->path, err));
    part *grown = pe_mem_zalloc(n_parts, sizeof *grown);
    char *path = pe_mem_alloc(n_path + 1, 1);
    pe_status status = PE_OK;
    if (grown == NULL || path == NULL) {
        pe_mem_free(grown);
        status = pe_fail(err, PE_ERR_NOMEM, "%s: no memory for %u parts", pe_path_tail(file->path),
                         n_parts);
    } else {
        grown[0] = file->parts[0];
        pe_mem_free(file->parts);
        file->parts = grown;
        memcpy(path, file->path, n_path + 1);
    }
    for (uint32_t i = 1; i < n_parts && status == PE_OK; i++) {
        snprintf(path + n_path - n_suffix, n_suffix + 1, "-%05u-of-%05u.gguf", i + 1, n_parts);
        status = open_part(file, path, err);
        if (status == PE_OK) {
            status = check_part(file, i, n_parts, path, err);
        }
    }
    pe_mem_free(path);
    return status;
}

static pe_status open_all(pe_file *file, const char *path, pe_error *err) {
    const size_t n = strlen(path);
    file->path = pe_mem_alloc(n + 1, 1);
    file->parts = pe_mem_zalloc(1, sizeof *file->parts);
    if (file->path == NULL || file->parts == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "%s: no memory to open it", pe_path_tail(path));
    }
    memcpy(file->path, path, n + 1);
    PE_TRY(open_part(file, path, err));
    uint32_t n_parts;
    uint32_t n_promised;
    PE_TRY(part_u32(&n_parts, &file->parts[0], "split.count", 0, err));
    if (n_parts > MAX_PARTS) {
        return pe_fail(err, PE_ERR_FORMAT, "%s: split.count: expected at most %u, found %u",
                       pe_path_tail(path), MAX_PARTS, n_parts);
    }
    if (n_parts > 1) {
        PE_TRY(open_rest(file, n_parts, err));
    }
    PE_TRY(index_meta(file, err));
    PE_TRY(index_tensors(file, err));
    PE_TRY(part_u32(&n_promised, &file->parts[0], "split.tensors.count", (uint32_t)file->n_tensors,
                    err));
    if (n_promised != file->n_tensors) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: split.tensors.count: expected %u tensors in all parts, found %" PRIu64,
                       pe_path_tail(path), n_promised, file->n_tensors);
    }
    return PE_OK;
}

/* ---- the public calls ------------------------------------------------- */

pe_status pe_file_open(pe_file **out_file, const char *path, pe_error *err) {
    *out_file = NULL;
    pe_file *file = pe_mem_zalloc(1, sizeof *file);
    if (file == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "%s: no memory to open it", pe_path_tail(path));
    }
    atomic_init(&file->n_references, 1);
    const pe_status status = open_all(file, path, err);
    if (status != PE_OK) {
        pe_file_close(file);
        return status;
    }
    *out_file = file;
    return PE_OK;
}

pe_file *pe_file_acquire(pe_file *file) {
    atomic_fetch_add(&file->n_references, 1);
    return file;
}

void pe_file_close(pe_file *file) {
    if (file == NULL || atomic_fetch_sub(&file->n_references, 1) != 1) {
        return;
    }
    for (uint32_t i = 0; i < file->n_parts; i++) {
        pe_gguf_free(&file->parts[i].gguf);
        pe_map_close(&file->parts[i].map);
    }
    pe_mem_free(file->parts);
    pe_mem_free(file->tensors);
    pe_mem_free(file->by_name);
    pe_mem_free(file->meta_by_key);
    pe_mem_free(file->path);
    pe_mem_free(file);
}

const char *pe_file_path(const pe_file *file) {
    return pe_path_tail(file->path);
}

void pe_file_describe(pe_file_info *out_info, const pe_file *file) {
    *out_info = (pe_file_info){
        .version = file->parts[0].gguf.version,
        .n_parts = file->n_parts,
        .n_meta = file->parts[0].gguf.n_meta,
        .n_tensors = file->n_tensors,
    };
    for (uint32_t i = 0; i < file->n_parts; i++) {
        out_info->n_bytes += file->parts[i].map.n_bytes;
    }
    for (uint64_t i = 0; i < file->n_tensors; i++) {
        out_info->tensor_bytes += file->tensors[i]->n_bytes;
    }
}

pe_status pe_file_meta(pe_meta *out_meta, const pe_file *file, uint64_t index, pe_error *err) {
    const uint64_t n = file->parts[0].gguf.n_meta;
    if (index >= n) {
        return pe_fail(err, PE_ERR_ARG,
                       "metadata: expected an index below %" PRIu64 ", found %" PRIu64, n, index);
    }
    *out_meta = file->parts[0].gguf.meta[index];
    return PE_OK;
}

pe_status pe_file_tensor(pe_tensor_info *out_tensor, const pe_file *file, uint64_t index,
                         pe_error *err) {
    if (index >= file->n_tensors) {
        return pe_fail(err, PE_ERR_ARG,
                       "tensors: expected an index below %" PRIu64 ", found %" PRIu64,
                       file->n_tensors, index);
    }
    *out_tensor = *file->tensors[index];
    return PE_OK;
}

const pe_tensor_info *pe_file_tensor_at(const pe_file *file, uint64_t index) {
    return file->tensors[index];
}
