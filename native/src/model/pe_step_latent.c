/* Latent attention, absorbed: a query is taken to the space of the latents, so that what is
 * stored of a token, and read by every head, is one latent and one rotated key. A head's
 * output leaves that space behind attention.
 *
 *     score = (W_k latent) . q + rotated key . rotated q = latent . (W_k^T q) + ...
 *     out   = sum of p (W_v latent)                      = W_v (sum of p latent)
 */
#include "pe_heads.h"
#include "pe_pass.h"
#include "pe_quant.h"

/* The reference models norm latents with it, whatever epsilon a file gives other norms. */
#define LATENT_EPS 1e-6f

/* Queries as they come, d_head_k each; later outputs, d_head_v each. */
static pe_heads raw_heads(const pe_pass *p, uint64_t stride) {
    return (pe_heads){.data = p->s->raw_heads, .stride = stride};
}

static void norm_query_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    float *query = p->s->query + (uint64_t)i_token * hp->d_query;
    p->ops->kernels.rms_norm(query, query, pe_pass_weight(p, PE_W_ATTN_Q_A_NORM)->data, hp->d_query,
                             LATENT_EPS);
}

/* A projection gives the latent, then what is rotated; a stored key begins with that. */
static void lay_key_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const float *in = p->s->latent + (uint64_t)i_token * hp->d_k;
    float *k = p->s->k + (uint64_t)i_token * hp->d_k;
    memcpy(k, in + hp->d_latent, hp->d_rot * sizeof *k);
    p->ops->kernels.rms_norm(k + hp->d_rot, in, pe_pass_weight(p, PE_W_ATTN_KV_A_NORM)->data,
                             hp->d_latent, LATENT_EPS);
}

/* The rotated end of a raw query becomes the beginning of the absorbed one. */
static void lay_query_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const uint64_t first = (uint64_t)i_token * hp->n_heads;
    for (uint64_t h = first; h < first + hp->n_heads; h++) {
        memcpy(p->s->q + h * hp->d_k, p->s->raw_heads + (h + 1) * hp->d_head_k - hp->d_rot,
               hp->d_rot * sizeof(float));
    }
}

static void project_queries(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    const bool is_direct = hp->d_query == 0;
    const pe_product products[] = {
        pe_pass_product(p, p->s->latent, PE_W_ATTN_KV_A, PE_W_NONE),
        is_direct ? pe_pass_product(p, p->s->raw_heads, PE_W_ATTN_Q, PE_W_NONE)
                  : pe_pass_product(p, p->s->query, PE_W_ATTN_Q_A, PE_W_NONE),
    };
    pe_matmul(p->ops, products, PE_LEN(products), &p->h);
    if (is_direct) {
        return;
    }
    pe_pass_for_tokens(p, norm_query_token);
    pe_pass_set_h(p, p->s->query, p->s->n_tokens, hp->d_query);
    const pe_product product = pe_pass_product(p, p->s->raw_heads, PE_W_ATTN_Q_B, PE_W_NONE);
    pe_matmul(p->ops, &product, 1, &p->h);
}

void pe_step_latent_qk(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    project_queries(p);
    pe_pass_for_tokens(p, lay_key_token);
    pe_pass_for_tokens(p, lay_query_token);
    const pe_heads in = raw_heads(p, hp->d_head_k);
    const pe_heads out = {.data = p->s->q + hp->d_rot, .stride = hp->d_k};
    if (hp->has_split_kv != 0) {
        pe_heads_matmul(p->ops, &out, pe_pass_weight(p, PE_W_ATTN_K_B), 0, hp->d_latent, &in,
                        p->s->heads_q8, p->s->n_tokens);
    } else {
        pe_heads_matmul_transposed(p->ops, &out, pe_pass_weight(p, PE_W_ATTN_KV_B), pe_quant_unpack,
                                   hp->d_head_k - hp->d_rot, &in, p->s->n_tokens);
    }
}

void pe_step_latent_out(pe_pass *p) {
    const pe_hparams *hp = &p->model->hparams;
    const pe_slot slot = hp->has_split_kv != 0 ? PE_W_ATTN_V_B : PE_W_ATTN_KV_B;
    const uint64_t first_row = hp->has_split_kv != 0 ? 0 : hp->d_head_k - hp->d_rot;
    const pe_heads in = {.data = p->s->h, .stride = hp->d_v};
    const pe_heads out = raw_heads(p, hp->d_head_v);
    pe_heads_matmul(p->ops, &out, pe_pass_weight(p, slot), first_row, hp->d_head_v, &in,
                    p->s->heads_q8, p->s->n_tokens);
    pe_pass_set_h(p, p->s->raw_heads, p->s->n_tokens, (size_t)hp->n_heads * hp->d_head_v);
}
