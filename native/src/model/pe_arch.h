/* An architecture as data: its hyper-parameters, its weights, its layer.
 *
 * pe_arch_<name>.c holds three const tables and no code. What a family needs that
 * no other has becomes a new step or slot here, never a test for its name.
 */
#ifndef PE_ARCH_H
#define PE_ARCH_H

#include "pe_base.h"

/* Tokens that a convolution may see. */
#define PE_MAX_CONV 16u

/* How rotation frequencies are stretched over more positions than were first trained. */
typedef enum pe_rope_scaling {
    PE_ROPE_LINEAR,  // all divided by one factor, which may be 1
    PE_ROPE_YARN,    // arXiv:2309.00071
    PE_ROPE_LONG     // arXiv:2402.13753: each divided by a stored factor of its own
} pe_rope_scaling;

/* Everything the engine asks of a model, read from metadata once. Where layers differ, d_ff and
 * n_kv_heads are the largest. */
typedef struct pe_hparams {
    uint32_t n_layers;
    uint32_t n_ctx_train;
    uint32_t d_model;
    uint32_t d_ff;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t d_k;        // width of a query or key head
    uint32_t d_v;        // width of a value head
    uint32_t d_rot;      // leading dimensions of a head that are rotated
    uint32_t n_vocab;    // from the embedding's shape, not from metadata
    uint32_t window;     // positions that a windowed layer's query sees; 0: no such layers
    uint32_t has_rope;   // 0: positions show in the order of keys alone
    uint32_t is_causal;  // 0: every token sees the whole text
    uint32_t pooling;    // pe_pooling
    uint32_t n_types;    // rows of the token types' embedding, from its shape; 0: none
    // of windowed layers, where they differ
    uint32_t d_k_local;
    uint32_t d_v_local;
    uint32_t d_rot_local;
    uint32_t n_shared_kv;  // the last layers, which attend to keys and values of earlier ones
    uint32_t d_ple;        // width of a token's own input to each layer; 0: there is none
    float norm_eps;
    float embd_scale;      // token embeddings are multiplied by it
    float residual_scale;  // and so is what a layer adds to the residual stream
    float attn_scale;      // scores are multiplied by it
    float attn_softcap;    // bound of scores; 0: none
    float logit_divisor;
    float logit_softcap;
    float temper_scale;  // queries grow by 1 + temper_scale ln(1 + floor(position / n_ctx_rope))
    // rotation
    pe_rope_scaling rope_scaling;
    float rope_base;
    float rope_base_local;   // of windowed layers
    float rope_factor;       // of linear scaling and YaRN
    uint32_t n_ctx_rope;     // positions before any stretching
    float rope_attn_factor;  // cosines and sines are multiplied by it
    float yarn_attn_factor;  // instead of what follows from the factor; 0: that
    float yarn_log_mul;
    float yarn_beta_fast;  // turns over n_ctx_rope from where on frequencies are kept
    float yarn_beta_slow;  // and below which they are divided by the factor
    uint32_t yarn_truncate;
    // mixture of experts
    uint32_t n_experts;
    uint32_t n_experts_used;
    uint32_t d_expert;            // inner width of an expert
    uint32_t d_shared;            // of the expert that every token goes through; 0: none
    uint32_t experts_are_normed;  // weights of the chosen ones sum to 1
    float experts_scale;          // they are multiplied by it; 0: by nothing
    uint32_t expert_gating;       // a pe_gating
    uint32_t n_expert_groups;     // neighbours, of which only the best groups are chosen from
    uint32_t n_expert_groups_used;
    uint32_t n_shared;        // d_shared is as many times d_expert; 0: as stated
    uint32_t n_dense_layers;  // in front of those with experts
    uint32_t n_predictors;    // layers behind the last that predict further tokens: left out
    // latent attention (arXiv:2405.04434): d_k and d_v are those of the one KV head, whose
    // keys are d_rot rotated numbers and the latent, and whose values are the latent
    uint32_t d_latent;      // 0: keys and values are stored as they are
    uint32_t d_query;       // of the queries' own latent; 0: none
    uint32_t d_head_k;      // of a query before it is absorbed, its last d_rot rotated
    uint32_t d_head_v;      // of a head's output
    uint32_t has_split_kv;  // projections out of the latent lie in two tensors, not in one
    // layers with a state
    uint32_t n_conv;           // tokens that a causal convolution sees, its own included
    uint32_t d_inner;          // of Mamba-2: width of all its heads together
    uint32_t d_state;          // numbers that a head remembers for each of its dimensions
    uint32_t n_ssm_heads;      // of d_inner / n_ssm_heads dimensions
    uint32_t n_ssm_groups;     // of heads that share B and C, and of dimensions normed together
    uint32_t n_delta_k_heads;  // of the gated delta rule, for queries as well
    uint32_t n_delta_v_heads;  // a multiple of them
    uint32_t d_delta_k;        // width of a query or key head
    uint32_t d_delta_values;   // of all value heads
} pe_hparams;

/* What a router's logits become. */
typedef enum pe_gating {
    PE_GATING_AUTO,     // sigmoid where a bias chooses, else softmax
    PE_GATING_SOFTMAX,  // the values are those of files
    PE_GATING_SIGMOID
} pe_gating;

/* What differs from layer to layer. */
typedef enum pe_layer_kind { PE_LAYER_DENSE, PE_LAYER_EXPERTS, PE_N_LAYER_KINDS } pe_layer_kind;
typedef enum pe_rope_angles_kind {
    PE_ROPE_GLOBAL,
    PE_ROPE_LOCAL,
    PE_ROPE_NONE
} pe_rope_angles_kind;

typedef struct pe_layer_hparams {
    pe_layer_kind kind;
    pe_rope_angles_kind rope;
    uint32_t window;  // positions that a query sees, its own included; 0: all before it
    uint32_t n_kv_heads;
    uint32_t d_k;
    uint32_t d_v;
    uint32_t d_rot;
    uint32_t d_ff;
    bool is_recurrent;     // has a state instead of keys and values
    bool has_kv;           // its own keys and values; else those of an earlier layer, or a state
    uint32_t kv_layer;     // where those that it attends to lie, among the layers with their own
    uint64_t state_first;  // where its floats begin in a session's state, on a cache line
} pe_layer_hparams;

typedef enum pe_hparam_kind {
    PE_HPARAM_U32,
    PE_HPARAM_F32,
    PE_HPARAM_BOOL,
    PE_HPARAM_EACH  // one number, or one for each layer, of which the field has the largest
} pe_hparam_kind;

/* How an absent key is filled in. */
typedef enum pe_hparam_absent {
    PE_ABSENT_ERROR,       // it must be there
    PE_ABSENT_VALUE,       // the row's value
    PE_ABSENT_HEADS,       // n_heads
    PE_ABSENT_HEAD_WIDTH,  // d_model / n_heads
    PE_ABSENT_D_K,         // d_k
    PE_ABSENT_D_V,         // d_v
    PE_ABSENT_D_ROT,       // d_rot
    PE_ABSENT_D_FF,        // d_ff
    PE_ABSENT_EXPERT_FF,   // expert_feed_forward_length, which must then be there
    PE_ABSENT_CTX,         // n_ctx_train
    PE_ABSENT_ROPE_BASE,   // rope_base
    PE_ABSENT_ROOT_WIDTH,  // sqrt(d_model)
    PE_ABSENT_ATTN_SCALE   // 1 / sqrt(d_k), but 1 / sqrt(d_model / n_heads) in the model of
                           // `value` layers, whose files do not say so
} pe_hparam_absent;

/* One metadata key "<architecture>.<key>". Rows are read in order: a row may be
 * filled in from those above it. */
typedef struct pe_hparam_row {
    const char *key;
    size_t field;  // offsetof(pe_hparams, ...)
    pe_hparam_kind kind;
    pe_hparam_absent absent;
    float value;
} pe_hparam_row;

/* Symbolic sizes that weight shapes are made of. */
typedef enum pe_dim {
    PE_DIM_NONE,  // 0
    PE_DIM_ONE,
    PE_DIM_VOCAB,
    PE_DIM_MODEL,
    PE_DIM_FF,
    PE_DIM_TWO_FF,
    PE_DIM_HEAD,       // d_k
    PE_DIM_N_HEADS,    // n_heads
    PE_DIM_Q,          // n_heads * d_k
    PE_DIM_K,          // n_kv_heads * d_k
    PE_DIM_V,          // n_kv_heads * d_v
    PE_DIM_QK,         // queries and keys
    PE_DIM_QKV,        // and values
    PE_DIM_HEADS,      // n_heads * d_v
    PE_DIM_ROT_PAIRS,  // d_rot / 2
    PE_DIM_EXPERTS,    // n_experts
    PE_DIM_EXPERT,     // d_expert
    PE_DIM_SHARED,     // d_shared
    PE_DIM_GATE_UP,    // gate and up of an expert
    PE_DIM_PLE,        // d_ple
    PE_DIM_ALL_PLE,    // of all layers
    PE_DIM_CONV,       // n_conv
    PE_DIM_THREE_MODEL,
    // of latent attention; 0 where the file has another form of the weight
    PE_DIM_LATENT,          // d_latent
    PE_DIM_LATENT_KEY,      // d_rot + d_latent
    PE_DIM_QUERY,           // d_query
    PE_DIM_Q_DIRECT,        // n_heads * d_head_k without d_query
    PE_DIM_Q_INDIRECT,      // with it
    PE_DIM_K_SPLIT,         // d_latent
    PE_DIM_V_SPLIT,         // d_head_v
    PE_DIM_KV_HEAD,         // d_head_k - d_rot + d_head_v
    PE_DIM_KV_HEADS,        // of all heads
    PE_DIM_NOPE,            // d_head_k - d_rot
    PE_DIM_HEADS_OUT,       // n_heads * d_head_v
    PE_DIM_INNER,           // d_inner
    PE_DIM_SSM_IN,          // z, what is convolved, a time step for each head
    PE_DIM_SSM_CONV,        // x, B and C of all groups
    PE_DIM_SSM_HEADS,       // n_ssm_heads
    PE_DIM_TWO_Q,           // queries, each head with a gate behind it
    PE_DIM_DELTA_CHANNELS,  // queries, keys and values of the gated delta rule
    PE_DIM_DELTA_VALUES,    // d_delta_values
    PE_DIM_DELTA_V,         // of one head
    PE_DIM_DELTA_HEADS,     // n_delta_v_heads
    PE_DIM_TWO_DELTA_HEADS,
    PE_DIM_SSM_GROUPS,
    PE_DIM_SSM_GROUP,  // d_inner / n_ssm_groups
    PE_DIM_CTX,        // n_ctx_train
    PE_DIM_TYPES       // n_types
} pe_dim;

typedef enum pe_slot {
    PE_W_NONE,
    // of the model
    PE_W_TOKEN_EMBD,
    PE_W_OUTPUT_NORM,
    PE_W_OUTPUT,
    PE_W_ROPE_FREQS,
    PE_W_ROPE_LONG,
    PE_W_ROPE_SHORT,
    PE_W_PLE_EMBD,
    PE_W_PLE_PROJ,
    PE_W_PLE_PROJ_NORM,
    PE_W_POSITION_EMBD,
    PE_W_TYPE_EMBD,
    PE_W_EMBD_NORM,
    PE_W_EMBD_NORM_BIAS,
    // of a layer
    PE_W_ATTN_NORM,
    PE_W_ATTN_Q,
    PE_W_ATTN_K,
    PE_W_ATTN_V,
    PE_W_ATTN_OUT,
    PE_W_ATTN_Q_BIAS,
    PE_W_ATTN_K_BIAS,
    PE_W_ATTN_V_BIAS,
    PE_W_ATTN_OUT_BIAS,
    PE_W_ATTN_Q_NORM,
    PE_W_ATTN_K_NORM,
    PE_W_ATTN_SINKS,
    PE_W_ATTN_POST_NORM,
    PE_W_FFN_NORM,
    PE_W_FFN_GATE,
    PE_W_FFN_UP,
    PE_W_FFN_DOWN,
    PE_W_FFN_GATE_BIAS,
    PE_W_FFN_UP_BIAS,
    PE_W_FFN_DOWN_BIAS,
    PE_W_FFN_POST_NORM,
    PE_W_ROUTER,
    PE_W_ROUTER_BIAS,
    PE_W_EXPERTS_GATE,
    PE_W_EXPERTS_UP,
    PE_W_EXPERTS_DOWN,
    PE_W_EXPERTS_GATE_BIAS,
    PE_W_EXPERTS_UP_BIAS,
    PE_W_EXPERTS_DOWN_BIAS,
    PE_W_SHARED_GATE,
    PE_W_SHARED_UP,
    PE_W_SHARED_DOWN,
    PE_W_ROUTER_SCALE,
    PE_W_EXPERTS_NORM,
    PE_W_EXPERTS_SCALE,
    PE_W_EXPERTS_POST_NORM,
    PE_W_BESIDE_POST_NORM,
    PE_W_PLE_GATE,
    PE_W_PLE_OUT,
    PE_W_PLE_POST_NORM,
    PE_W_LAYER_SCALE,
    PE_W_SHORTCONV_IN,
    PE_W_SHORTCONV_CONV,
    PE_W_SHORTCONV_OUT,
    PE_W_ROUTER_CHOICE,  // added to what chooses experts, not to what weighs them
    PE_W_ATTN_Q_A,
    PE_W_ATTN_Q_A_NORM,
    PE_W_ATTN_Q_B,
    PE_W_ATTN_KV_A,
    PE_W_ATTN_KV_A_NORM,
    PE_W_ATTN_K_B,   // transposed: from a query to the latent
    PE_W_ATTN_V_B,   // from the latent to a head's output
    PE_W_ATTN_KV_B,  // or both, not transposed, head by head
    PE_W_SHARED_SWITCH,
    PE_W_DELTA_QKV,
    PE_W_DELTA_GATE,
    PE_W_DELTA_BETA,
    PE_W_DELTA_ALPHA,
    PE_W_DELTA_BETA_ALPHA,
    PE_W_DELTA_CONV,
    PE_W_DELTA_STEP_BIAS,
    PE_W_DELTA_RATE,
    PE_W_DELTA_NORM,
    PE_W_DELTA_OUT,
    PE_W_SSM_IN,
    PE_W_SSM_CONV,
    PE_W_SSM_CONV_BIAS,
    PE_W_SSM_DT_BIAS,
    PE_W_SSM_A,
    PE_W_SSM_D,
    PE_W_SSM_NORM,
    PE_W_SSM_OUT,
    PE_W_ATTN_OUT_NORM,
    PE_W_ATTN_OUT_NORM_BIAS,
    PE_W_LAYER_OUT_NORM,
    PE_W_LAYER_OUT_NORM_BIAS,
    PE_W_COUNT
} pe_slot;

typedef enum pe_slot_flag {
    PE_SLOT_REQUIRED = 0,
    PE_SLOT_OPTIONAL = 1,     // absent: the step that reads it does without
    PE_SLOT_TIED = 2,         // absent: the token embedding serves
    PE_SLOT_VECTOR = 4,       // read as floats: must be F32
    PE_SLOT_STACKED = 8,      // one matrix, or row of a vector, for each expert
    PE_SLOT_DENSE = 16,       // only in dense layers
    PE_SLOT_EXPERTS = 32,     // only in layers of experts
    PE_SLOT_ATTENTION = 64,   // only in layers with keys and values
    PE_SLOT_RECURRENT = 128,  // only in layers with a state
    PE_SLOT_HEADS = 256,      // one matrix for each head
    PE_SLOT_KV = 512,         // only read in layers with keys and values of their own
    PE_SLOT_PLE = 1024,       // only in models whose layers have inputs of their own
    PE_SLOT_LOOKUP = 2048,    // a token reads one row of it
    PE_SLOT_ELSE = 4096       // for the same slot's weight in the row before, if that is absent
} pe_slot_flag;

/* One weight: its GGUF name, in which a leading "blk." means one per layer
 * ("blk.<layer>." is put there), and its shape as rows x columns. A weight that is
 * stored as rows of a taller tensor also says how tall, and from which row on. */
typedef struct pe_slot_row {
    pe_slot slot;
    const char *name;
    pe_dim rows;
    pe_dim cols;
    uint32_t flags;
    pe_dim first;  // row
    pe_dim whole;  // rows of the tensor; PE_DIM_NONE: the weight's own
} pe_slot_row;

/* What a layer does, in order. x is the residual stream, h the current value. */
typedef enum pe_step_kind {
    PE_STEP_RESIDUAL,         // h = x
    PE_STEP_RMS_NORM,         // h = rms_norm(x) * weight
    PE_STEP_POST_NORM,        // h = rms_norm(h) * weight
    PE_STEP_QKV,              // q, k, v = projections of h
    PE_STEP_NORM_QK,          // q and k = rms_norm of runs as long as their norms' weights
    PE_STEP_ROPE_PAIRS,       // rotate pairs (2 i, 2 i + 1) of each q and k head
    PE_STEP_ROPE_HALVES,      // rotate pairs (i, i + d_rot / 2)
    PE_STEP_TEMPER,           // q grows with its position
    PE_STEP_ATTEND,           // store k, v; h = attention of q, with sinks if weight is there
    PE_STEP_SWIGLU,           // h = silu(gate h) * (up h)
    PE_STEP_GEGLU,            // h = gelu(gate h) * (up h)
    PE_STEP_PROJECT,          // h = weight h + bias
    PE_STEP_ADD,              // x += residual_scale h
    PE_STEP_EXPERTS,          // x += residual_scale (weighted sum of the chosen experts of h);
                              // h stays
    PE_STEP_EXPERTS_CLAMPED,  // the same with gpt-oss's gate
    PE_STEP_SHARED,           // x += residual_scale (the expert of every token, if any, of h),
                              // times the sigmoid of its switch, if that is there
    PE_STEP_SHORTCONV,        // b, c, u = projections of h; h = c * causal convolution of b * u
    PE_STEP_LATENT_QK,        // q = queries of h, absorbed; k = rotated part and latent of h
    PE_STEP_LATENT_OUT,       // h = each head's output of its mixed latent
    PE_STEP_QKV_GATED,        // as QKV, and a gate behind each head's query
    PE_STEP_GATE_HEADS,       // h = sigmoid(those gates) * h
    PE_STEP_DELTA,            // h = normed and gated output of a layer of the gated delta rule
    PE_STEP_MAMBA2,           // h = the normed and gated output of Mamba-2's heads (2405.21060)
    PE_STEP_LAYER_NORM,       // h = x = layer_norm(x) * weight + bias
    PE_STEP_GELU,             // h = gelu(up h), in its exact form
    PE_STEP_NORM_V,           // v = rms_norm of each head, without a weight
    PE_STEP_EXPERTS_BESIDE,   // h += rms_norm(sum of the chosen experts of rms_norm(x)) * weight,
                              // chosen by x, too
    PE_STEP_PLE,              // x += the gated input that the token has for this layer, if any
    PE_STEP_SCALE             // x *= weight, one number, if it is there
} pe_step_kind;

typedef struct pe_step {
    pe_step_kind kind;
    pe_slot weight;
    pe_slot bias;
} pe_step;

typedef struct pe_step_list {
    const pe_step *steps;
    size_t n_steps;
} pe_step_list;

/* What a recurrent layer remembers; pe_state_floats knows how much that is. */
typedef enum pe_state_kind {
    PE_STATE_NONE,
    PE_STATE_SHORTCONV,  // [n_conv - 1][d_model]: the convolution's last inputs, oldest first
    PE_STATE_DELTA,      // such inputs, and for each value head a matrix [d_delta_k][values]
    PE_STATE_MAMBA2      // the same of x, B and C, filled up to whole lines; then
                         // [n_ssm_heads][d_inner / n_ssm_heads][d_state]
} pe_state_kind;

typedef struct pe_arch {
    const char *name;  // general.architecture
    const pe_hparam_row *hparams;
    size_t n_hparams;
    const pe_slot_row *slots;
    size_t n_slots;
    pe_step_list layers[PE_N_LAYER_KINDS];  // no steps: no such layers
    pe_state_kind state;                    // of recurrent layers
    pe_step_list recurrent[PE_N_LAYER_KINDS];
    // where metadata does not say it by layer
    uint32_t window_period;       // the last layer of each period has no window; 0: all have one
    uint32_t nope_period;         // the last layer of each period is not rotated; 0: all are
    bool local_rope_is_unscaled;  // in windowed layers
    bool queries_are_gated;       // each head of them has a gate behind it
    bool delta_heads_alternate;   // value head i goes with key head i modulo their number, not
                                  // with its neighbours to one
    bool window_is_symmetric;     // half of it lies behind the token
    bool is_encoder;              // that every token sees the whole text is a given
} pe_arch;

extern const pe_arch pe_arch_deepseek2;
extern const pe_arch pe_arch_bert;
extern const pe_arch pe_arch_gemma2;
extern const pe_arch pe_arch_gemma3;
extern const pe_arch pe_arch_gemma4;
extern const pe_arch pe_arch_gemma_embedding;
extern const pe_arch pe_arch_gpt_oss;
extern const pe_arch pe_arch_granite;
extern const pe_arch pe_arch_granitemoe;
extern const pe_arch pe_arch_granitehybrid;
extern const pe_arch pe_arch_lfm2;
extern const pe_arch pe_arch_llama;
extern const pe_arch pe_arch_mistral3;
extern const pe_arch pe_arch_nomic_bert;
extern const pe_arch pe_arch_olmo2;
extern const pe_arch pe_arch_phi3;
extern const pe_arch pe_arch_qwen2;
extern const pe_arch pe_arch_qwen3;
extern const pe_arch pe_arch_qwen35;
extern const pe_arch pe_arch_qwen35moe;
extern const pe_arch pe_arch_qwen3moe;
extern const pe_arch pe_arch_qwen3next;
extern const pe_arch pe_arch_smollm3;

/* The descriptor at an index, or NULL past the last. */
const pe_arch *pe_arch_at(size_t index);

#endif
