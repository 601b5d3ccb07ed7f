/* Per-layer embeddings: each layer gets an input of d_ple numbers from the token itself, half
 * looked up in a table of its own, half projected from the embedding. The table is as large as
 * the rest of a small model; a token reads one row of it from the mapping.
 */
#include <math.h>

#include "pe_pass.h"
#include "pe_quant.h"

/* Numbers unpacked at a time: whole blocks of every type. */
#define RUN 256u

/* ple = (rms_norm(ple / sqrt(d_model)) * weight + row * sqrt(d_ple)) / sqrt(2). */
static void join_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const pe_weight *table = &p->model->shared[PE_W_PLE_EMBD];
    const uint64_t n = table->n_cols;
    const uint8_t *row =
        (const uint8_t *)table->data + (uint64_t)p->s->tokens[i_token].id * table->row_bytes;
    const pe_dtype_info *dtype = &pe_dtype_find(table->dtype)->info;
    const float from_model = 1.0f / sqrtf((float)hp->d_model);
    const float from_table = sqrtf((float)hp->d_ple);
    const float half = 1.0f / sqrtf(2.0f);
    float *ple = p->s->ple + i_token * n;
    for (uint64_t i = 0; i < n; i++) {
        ple[i] *= from_model;
    }
    for (uint64_t i = 0; i < n; i += hp->d_ple) {
        p->ops->kernels.rms_norm(ple + i, ple + i, p->model->shared[PE_W_PLE_PROJ_NORM].data,
                                 hp->d_ple, hp->norm_eps);
    }
    for (uint64_t first = 0; first < n; first += RUN) {
        float looked_up[RUN];
        const uint64_t n_here = PE_MIN(n - first, RUN);
        pe_quant_unpack(looked_up, table->dtype,
                        row + first / dtype->block_weights * dtype->block_bytes, n_here);
        for (uint64_t i = 0; i < n_here; i++) {
            ple[first + i] = (ple[first + i] + looked_up[i] * from_table) * half;
        }
    }
}

void pe_ple_prepare(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    if (hp->d_ple == 0) {
        return;
    }
    const pe_weight *weight = &p->model->shared[PE_W_PLE_PROJ];
    const pe_product product = {
        .out = p->s->ple, .out_stride = weight->n_rows, .weight = weight, .bias = NULL};
    pe_step_residual(p);
    pe_matmul(p->ops, &product, 1, &p->h);
    pe_pass_for_tokens(p, join_token);
}

static void gate_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t at = (uint64_t)i_token * hp->n_layers + p->layer;
    float *gate = p->s->gate + (uint64_t)i_token * hp->d_ple;
    p->ops->kernels.gelu_mul(gate, gate, p->s->ple + at * hp->d_ple, hp->d_ple);
}

void pe_step_ple(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    if (hp->d_ple == 0) {
        return;
    }
    pe_step_residual(p);
    const pe_product product = pe_pass_product(p, p->s->gate, PE_W_PLE_GATE, PE_W_NONE);
    pe_matmul(p->ops, &product, 1, &p->h);
    pe_pass_for_tokens(p, gate_token);
    pe_pass_set_h(p, p->s->gate, p->s->n_tokens, hp->d_ple);
    pe_step_project(p, &(const pe_step){.weight = PE_W_PLE_OUT});
    pe_step_norm(p, &(const pe_step){.weight = PE_W_PLE_POST_NORM}, p->h.f32, p->s->up);
    pe_step_add(p);
}
