/* Heap memory with overflow checks; every block starts on a cache line. */
#ifndef PE_MEM_H
#define PE_MEM_H

#include "pe_base.h"

/* n_items items of item_bytes each, or NULL when the product overflows or memory
 * is spent. A product of zero gives a block of one line, never NULL.
 * owner    the caller's, freed with pe_mem_free */
void *pe_mem_alloc(uint64_t n_items, uint64_t item_bytes);

/* The same, all bytes zero. */
void *pe_mem_zalloc(uint64_t n_items, uint64_t item_bytes);

/* NULL is allowed. */
void pe_mem_free(void *block);

#endif
