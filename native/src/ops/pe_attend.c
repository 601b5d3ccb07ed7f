#include "pe_attend.h"

#include <math.h>

/* Query heads that go through a page together; more are taken in turns. */
#define MAX_GROUP 16u

typedef struct attend_job {
    const pe_ops *ops;
    const pe_kv_pool *kv;
    uint32_t layer;
    float *out;
    const float *q;
    const pe_place *places;
    uint32_t n_heads;
    float scale;
} attend_job;

static void attend_group(const attend_job *job, size_t i_token, uint32_t kv_head, uint32_t head,
                         uint32_t n_group) {
    const pe_kv_shape *shape = &job->kv->shape;
    const pe_place *place = &job->places[i_token];
    const float *q = job->q + (i_token * job->n_heads + head) * shape->d_k;
    float *acc = job->out + (i_token * job->n_heads + head) * shape->d_v;
    pe_softmax softmax[MAX_GROUP];
    for (uint32_t g = 0; g < n_group; g++) {
        softmax[g] = (pe_softmax){.max = -INFINITY, .sum = 0.0f};
    }
    memset(acc, 0, (size_t)n_group * shape->d_v * sizeof *acc);
    for (uint64_t first = 0; first <= place->position; first += PE_PAGE_TOKENS) {
        const uint64_t i_page = first / PE_PAGE_TOKENS;
        const uint64_t n_valid = PE_MIN(place->position + 1 - first, PE_PAGE_TOKENS);
        job->ops->kernels.attend[shape->type](
            softmax, acc, q, n_group,
            pe_kv_keys(job->kv, place->table, i_page, job->layer, kv_head),
            pe_kv_values(job->kv, place->table, i_page, job->layer, kv_head), shape->d_k,
            shape->d_v, n_valid, job->scale);
    }
    for (uint32_t g = 0; g < n_group; g++) {
        for (uint32_t d = 0; d < shape->d_v; d++) {
            acc[(size_t)g * shape->d_v + d] /= softmax[g].sum;
        }
    }
}

static void attend_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    const attend_job *job = arg;
    const uint32_t n_kv_heads = job->kv->shape.n_kv_heads;
    const uint32_t per_kv_head = job->n_heads / n_kv_heads;
    const uint32_t kv_head = i_chunk % n_kv_heads;
    for (uint32_t g = 0; g < per_kv_head; g += MAX_GROUP) {
        attend_group(job, i_chunk / n_kv_heads, kv_head, kv_head * per_kv_head + g,
                     PE_MIN(per_kv_head - g, MAX_GROUP));
    }
}

void pe_attend(const pe_ops *ops, const pe_kv_pool *kv, uint32_t layer, float *out, const float *q,
               const pe_place *places, size_t n_tokens, uint32_t n_heads, float scale) {
    attend_job job = {.ops = ops,
                      .kv = kv,
                      .layer = layer,
                      .out = out,
                      .q = q,
                      .places = places,
                      .n_heads = n_heads,
                      .scale = scale};
    pe_pool_run(ops->pool, attend_chunk, &job, (uint32_t)n_tokens * kv->shape.n_kv_heads);
}
