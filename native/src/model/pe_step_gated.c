#include <math.h>

#include "pe_math.h"
#include "pe_pass.h"

/* One token's gate, or one row's of the experts. */
static void silu_gate(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    float *gate = p->gate + i * p->d_gate;
    p->ops->kernels.silu_mul(gate, gate, p->up + i * p->d_gate, p->d_gate);
}

static void gelu_gate(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    float *gate = p->gate + i * p->d_gate;
    p->ops->kernels.gelu_mul(gate, gate, p->up + i * p->d_gate, p->d_gate);
}

/* gpt-oss's bound of gates. */
#define CLAMP_LIMIT 7.0f

static void clamped_gate(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    float *gate = p->gate + i * p->d_gate;
    p->ops->kernels.clamped_mul(gate, gate, p->up + i * p->d_gate, p->d_gate, CLAMP_LIMIT);
}

/* h = gate(products[1]) * products[0], of width d_gate. */
static void run_gated(pe_pass *p, const pe_product *products, uint64_t d_gate, pe_pool_fn gate) {
    pe_matmul(p->ops, products, 2, &p->h);
    p->gate = p->s->gate;
    p->up = p->s->up;
    p->d_gate = d_gate;
    pe_pass_for_tokens(p, gate);
    pe_pass_set_h(p, p->s->gate, p->s->n_tokens, d_gate);
}

static void step_gated(pe_pass *p, pe_pool_fn gate) {
    const pe_product products[] = {
        pe_pass_product(p, p->s->up, PE_W_FFN_UP, PE_W_FFN_UP_BIAS),
        pe_pass_product(p, p->s->gate, PE_W_FFN_GATE, PE_W_FFN_GATE_BIAS),
    };
    run_gated(p, products, pe_pass_layer(p)->d_ff, gate);
}

void pe_step_swiglu(pe_pass *p) {
    step_gated(p, silu_gate);
}

void pe_step_geglu(pe_pass *p) {
    step_gated(p, gelu_gate);
}

/* h = h * sigmoid(the token's switch). */
static void switch_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    const float share = (float)(1.0 / (1.0 + pe_exp(-(double)p->s->switches[i_token])));
    float *h = p->s->up + i_token * d_model;
    for (uint64_t i = 0; i < d_model; i++) {
        h[i] *= share;
    }
}

static void gelu_token(void *arg, uint32_t i, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    p->ops->kernels.gelu_erf(p->gate + i * p->d_gate, p->d_gate);
}

void pe_step_gelu(pe_pass *p) {
    const pe_product up = pe_pass_product(p, p->s->gate, PE_W_FFN_UP, PE_W_FFN_UP_BIAS);
    pe_matmul(p->ops, &up, 1, &p->h);
    p->gate = p->s->gate;
    p->d_gate = p->model->hparams.d_ff;
    pe_pass_for_tokens(p, gelu_token);
    pe_pass_set_h(p, p->s->gate, p->s->n_tokens, p->d_gate);
}

/* The expert that every token goes through. */
void pe_step_shared(pe_pass *p) {
    if (p->model->hparams.d_shared == 0) {
        return;
    }
    const bool is_switched = pe_pass_weight(p, PE_W_SHARED_SWITCH)->data != NULL;
    if (is_switched) {
        const pe_product product =
            pe_pass_product(p, p->s->switches, PE_W_SHARED_SWITCH, PE_W_NONE);
        pe_matmul(p->ops, &product, 1, &p->h);
    }
    const pe_product products[] = {
        pe_pass_product(p, p->s->up, PE_W_SHARED_UP, PE_W_NONE),
        pe_pass_product(p, p->s->gate, PE_W_SHARED_GATE, PE_W_NONE),
    };
    run_gated(p, products, p->model->hparams.d_shared, silu_gate);
    pe_step_project(p, &(const pe_step){.weight = PE_W_SHARED_DOWN, .bias = PE_W_NONE});
    if (is_switched) {
        pe_pass_for_tokens(p, switch_token);
    }
    pe_step_add(p);
}

/* ---- experts ---------------------------------------------------------- */

static void choose_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    const float *choice = pe_pass_weight(p, PE_W_ROUTER_CHOICE)->data;
    const bool is_auto = hp->expert_gating == PE_GATING_AUTO;
    const pe_routing routing = {.is_sigmoid = is_auto ? choice != NULL
                                                      : hp->expert_gating == PE_GATING_SIGMOID,
                                .is_normed = hp->experts_are_normed != 0,
                                .scale = hp->experts_scale > 0.0f ? hp->experts_scale : 1.0f,
                                .choice = choice,
                                .n_groups = hp->n_expert_groups,
                                .n_groups_used = hp->n_expert_groups_used};
    pe_routes_choose(&p->s->routes, i_token,
                     p->s->router_logits + (uint64_t)i_token * hp->n_experts, &routing);
}

static void gather_row(void *arg, uint32_t i_row, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    memcpy(p->s->expert_h + i_row * d_model, p->h.f32 + p->s->routes.tokens[i_row] * d_model,
           d_model * sizeof(float));
}

/* Dimension d of a token's sum. Choices are added up from the best on, so that the batch does
 * not show. */
static float mix(const pe_pass *p, uint32_t i_token, uint64_t d) {
    const uint64_t d_model = p->model->hparams.d_model;
    const pe_routes *routes = &p->s->routes;
    const uint32_t *rows = routes->rows + i_token * routes->n_used;
    const float *weights = routes->weights + i_token * routes->n_used;
    float sum = 0.0f;
    for (uint32_t i = 0; i < routes->n_used; i++) {
        sum += weights[i] * p->s->expert_h[(uint64_t)rows[i] * d_model + d];
    }
    return sum;
}

static void add_mix_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const pe_hparams *hp = &p->model->hparams;
    float *x = p->s->x + (uint64_t)i_token * hp->d_model;
    for (uint64_t d = 0; d < hp->d_model; d++) {
        x[d] += hp->residual_scale * mix(p, i_token, d);
    }
}

/* Chooses each token's experts by h. */
static void route(pe_pass *p) {
    pe_scratch *s = p->s;
    const pe_product router = pe_pass_product(p, s->router_logits, PE_W_ROUTER, PE_W_ROUTER_BIAS);
    pe_matmul(p->ops, &router, 1, &p->h);
    s->routes.n_tokens = s->n_tokens;
    pe_pass_for_tokens(p, choose_token);
    pe_routes_sort(&s->routes);
}

/* Runs the chosen experts on h; their outputs lie in expert_h. */
static void run_experts(pe_pass *p, pe_pool_fn gate) {
    const pe_hparams *hp = &p->model->hparams;
    pe_scratch *s = p->s;
    pe_routes *routes = &s->routes;
    const uint32_t n_rows = s->n_tokens * routes->n_used;
    pe_pool_run(p->ops->pool, gather_row, p, n_rows);
    pe_acts acts = {.f32 = s->expert_h, .q8 = s->expert_q8, .n_cols = n_rows, .n_k = hp->d_model};
    const pe_product inner[] = {
        pe_pass_product(p, s->expert_up, PE_W_EXPERTS_UP, PE_W_EXPERTS_UP_BIAS),
        pe_pass_product(p, s->expert_gate, PE_W_EXPERTS_GATE, PE_W_EXPERTS_GATE_BIAS),
    };
    pe_experts_matmul(p->ops, inner, PE_LEN(inner), routes, &acts);
    p->gate = s->expert_gate;
    p->up = s->expert_up;
    p->d_gate = hp->d_expert;
    pe_pool_run(p->ops->pool, gate, p, n_rows);
    acts =
        (pe_acts){.f32 = s->expert_gate, .q8 = s->expert_q8, .n_cols = n_rows, .n_k = hp->d_expert};
    const pe_product down =
        pe_pass_product(p, s->expert_h, PE_W_EXPERTS_DOWN, PE_W_EXPERTS_DOWN_BIAS);
    pe_experts_matmul(p->ops, &down, 1, routes, &acts);
}

static void step_experts(pe_pass *p, pe_pool_fn gate) {
    route(p);
    run_experts(p, gate);
    pe_pass_for_tokens(p, add_mix_token);
}

void pe_step_experts(pe_pass *p) {
    step_experts(p, silu_gate);
}

void pe_step_experts_clamped(pe_pass *p) {
    step_experts(p, clamped_gate);
}

/* ---- experts beside a dense layer ------------------------------------- */

static void router_input_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    const float scale = 1.0f / sqrtf((float)d_model);
    float *h = p->s->h + i_token * d_model;
    p->ops->kernels.rms_norm(h, p->s->x + i_token * d_model,
                             pe_pass_weight(p, PE_W_ROUTER_SCALE)->data, d_model,
                             p->model->hparams.norm_eps);
    for (uint64_t i = 0; i < d_model; i++) {
        h[i] *= scale;
    }
}

/* An expert's own scale joins the weight that its outputs get. */
static void mix_beside_token(void *arg, uint32_t i_token, uint32_t i_thread) {
    (void)i_thread;
    const pe_pass *p = arg;
    const uint64_t d_model = p->model->hparams.d_model;
    const pe_routes *routes = &p->s->routes;
    const float *scales = pe_pass_weight(p, PE_W_EXPERTS_SCALE)->data;
    for (uint32_t i = 0; scales != NULL && i < routes->n_used; i++) {
        const uint64_t choice = (uint64_t)i_token * routes->n_used + i;
        routes->weights[choice] *= scales[routes->experts[choice]];
    }
    float *h = p->s->h + i_token * d_model;
    for (uint64_t d = 0; d < d_model; d++) {
        h[d] = mix(p, i_token, d);
    }
    p->ops->kernels.rms_norm(h, h, pe_pass_weight(p, PE_W_EXPERTS_POST_NORM)->data, d_model,
                             p->model->hparams.norm_eps);
    float *sum = p->s->up + i_token * d_model;
    for (uint64_t d = 0; d < d_model; d++) {
        sum[d] += h[d];
    }
}

/* h, the dense layer's part, stays in up meanwhile. */
void pe_step_experts_beside(pe_pass *p) {
    const uint64_t d_model = p->model->hparams.d_model;
    pe_pass_for_tokens(p, router_input_token);
    pe_pass_set_h(p, p->s->h, p->s->n_tokens, d_model);
    route(p);
    pe_step_norm(p, &(const pe_step){.weight = PE_W_EXPERTS_NORM}, p->s->x, p->s->h);
    run_experts(p, gelu_gate);
    pe_pass_for_tokens(p, mix_beside_token);
    pe_pass_set_h(p, p->s->up, p->s->n_tokens, d_model);
}
