#include "pe_mem.h"

#include <stdlib.h>

void *pe_mem_alloc(uint64_t n_items, uint64_t item_bytes) {
    uint64_t n_bytes;
    if (!pe_mul_u64(&n_bytes, n_items, item_bytes) || n_bytes > SIZE_MAX - PE_CACHE_LINE) {
        return NULL;
    }
    const size_t rounded =
        (size_t)(pe_ceil_div(PE_MAX(n_bytes, 1u), PE_CACHE_LINE) * PE_CACHE_LINE);
    return aligned_alloc(PE_CACHE_LINE, rounded);
}

void *pe_mem_zalloc(uint64_t n_items, uint64_t item_bytes) {
    void *block = pe_mem_alloc(n_items, item_bytes);
    if (block != NULL) {
        memset(block, 0, (size_t)(n_items * item_bytes));
    }
    return block;
}

void pe_mem_free(void *block) {
    free(block);
}
