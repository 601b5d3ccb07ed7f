/* Attention of a batch over KV pages. */
#ifndef PE_ATTEND_H
#define PE_ATTEND_H

#include "pe_kv.h"
#include "pe_ops.h"

/* Where one token of the batch stands. */
typedef struct pe_place {
    const pe_kv_table *table;
    uint32_t position;
    uint32_t end;  // positions from there on are not seen: its own + 1, or the text's length
} pe_place;

/* Neighbouring tokens of one session that go through the pages together. */
typedef struct pe_tile {
    uint32_t first;
    uint32_t n_tokens;
} pe_tile;

/* Memory for the work of each thread. */
typedef struct pe_attend_room {
    float *floats;      // [n_threads][n_floats]
    uint64_t n_floats;  // pe_attend_room_floats of the model's widest heads
    pe_tile *tiles;     // [tokens of a batch]
} pe_attend_room;

/* Floats that a thread needs; a multiple of a cache line. */
uint64_t pe_attend_room_floats(uint32_t d_k, uint32_t d_v);

/* What asks: each head of each token of a batch. */
typedef struct pe_queries {
    const float *q;          // [n_tokens][n_heads][d_k]
    const pe_place *places;  // [n_tokens]
    size_t n_tokens;
    uint32_t n_heads;  // a multiple of the layer's n_kv_heads
    uint32_t window;   // positions that are seen up to the token's own; 0: all
    uint32_t n_ahead;  // positions behind its own that are seen, where there are so many
    float scale;
    float softcap;       // bound of the scores; 0: none
    const float *sinks;  // [n_heads], a score beside those of the positions, without a
                         // value; NULL: none
} pe_queries;

/* For every token and head: the softmax-weighted mean of the values at positions
 * 0 to the token's end, or those of them that window and n_ahead show, whose keys and
 * values are stored already. Ends of a session's tokens rise, or stay, with positions.
 * shape    out: [n_tokens][n_heads][d_v]
 * numeric  pages in order by pe_attend_fn, then out = acc / sum; for types that are
 *          stored rotated, q is rotated before and out after that. A page whose first
 *          positions lie before the window is seen from the first inside on: j counts
 *          from there. A sink starts as max = sink, sum = 1.
 *          The tiles, and so the threads and the batch, do not show: a query's
 *          arithmetic is its own */
void pe_attend(const pe_ops *ops, const pe_kv_pool *kv, uint32_t layer, float *out,
               const pe_queries *queries, const pe_attend_room *room);

#endif
