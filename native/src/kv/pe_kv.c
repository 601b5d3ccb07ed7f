#include "pe_kv.h"

#include <inttypes.h>

#include "pe_f16.h"
#include "pe_mem.h"

struct pe_page {
    uint64_t n_references;
    uint8_t *data;
};

static uint64_t item_bytes(pe_kv_type type) {
    return type == PE_KV_F32 ? sizeof(float) : sizeof(pe_f16);
}

pe_status pe_kv_pool_init(pe_kv_pool *pool, const pe_kv_shape *shape, uint64_t max_bytes,
                          pe_error *err) {
    *pool = (pe_kv_pool){.shape = *shape, .max_bytes = max_bytes};
    uint64_t n_heads;
    const uint64_t widths = (uint64_t)shape->d_k + shape->d_v;
    if (!pe_mul_u64(&pool->head_bytes, widths, PE_PAGE_TOKENS * item_bytes(shape->type)) ||
        !pe_mul_u64(&n_heads, shape->n_layers, shape->n_kv_heads) ||
        !pe_mul_u64(&pool->page_bytes, pool->head_bytes, n_heads)) {
        return pe_fail(err, PE_ERR_ARG,
                       "KV page: expected a size that fits 64 bits, found %u layers of %u heads"
                       " of %" PRIu64 " values",
                       shape->n_layers, shape->n_kv_heads, widths);
    }
    return PE_OK;
}

/* ---- pages ------------------------------------------------------------ */

static pe_status page_new(pe_page **out_page, pe_kv_pool *pool, pe_error *err) {
    const uint64_t used = pool->n_pages * pool->page_bytes;
    if (used > pool->max_bytes || pool->page_bytes > pool->max_bytes - used) {
        return pe_fail(err, PE_ERR_NOMEM,
                       "KV cache: expected to stay within %" PRIu64 " bytes, found %" PRIu64
                       " in use and a page of %" PRIu64 " needed",
                       pool->max_bytes, used, pool->page_bytes);
    }
    pe_page *page = pe_mem_zalloc(1, sizeof *page);
    // Zeroed: kernels load whole pages, and what lies there must be numbers.
    uint8_t *data = pe_mem_zalloc(1, pool->page_bytes);
    if (page == NULL || data == NULL) {
        pe_mem_free(page);
        pe_mem_free(data);
        return pe_fail(err, PE_ERR_NOMEM,
                       "KV cache: no memory for a page of %" PRIu64 " bytes beside the %" PRIu64
                       " in use",
                       pool->page_bytes, used);
    }
    *page = (pe_page){.n_references = 1, .data = data};
    pool->n_pages++;
    pool->n_pages_peak = PE_MAX(pool->n_pages_peak, pool->n_pages);
    *out_page = page;
    return PE_OK;
}

static void page_release(pe_kv_pool *pool, pe_page *page) {
    if (--page->n_references == 0) {
        pe_mem_free(page->data);
        pe_mem_free(page);
        pool->n_pages--;
    }
}

/* ---- tables ----------------------------------------------------------- */

static pe_status grow(pe_kv_table *table, uint64_t n_pages, pe_error *err) {
    if (n_pages <= table->capacity) {
        return PE_OK;
    }
    const uint64_t capacity = PE_MAX(n_pages, 2 * table->capacity);
    pe_page **pages = pe_mem_alloc(capacity, sizeof(pe_page *));
    if (pages == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "KV cache: no memory for a table of %" PRIu64 " pages",
                       capacity);
    }
    if (table->n_pages > 0) {
        memcpy(pages, table->pages, table->n_pages * sizeof(pe_page *));
    }
    pe_mem_free(table->pages);
    table->pages = pages;
    table->capacity = capacity;
    return PE_OK;
}

static pe_status make_writable(pe_kv_pool *pool, pe_page **page, pe_error *err) {
    if ((*page)->n_references == 1) {
        return PE_OK;
    }
    pe_page *copy;
    PE_TRY(page_new(&copy, pool, err));
    memcpy(copy->data, (*page)->data, pool->page_bytes);
    page_release(pool, *page);
    *page = copy;
    return PE_OK;
}

pe_status pe_kv_reserve(pe_kv_pool *pool, pe_kv_table *table, uint64_t begin, uint64_t end,
                        pe_error *err) {
    const uint64_t n_before = table->n_pages;
    const uint64_t n_needed = pe_ceil_div(end, PE_PAGE_TOKENS);
    PE_TRY(grow(table, n_needed, err));
    for (uint64_t i = begin / PE_PAGE_TOKENS; i < PE_MIN(n_needed, n_before); i++) {
        PE_TRY(make_writable(pool, &table->pages[i], err));
    }
    while (table->n_pages < n_needed) {
        const pe_status status = page_new(&table->pages[table->n_pages], pool, err);
        if (status != PE_OK) {
            pe_kv_truncate(pool, table, n_before * PE_PAGE_TOKENS);
            return status;
        }
        table->n_pages++;
    }
    return PE_OK;
}

void pe_kv_truncate(pe_kv_pool *pool, pe_kv_table *table, uint64_t n_positions) {
    const uint64_t n_kept = pe_ceil_div(n_positions, PE_PAGE_TOKENS);
    while (table->n_pages > n_kept) {
        page_release(pool, table->pages[--table->n_pages]);
    }
}

void pe_kv_clear(pe_kv_pool *pool, pe_kv_table *table) {
    pe_kv_truncate(pool, table, 0);
    pe_mem_free(table->pages);
    *table = (pe_kv_table){0};
}

pe_status pe_kv_share(pe_kv_table *table, const pe_kv_table *from, pe_error *err) {
    PE_TRY(grow(table, from->n_pages, err));
    for (uint64_t i = 0; i < from->n_pages; i++) {
        from->pages[i]->n_references++;
        table->pages[i] = from->pages[i];
    }
    table->n_pages = from->n_pages;
    return PE_OK;
}

/* ---- contents --------------------------------------------------------- */

static uint8_t *head_data(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                          uint32_t layer, uint32_t head) {
    const uint64_t i_head = (uint64_t)layer * pool->shape.n_kv_heads + head;
    return table->pages[i_page]->data + i_head * pool->head_bytes;
}

const void *pe_kv_keys(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                       uint32_t layer, uint32_t head) {
    return head_data(pool, table, i_page, layer, head);
}

static uint64_t keys_bytes(const pe_kv_shape *shape) {
    return (uint64_t)shape->d_k * PE_PAGE_TOKENS * item_bytes(shape->type);
}

const void *pe_kv_values(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                         uint32_t layer, uint32_t head) {
    return head_data(pool, table, i_page, layer, head) + keys_bytes(&pool->shape);
}

/* Writes n numbers, stride items apart. */
static void store(void *data, pe_kv_type type, size_t first, size_t stride, const float *x,
                  size_t n) {
    if (type == PE_KV_F32) {
        for (size_t i = 0; i < n; i++) {
            ((float *)data)[first + i * stride] = x[i];
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            ((pe_f16 *)data)[first + i * stride] = pe_f16_from_f32(x[i]);
        }
    }
}

void pe_kv_store(const pe_kv_pool *pool, const pe_kv_table *table, uint32_t layer,
                 uint64_t position, const float *k, const float *v) {
    const pe_kv_shape *shape = &pool->shape;
    const size_t slot = position % PE_PAGE_TOKENS;
    for (uint32_t h = 0; h < shape->n_kv_heads; h++) {
        uint8_t *data = head_data(pool, table, position / PE_PAGE_TOKENS, layer, h);
        store(data, shape->type, slot, PE_PAGE_TOKENS, k + (size_t)h * shape->d_k, shape->d_k);
        store(data + keys_bytes(shape), shape->type, slot * shape->d_v, 1,
              v + (size_t)h * shape->d_v, shape->d_v);
    }
}
