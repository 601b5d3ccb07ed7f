#define _GNU_SOURCE
#include "pe_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

pe_status pe_map_open(pe_map *out_map, const char *path, pe_error *err) {
    *out_map = (pe_map){0};
    // O_NONBLOCK: opening a FIFO by mistake must fail below, not hang here.
    const char *name = pe_path_tail(path);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return pe_fail(err, PE_ERR_IO, "%s: cannot open: %s", name, strerror(errno));
    }
    struct stat st;
    pe_status status = PE_OK;
    if (fstat(fd, &st) != 0) {
        status = pe_fail(err, PE_ERR_IO, "%s: cannot read its size: %s", name, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        status = pe_fail(err, PE_ERR_IO, "%s: expected a file, found a %s", name,
                         S_ISDIR(st.st_mode) ? "directory" : "device or pipe");
    } else if (st.st_size <= 0) {
        status = pe_fail(err, PE_ERR_FORMAT, "%s: expected a GGUF file, found an empty file", name);
    } else if ((uint64_t)st.st_size > SIZE_MAX) {
        status = pe_fail(err, PE_ERR_IO, "%s: %lld bytes do not fit this machine's addresses", name,
                         (long long)st.st_size);
    } else {
        void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            status = pe_fail(err, PE_ERR_IO, "%s: cannot map %lld bytes: %s", name,
                             (long long)st.st_size, strerror(errno));
        } else {
            out_map->data = data;
            out_map->n_bytes = (uint64_t)st.st_size;
        }
    }
    close(fd);
    return status;
}

void pe_map_close(pe_map *map) {
    if (map->data != NULL) {
        munmap((void *)(uintptr_t)map->data, (size_t)map->n_bytes);
        *map = (pe_map){0};
    }
}

void pe_map_forget(const void *data, uint64_t n_bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + (uintptr_t)n_bytes) / page * page;
    if (begin < end) {
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

#define HUGE_PAGE ((uintptr_t)2 << 20)

void *pe_map_anonymous(uint64_t n_bytes) {
    if (n_bytes > SIZE_MAX - 2 * HUGE_PAGE) {
        return NULL;
    }
    // More than asked, of which the borders are given back.
    const size_t rounded = pe_ceil_div(n_bytes, HUGE_PAGE) * HUGE_PAGE;
    uint8_t *data = mmap(NULL, rounded + HUGE_PAGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        return NULL;
    }
    const size_t n_before = (HUGE_PAGE - (uintptr_t)data % HUGE_PAGE) % HUGE_PAGE;
    if (n_before > 0) {
        munmap(data, n_before);
    }
    munmap(data + n_before + rounded, HUGE_PAGE - n_before);
#if defined(MADV_HUGEPAGE)
    (void)madvise(data + n_before, rounded, MADV_HUGEPAGE);
#endif
    return data + n_before;
}

void pe_map_free_anonymous(void *memory, uint64_t n_bytes) {
    if (memory != NULL) {
        munmap(memory, (size_t)(pe_ceil_div(n_bytes, HUGE_PAGE) * HUGE_PAGE));
    }
}
