#include "pe_attend.h"

#include <math.h>

/* Queries that go through a page together: enough that opening it (about 1 operation
 * for its 2 n of work) stays small, few enough that they and the page share the
 * first-level cache at a head width of 64. */
#define TILE_QUERIES 64u

/* Chunks per thread that even out the different lengths of tiles. */
#define CHUNKS_PER_THREAD 4u

/* Query heads for which opening a page is worth while: the work of each is about as much. */
#define LEAST_HEADS 4u

typedef struct attend_job {
    const pe_ops *ops;
    const pe_kv_pool *kv;
    uint32_t layer;
    const pe_kv_layer *shape;  // its
    float *out;
    const pe_queries *queries;
    const pe_attend_room *room;
    uint32_t n_tiles;
    uint32_t n_heads;   // of a chunk
    uint32_t n_chunks;  // of a tile and KV head
} attend_job;

/* One thread's share of the room. */
typedef struct bench {
    float *q;       // [TILE_QUERIES][d_k]
    float *acc;     // [TILE_QUERIES][d_v rounded up]
    float *keys;    // [d_k][PE_PAGE_TOKENS]
    float *values;  // [PE_PAGE_TOKENS][d_v rounded up]
} bench;

static uint64_t round_up(uint64_t d_v) {
    return pe_ceil_div(d_v, PE_LANES) * PE_LANES;
}

uint64_t pe_attend_room_floats(uint32_t d_k, uint32_t d_v) {
    return (TILE_QUERIES + PE_PAGE_TOKENS) * (d_k + round_up(d_v));
}

static bench bench_of(const attend_job *job, uint32_t i_thread) {
    const uint64_t d_k = job->shape->d_k;
    const uint64_t d_v = round_up(job->shape->d_v);
    bench b;
    b.q = job->room->floats + i_thread * job->room->n_floats;
    b.acc = b.q + TILE_QUERIES * d_k;
    b.keys = b.acc + TILE_QUERIES * d_v;
    b.values = b.keys + d_k * PE_PAGE_TOKENS;
    return b;
}

/* ---- one tile --------------------------------------------------------- */

/* Heads [head, head + n_heads) of a tile's tokens, n_queries in all, token by token. */
typedef struct group {
    pe_tile tile;
    uint32_t kv_head;
    uint32_t head;
    uint32_t n_heads;
    uint32_t n_queries;
} group;

/* Where query i of the group stands among all heads of the batch. */
static uint64_t row_of(const attend_job *job, const group *g, uint32_t i) {
    const uint64_t token = g->tile.first + i / g->n_heads;
    return token * job->queries->n_heads + g->head + i % g->n_heads;
}

static void gather(const attend_job *job, const group *g, float *q) {
    const uint64_t d_k = job->shape->d_k;
    for (uint32_t i = 0; i < g->n_queries; i++, q += d_k) {
        memcpy(q, job->queries->q + row_of(job, g, i) * d_k, d_k * sizeof *q);
        if (pe_kv_rotates(job->kv->type)) {
            pe_rotate(q, d_k, pe_kv_key_run(job->shape));
        }
    }
}

static void scatter(const attend_job *job, const group *g, const pe_softmax *softmax,
                    const float *acc) {
    const uint64_t d_v = job->shape->d_v;
    for (uint32_t i = 0; i < g->n_queries; i++, acc += round_up(d_v)) {
        float *out = job->out + row_of(job, g, i) * d_v;
        for (uint64_t d = 0; d < d_v; d++) {
            out[d] = acc[d] / softmax[i].sum;
        }
        if (pe_kv_rotates(job->kv->type)) {
            pe_rotate(out, d_v, pe_kv_value_run(job->shape));
        }
    }
}

/* The first position that a token sees. */
static uint64_t first_seen(const attend_job *job, const pe_place *place) {
    const uint64_t end = (uint64_t)place->position + 1;
    const uint32_t window = job->queries->window;
    return window == 0 || end <= window ? 0 : end - window;
}

/* The first that it does not see any more. */
static uint64_t end_seen(const attend_job *job, const pe_place *place) {
    return PE_MIN((uint64_t)place->position + 1 + job->queries->n_ahead, place->end);
}

/* What one call of the kernel needs. */
typedef struct opened {
    const float *keys;
    const float *values;
    uint64_t first;  // position
} opened;

/* Tokens [begin, end) of the tile against the page from position `from` of it on.
 *
 * The kernel reads whole rows of keys: from there on up to `from` floats past the last
 * row, whose scores nobody uses. They are in memory of ours: values follow the keys,
 * both in a page and where it is opened. (Where values are keys there is no window, and
 * `from` is 0.) */
static void attend_tokens(const attend_job *job, const group *g, const bench *b,
                          pe_softmax *softmax, const opened *page, uint32_t begin, uint32_t end,
                          uint64_t from) {
    const pe_kv_layer *shape = job->shape;
    const pe_place *places = job->queries->places + g->tile.first;
    const uint64_t d_v = round_up(shape->d_v);
    const uint32_t i_first = begin * g->n_heads;
    const uint32_t n = (end - begin) * g->n_heads;
    uint32_t n_valid[TILE_QUERIES];
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t past = end_seen(job, &places[begin + i / g->n_heads]) - page->first;
        n_valid[i] = (uint32_t)(PE_MIN(past, PE_PAGE_TOKENS) - from);
    }
    job->ops->kernels.attend(softmax + i_first, b->acc + i_first * d_v,
                             b->q + i_first * (uint64_t)shape->d_k, n_valid, n, page->keys + from,
                             page->values + from * d_v, shape->d_k, d_v, job->queries->scale,
                             job->queries->softcap);
}

/* Values of a page, which lie beside the keys or are their last dimensions. */
static const float *open_values(const attend_job *job, const group *g, const bench *b,
                                const float *keys, uint64_t i_page, uint64_t next) {
    const pe_kv_layer *shape = job->shape;
    const pe_kernels *kernels = &job->ops->kernels;
    const pe_kv_table *table = job->queries->places[g->tile.first].table;
    if (shape->values_are_keys) {
        const uint64_t first = shape->d_k - shape->d_v;
        kernels->turn_keys(b->values, keys + first * PE_PAGE_TOKENS, shape->d_v);
        return b->values;
    }
    return kernels->open_values[job->kv->type](
        b->values, pe_kv_values(job->kv, table, i_page, job->layer, g->kv_head),
        pe_kv_values(job->kv, table, next, job->layer, g->kv_head), shape->d_v);
}

static void attend_page(const attend_job *job, const group *g, const bench *b, pe_softmax *softmax,
                        uint64_t i_page, uint64_t next) {
    const pe_kv_layer *shape = job->shape;
    const pe_kernels *kernels = &job->ops->kernels;
    const pe_place *places = job->queries->places + g->tile.first;
    const pe_kv_table *table = places->table;
    opened page = {.keys = kernels->open_keys[job->kv->type](
                       b->keys, pe_kv_keys(job->kv, table, i_page, job->layer, g->kv_head),
                       pe_kv_keys(job->kv, table, next, job->layer, g->kv_head), shape->d_k),
                   .first = i_page * PE_PAGE_TOKENS};
    page.values = open_values(job, g, b, page.keys, i_page, next);
    // Positions rise: first tokens that see nothing of the page, then those that see it
    // from its first position on, then, one by one, those whose window begins inside it,
    // then those whose window lies behind it.
    uint32_t begin = 0;
    while (begin < g->tile.n_tokens && end_seen(job, &places[begin]) <= page.first) {
        begin++;
    }
    uint32_t end = begin;
    while (end < g->tile.n_tokens && first_seen(job, &places[end]) <= page.first) {
        end++;
    }
    if (end > begin) {
        attend_tokens(job, g, b, softmax, &page, begin, end, 0);
    }
    for (; end < g->tile.n_tokens; end++) {
        const uint64_t from = first_seen(job, &places[end]) - page.first;
        if (from >= PE_PAGE_TOKENS) {
            break;
        }
        attend_tokens(job, g, b, softmax, &page, end, end + 1, from);
    }
}

static void attend_group(const attend_job *job, const group *g, uint32_t i_thread) {
    const bench b = bench_of(job, i_thread);
    const pe_place *places = job->queries->places + g->tile.first;
    const float *sinks = job->queries->sinks;
    pe_softmax softmax[TILE_QUERIES];
    for (uint32_t i = 0; i < g->n_queries; i++) {
        softmax[i] = (pe_softmax){.max = -INFINITY, .sum = 0.0f};
        if (sinks != NULL) {
            softmax[i] = (pe_softmax){.max = sinks[g->head + i % g->n_heads], .sum = 1.0f};
        }
    }
    gather(job, g, b.q);
    memset(b.acc, 0, g->n_queries * round_up(job->shape->d_v) * sizeof *b.acc);
    const uint64_t last = (end_seen(job, &places[g->tile.n_tokens - 1]) - 1) / PE_PAGE_TOKENS;
    for (uint64_t page = first_seen(job, places) / PE_PAGE_TOKENS; page <= last; page++) {
        attend_page(job, g, &b, softmax, page, PE_MIN(page + 1, last));
    }
    scatter(job, g, softmax, b.acc);
}

/* ---- the batch -------------------------------------------------------- */

static void attend_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    const attend_job *job = arg;
    const uint32_t n_kv_heads = job->shape->n_kv_heads;
    const uint32_t per_kv_head = job->queries->n_heads / n_kv_heads;
    const uint32_t begin = i_chunk % job->n_chunks * job->n_heads;
    const uint32_t end = PE_MIN(begin + job->n_heads, per_kv_head);
    group g = {.kv_head = i_chunk / job->n_chunks % n_kv_heads};
    // The last tiles see the most positions: they go first.
    g.tile = job->room->tiles[job->n_tiles - 1 - i_chunk / job->n_chunks / n_kv_heads];
    for (uint32_t first = begin; first < end; first += g.n_heads) {
        g.head = g.kv_head * per_kv_head + first;
        g.n_heads = PE_MIN(end - first, TILE_QUERIES);
        g.n_queries = g.tile.n_tokens * g.n_heads;
        attend_group(job, &g, i_thread);
    }
}

/* Cuts the batch into tiles of one session each; gives their number. */
static uint32_t cut_tiles(pe_tile *tiles, const pe_queries *queries, uint32_t max_tokens) {
    uint32_t n_tiles = 0;
    for (uint32_t i = 0; i < queries->n_tokens; i++) {
        const bool fits = i > 0 && tiles[n_tiles - 1].n_tokens < max_tokens &&
                          queries->places[i].table == queries->places[i - 1].table;
        if (!fits) {
            tiles[n_tiles++] = (pe_tile){.first = i, .n_tokens = 0};
        }
        tiles[n_tiles - 1].n_tokens++;
    }
    return n_tiles;
}

/* Query heads of one KV head stay together, which opens its pages once, unless threads would
 * have nothing to do. */
static void cut_heads(attend_job *job, uint32_t per_kv_head, uint32_t n_units) {
    const uint32_t n_threads = pe_pool_n_threads(job->ops->pool);
    const uint32_t n_wanted = (uint32_t)pe_ceil_div(n_threads, n_units);
    job->n_heads = PE_MAX((uint32_t)pe_ceil_div(per_kv_head, n_wanted), LEAST_HEADS);
    job->n_heads = PE_MIN(job->n_heads, per_kv_head);
    job->n_chunks = (uint32_t)pe_ceil_div(per_kv_head, job->n_heads);
}

void pe_attend(const pe_ops *ops, const pe_kv_pool *kv, uint32_t layer, float *out,
               const pe_queries *queries, const pe_attend_room *room) {
    const pe_kv_layer *shape = &kv->layers[layer].shape;
    const uint32_t n_kv_heads = shape->n_kv_heads;
    const uint64_t n_units = queries->n_tokens * n_kv_heads;
    const uint64_t share = n_units / (CHUNKS_PER_THREAD * pe_pool_n_threads(ops->pool));
    const uint32_t fitting = PE_MAX(TILE_QUERIES / (queries->n_heads / n_kv_heads), 1u);
    attend_job job = {.ops = ops,
                      .kv = kv,
                      .layer = layer,
                      .shape = shape,
                      .out = out,
                      .queries = queries,
                      .room = room};
    job.n_tiles = cut_tiles(room->tiles, queries, PE_MAX((uint32_t)PE_MIN(share, fitting), 1u));
    if (job.n_tiles == 0) {
        return;  // nobody wants logits
    }
    cut_heads(&job, queries->n_heads / n_kv_heads, job.n_tiles * n_kv_heads);
    pe_pool_run(ops->pool, attend_chunk, &job, job.n_tiles * n_kv_heads * job.n_chunks);
}
