/* A batch of tokens and the memory for computing it. */
#ifndef PE_SCRATCH_H
#define PE_SCRATCH_H

#include "pe_attend.h"
#include "pe_bind.h"
#include "pe_experts.h"
#include "pe_state.h"

/* One token of a batch. */
typedef struct pe_token {
    uint32_t id;
    float *logits;  // [n_vocab], the caller's; NULL: not wanted
    float *hidden;  // [d_model], what lies behind the last norm; NULL: not wanted
    bool adds;      // hidden is added to what is there, in the order of tokens
} pe_token;

static inline bool pe_token_is_wanted(const pe_token *token) {
    return token->logits != NULL || token->hidden != NULL;
}

/* Which layers a pass runs, where not all: from first to before end, the head being the layer
 * behind the last. */
typedef struct pe_layer_range {
    float *rows;  // [positions][d_model], the residual stream, in and out; NULL: all layers run
    uint32_t first;
    uint32_t end;
} pe_layer_range;

/* A batch and all memory that a pass over it needs, taken once. */
typedef struct pe_scratch {
    uint32_t n_batch;  // tokens that fit
    uint64_t n_bytes;
    uint32_t n_tokens;  // in the batch now
    pe_layer_range range;
    pe_token *tokens;
    pe_place *places;      // beside tokens
    uint32_t n_rotations;  // kinds of angles that the model has
    uint64_t d_angles;     // the largest number of dimensions that a kind rotates
    float *rope_freqs;     // [n_rotations][d_angles / 2], by pe_rope_angles_kind
    float *angles;         // [n_rotations][n_batch][d_angles / 2][2]
    uint32_t n_pairs[PE_ROPE_NONE];
    float rope_magnitudes[PE_ROPE_NONE];
    float *x;          // [n_batch][d_model], the residual stream
    float *h;          // [n_batch][wider of d_model and heads of either kind]
    float *q;          // [n_batch][n_heads * d_k], where layers differ, for the widest
    float *k;          // [n_batch][n_kv_heads * d_k]
    float *v;          // [n_batch][n_kv_heads * d_v]
    float *ones;       // a norm's weight that changes nothing, as wide as any
    float *ple;        // [n_batch][n_layers][d_ple], inputs to the layers
    float *gate;       // [n_batch][d_ff]
    float *up;         // [n_batch][wider of d_ff and d_model]
    pe_act_block *q8;  // of the current value
    pe_attend_room attend;
    // only where layers are recurrent
    pe_span *spans;    // [n_batch], all tokens of the batch in order
    uint32_t n_spans;  // in the batch now
    float *mix;        // [n_batch][d_mix], what a recurrent layer projects its input to
    // only where attention is latent
    float *raw_heads;        // [n_batch][n_heads][wider of d_head_k and d_head_v]
    float *query;            // [n_batch][d_query]
    float *latent;           // [n_batch][d_k]
    pe_act_block *heads_q8;  // [n_batch][n_heads] inputs of heads' products
    float *q_gates;  // [n_batch][n_heads][2][d_k], queries and gates; only where heads have gates
    // only where there are experts
    pe_routes routes;
    float *router_logits;  // [n_batch][n_experts]
    float *switches;       // [n_batch], of the expert of every token
    float *expert_h;       // [n_batch * n_experts_used][d_model], inputs, then outputs
    float *expert_gate;    // [n_batch * n_experts_used][d_expert]
    float *expert_up;      // beside it
    pe_act_block *expert_q8;
} pe_scratch;

/* Sizes and takes the memory for batches of n_batch tokens on n_threads threads,
 * fills rope_freqs for sessions of up to n_ctx positions.
 * owner    freed with pe_scratch_free
 * errors   PE_ERR_NOMEM names the bytes */
pe_status pe_scratch_init(pe_scratch *out_scratch, const pe_model *model, uint32_t n_batch,
                          uint32_t n_ctx, uint32_t n_threads, pe_error *err);

/* A zeroed scratch is allowed. */
void pe_scratch_free(pe_scratch *scratch);

#endif
