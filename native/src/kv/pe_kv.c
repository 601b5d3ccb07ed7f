#include "pe_kv.h"

#include <inttypes.h>

#include "pe_mem.h"
#include "pe_quant.h"

struct pe_page {
    uint64_t n_references;
    uint8_t *data;
};

pe_status pe_kv_pool_init(pe_kv_pool *pool, const pe_kv_shape *shape, uint64_t max_bytes,
                          pe_error *err) {
    *pool = (pe_kv_pool){.type = shape->type, .budget = {.max_bytes = max_bytes}};
    pool->layers = pe_mem_zalloc(shape->n_layers, sizeof *pool->layers);
    if (pool->layers == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "KV cache: no memory for %u layers", shape->n_layers);
    }
    for (uint32_t i = 0; i < shape->n_layers; i++) {
        const pe_kv_layer *layer = &shape->layers[i];
        pe_kv_room *room = &pool->layers[i];
        *room = (pe_kv_room){.shape = *layer,
                             .first = pool->page_bytes,
                             .key_bytes = pe_page_bytes(shape->type, layer->d_k)};
        room->head_bytes = room->key_bytes;
        room->head_bytes += layer->values_are_keys ? 0 : pe_page_bytes(shape->type, layer->d_v);
        uint64_t n_bytes;
        if (!pe_mul_u64(&n_bytes, room->head_bytes, layer->n_kv_heads) ||
            !pe_add_u64(&pool->page_bytes, pool->page_bytes, n_bytes)) {
            pe_kv_pool_free(pool);
            return pe_fail(err, PE_ERR_ARG,
                           "KV page: expected a size that fits 64 bits, found %u layers, one of"
                           " %u heads of %u and %u values",
                           shape->n_layers, layer->n_kv_heads, layer->d_k, layer->d_v);
        }
    }
    return PE_OK;
}

void pe_kv_pool_free(pe_kv_pool *pool) {
    pe_mem_free(pool->layers);
    *pool = (pe_kv_pool){0};
}

/* ---- pages ------------------------------------------------------------ */

static pe_status page_new(pe_page **out_page, pe_kv_pool *pool, pe_error *err) {
    pe_page *page = pe_mem_zalloc(1, sizeof *page);
    if (page == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "KV cache: no memory for another page");
    }
    // Zeroed: kernels load whole pages, and what lies there must be numbers.
    void *data;
    const pe_status status = pe_budget_take(&data, &pool->budget, pool->page_bytes, "page", err);
    if (status != PE_OK) {
        pe_mem_free(page);
        return status;
    }
    *page = (pe_page){.n_references = 1, .data = data};
    pool->n_pages++;
    *out_page = page;
    return PE_OK;
}

static void page_release(pe_kv_pool *pool, pe_page *page) {
    if (--page->n_references == 0) {
        pe_budget_give(&pool->budget, page->data, pool->page_bytes);
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
    const pe_kv_room *room = &pool->layers[layer];
    return table->pages[i_page]->data + room->first + head * room->head_bytes;
}

const void *pe_kv_keys(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                       uint32_t layer, uint32_t head) {
    return head_data(pool, table, i_page, layer, head);
}

const void *pe_kv_values(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                         uint32_t layer, uint32_t head) {
    return head_data(pool, table, i_page, layer, head) + pool->layers[layer].key_bytes;
}

/* Writes n floats, stride items apart. */
static void store_floats(void *data, pe_kv_type type, size_t first, size_t stride, const float *x,
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

/* Up to 32 numbers as one block; what is not a number makes all of it NaN. */
static void pack(void *out, pe_dtype dtype, const float *x, size_t n) {
    float padded[PE_BLOCK] = {0};
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        padded[i] = x[i];
        finite = finite && pe_f32_is_finite(x[i]);
    }
    if (!finite) {
        memset(padded, 0, sizeof padded);
    }
    pe_dtype_find(dtype)->pack_block(out, padded);
    if (!finite) {
        const pe_f16 nan = 0x7e00;
        memcpy(out, &nan, sizeof nan);  // both types begin with their scale
    }
}

/* Writes n numbers of the position in slot as blocks, a block's bytes stride apart,
 * blocks one behind the other. */
static void store_blocks(uint8_t *data, pe_kv_type type, size_t slot, size_t first, size_t stride,
                         const float *x, size_t n) {
    pe_f16 *scales = (pe_f16 *)data;
    uint8_t *integers = data + pe_page_scale_bytes(type, n);
    for (size_t b = 0; b * PE_BLOCK < n; b++) {
        const size_t n_here = PE_MIN(n - b * PE_BLOCK, (size_t)PE_BLOCK);
        pe_block_q8_0 q8;
        pe_block_q4_0 q4;
        if (type == PE_KV_Q8_0) {
            pack(&q8, PE_DTYPE_Q8_0, x + b * PE_BLOCK, n_here);
        } else {
            pack(&q4, PE_DTYPE_Q4_0, x + b * PE_BLOCK, n_here);
        }
        scales[b * PE_PAGE_TOKENS + slot] = type == PE_KV_Q8_0 ? q8.d : q4.d;
        const size_t n_bytes = type == PE_KV_Q8_0 ? sizeof q8.q : sizeof q4.q;
        for (size_t i = 0; i < n_bytes; i++) {
            integers[first + (b * n_bytes + i) * stride] =
                type == PE_KV_Q8_0 ? (uint8_t)q8.q[i] : q4.q[i];
        }
    }
}

void pe_kv_store(const pe_kv_pool *pool, const pe_kv_table *table, uint32_t layer,
                 uint64_t position, float *k, float *v) {
    const pe_kv_layer *shape = &pool->layers[layer].shape;
    const pe_kv_type type = pool->type;
    const size_t slot = position % PE_PAGE_TOKENS;
    const size_t n_values = shape->values_are_keys ? 0 : shape->d_v;
    for (uint32_t h = 0; h < shape->n_kv_heads; h++, k += shape->d_k, v += shape->d_v) {
        uint8_t *keys = head_data(pool, table, position / PE_PAGE_TOKENS, layer, h);
        uint8_t *values = keys + pool->layers[layer].key_bytes;
        if (!pe_kv_rotates(type)) {
            store_floats(keys, type, slot, PE_PAGE_TOKENS, k, shape->d_k);
            store_floats(values, type, slot * shape->d_v, 1, v, n_values);
            continue;
        }
        const size_t width = pe_page_width(shape->d_v);
        const size_t row_bytes = type == PE_KV_Q8_0 ? width : width / 2;
        pe_rotate(k, shape->d_k, pe_kv_key_run(shape));
        pe_rotate(v, n_values, pe_kv_value_run(shape));
        store_blocks(keys, type, slot, slot, PE_PAGE_TOKENS, k, shape->d_k);
        store_blocks(values, type, slot, slot * row_bytes, 1, v, n_values);
    }
}
