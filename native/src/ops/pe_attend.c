#include "pe_attend.h"

#include <math.h>

#include "pe_rotate.h"

/* Queries that go through a page together: enough that opening it (about 1 operation
 * for its 2 n of work) stays small, few enough that they and the page share the
 * first-level cache at a head width of 64. */
#define TILE_QUERIES 64u

/* Chunks per thread that even out the different lengths of tiles. */
#define CHUNKS_PER_THREAD 4u

typedef struct attend_job {
    const pe_ops *ops;
    const pe_kv_pool *kv;
    uint32_t layer;
    const pe_kv_layer *shape;  // its
    float *out;
    const pe_queries *queries;
    const pe_attend_room *room;
    uint32_t n_tiles;
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
            pe_rotate(q, d_k);
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
            pe_rotate(out, d_v);
        }
    }
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
 * both in a page and where it is opened. */
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
        const uint64_t past = (uint64_t)places[begin + i / g->n_heads].position + 1 - page->first;
        n_valid[i] = (uint32_t)(PE_MIN(past, PE_PAGE_TOKENS) - from);
    }
    job->ops->kernels.attend(softmax + i_first, b->acc + i_first * d_v,
                             b->q + i_first * (uint64_t)shape->d_k, n_valid, n, page->keys + from,
                             page->values + from * d_v, shape->d_k, d_v, job->queries->scale,
                             job->queries->softcap);
}

/* The first position that a token sees. */
static uint64_t first_seen(const attend_job *job, const pe_place *place) {
    const uint64_t end = (uint64_t)place->position + 1;
    const uint32_t window = job->queries->window;
    return window == 0 || end <= window ? 0 : end - window;
}

static void attend_page(const attend_job *job, const group *g, const bench *b, pe_softmax *softmax,
                        uint64_t i_page, uint64_t next) {
    const pe_kv_layer *shape = job->shape;
    const pe_kernels *kernels = &job->ops->kernels;
    const pe_place *places = job->queries->places + g->tile.first;
    const pe_kv_table *table = places->table;
    const opened page = {
        .keys = kernels->open_keys[job->kv->type](
            b->keys, pe_kv_keys(job->kv, table, i_page, job->layer, g->kv_head),
            pe_kv_keys(job->kv, table, next, job->layer, g->kv_head), shape->d_k),
        .values = kernels->open_values[job->kv->type](
            b->values, pe_kv_values(job->kv, table, i_page, job->layer, g->kv_head),
            pe_kv_values(job->kv, table, next, job->layer, g->kv_head), shape->d_v),
        .first = i_page * PE_PAGE_TOKENS};
    // Positions rise: first tokens that stand in front of the page, then those that see it
    // from its first position on, then, one by one, those whose window begins inside it,
    // then those whose window lies behind it.
    uint32_t begin = 0;
    while (begin < g->tile.n_tokens && places[begin].position < page.first) {
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
    const uint64_t last = places[g->tile.n_tokens - 1].position / PE_PAGE_TOKENS;
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
    group g = {.kv_head = i_chunk % n_kv_heads};
    // The last tiles see the most positions: they go first.
    g.tile = job->room->tiles[job->n_tiles - 1 - i_chunk / n_kv_heads];
    for (uint32_t first = 0; first < per_kv_head; first += g.n_heads) {
        g.head = g.kv_head * per_kv_head + first;
        g.n_heads = PE_MIN(per_kv_head - first, TILE_QUERIES);
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
    pe_pool_run(ops->pool, attend_chunk, &job, job.n_tiles * n_kv_heads);
}
