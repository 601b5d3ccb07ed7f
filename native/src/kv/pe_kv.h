/* The paged KV cache: keys and values in pages of PE_PAGE_TOKENS positions.
 *
 * One page holds its positions for every layer that has keys and values of its own, and
 * every KV head:
 *
 *     layer 0: head 0: keys, values; head 1: ...
 *     layer 1: ...
 *
 * Layers may differ in heads and widths.
 * pe_page.h says how keys and values lie there. What goes into a quantized type is
 * rotated first (pe_rotate), so that a block's scale is not set by one dimension
 * that is always large: scores are the same when queries are rotated too, and sums
 * of values when they are rotated back. A table lists one session's pages in order.
 * Pages are counted references: forked tables share them, and a page is copied
 * before it is written while shared. Pages are taken as positions fill and freed
 * when the last reference goes.
 *
 * Knows nothing of models or sessions; the caller serialises all calls on one pool
 * and its tables, except pe_kv_store and the pe_kv_ readers, which may run in
 * parallel for different positions between a reserve and the next change.
 */
#ifndef PE_KV_H
#define PE_KV_H

#include "pe_budget.h"
#include "pe_page.h"
#include "pe_rotate.h"

typedef struct pe_page pe_page;

typedef struct pe_kv_layer {
    uint32_t n_kv_heads;
    uint32_t d_k;
    uint32_t d_v;
    bool values_are_keys;  // a value is the last d_v numbers of its key and not stored
} pe_kv_layer;

typedef struct pe_kv_shape {
    uint32_t n_layers;  // those that have keys and values of their own
    const pe_kv_layer *layers;
    pe_kv_type type;
} pe_kv_shape;

/* Where a layer lies in a page. */
typedef struct pe_kv_room {
    pe_kv_layer shape;
    uint64_t first;       // byte
    uint64_t key_bytes;   // of one head
    uint64_t head_bytes;  // its keys, and values where they are stored
} pe_kv_room;

typedef struct pe_kv_pool {
    pe_kv_type type;
    pe_kv_room *layers;
    uint64_t page_bytes;
    uint64_t n_pages;
    pe_budget budget;
} pe_kv_pool;

typedef struct pe_kv_table {
    pe_page **pages;
    uint64_t n_pages;
    uint64_t capacity;
} pe_kv_table;

/* owner    pool is freed with pe_kv_pool_free once its tables are cleared; shape may go
 * errors   PE_ERR_ARG when a page would not fit 64 bits, PE_ERR_NOMEM */
pe_status pe_kv_pool_init(pe_kv_pool *pool, const pe_kv_shape *shape, uint64_t max_bytes,
                          pe_error *err);

/* A zeroed pool is allowed. */
void pe_kv_pool_free(pe_kv_pool *pool);

/* Makes positions [begin, end) writable: takes missing pages, copies shared ones.
 * errors   PE_ERR_NOMEM when memory or the pool's budget is spent; the table then
 *          holds the pages it held, some of them perhaps copied */
pe_status pe_kv_reserve(pe_kv_pool *pool, pe_kv_table *table, uint64_t begin, uint64_t end,
                        pe_error *err);

/* Releases the pages behind the first n_positions. */
void pe_kv_truncate(pe_kv_pool *pool, pe_kv_table *table, uint64_t n_positions);

/* Releases everything and leaves an empty table. */
void pe_kv_clear(pe_kv_pool *pool, pe_kv_table *table);

/* Makes an empty table share all pages of another.
 * errors   PE_ERR_NOMEM, the table stays empty */
pe_status pe_kv_share(pe_kv_table *table, const pe_kv_table *from, pe_error *err);

/* Runs in which keys and values are rotated; the same for both where they are one. */
static inline uint64_t pe_kv_key_run(const pe_kv_layer *shape) {
    return pe_rotate_run(shape->d_k | (shape->values_are_keys ? shape->d_v : 0));
}
static inline uint64_t pe_kv_value_run(const pe_kv_layer *shape) {
    return pe_rotate_run(shape->d_v | (shape->values_are_keys ? shape->d_k : 0));
}

/* Whether keys and values of the type are stored rotated. */
static inline bool pe_kv_rotates(pe_kv_type type) {
    return type == PE_KV_Q8_0 || type == PE_KV_Q4_0;
}

/* Writes one position of one layer.
 * shape    k: [n_kv_heads][d_k], v: [n_kv_heads][d_v], not read where values are keys
 * alias    k and v are rotated in place where the type asks for it
 * numeric  quantized types round as pe_quantize does; a block that holds NaN or
 *          infinity has the scale NaN, one beyond the range of fp16 scales infinity
 * errors   cannot fail: the position is reserved */
void pe_kv_store(const pe_kv_pool *pool, const pe_kv_table *table, uint32_t layer,
                 uint64_t position, float *k, float *v);

/* The keys and values of a page for one layer and head; values only where they are stored. */
const void *pe_kv_keys(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                       uint32_t layer, uint32_t head);
const void *pe_kv_values(const pe_kv_pool *pool, const pe_kv_table *table, uint64_t i_page,
                         uint32_t layer, uint32_t head);

#endif
