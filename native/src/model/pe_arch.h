/* An architecture as data: its hyper-parameters, its weights, its layer.
 *
 * pe_arch_<name>.c holds three const tables and no code. What a family needs that
 * no other has becomes a new step or slot here, never a test for its name.
 */
#ifndef PE_ARCH_H
#define PE_ARCH_H

#include "pe_base.h"

/* Everything the engine asks of a model, read from metadata once. */
typedef struct pe_hparams {
    uint32_t n_layers;
    uint32_t n_ctx_train;
    uint32_t d_model;
    uint32_t d_ff;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t d_k;    // width of a query or key head
    uint32_t d_v;    // width of a value head
    uint32_t d_rot;  // leading dimensions of a head that are rotated
    uint32_t n_experts;
    uint32_t n_vocab;  // from the embedding's shape, not from metadata
    float norm_eps;
    float rope_base;
    float rope_factor;  // linear position scaling: positions are divided by it
} pe_hparams;

typedef enum pe_hparam_kind { PE_HPARAM_U32, PE_HPARAM_F32 } pe_hparam_kind;

/* How an absent key is filled in. */
typedef enum pe_hparam_absent {
    PE_ABSENT_ERROR,       // it must be there
    PE_ABSENT_VALUE,       // the row's value
    PE_ABSENT_HEADS,       // n_heads
    PE_ABSENT_HEAD_WIDTH,  // d_model / n_heads
    PE_ABSENT_D_K          // d_k
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
    PE_DIM_ONE,
    PE_DIM_VOCAB,
    PE_DIM_MODEL,
    PE_DIM_FF,
    PE_DIM_Q,         // n_heads * d_k
    PE_DIM_K,         // n_kv_heads * d_k
    PE_DIM_V,         // n_kv_heads * d_v
    PE_DIM_HEADS,     // n_heads * d_v
    PE_DIM_ROT_PAIRS  // d_rot / 2
} pe_dim;

typedef enum pe_slot {
    PE_W_NONE,
    // of the model
    PE_W_TOKEN_EMBD,
    PE_W_OUTPUT_NORM,
    PE_W_OUTPUT,
    PE_W_ROPE_FREQS,
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
    PE_W_FFN_NORM,
    PE_W_FFN_GATE,
    PE_W_FFN_UP,
    PE_W_FFN_DOWN,
    PE_W_FFN_GATE_BIAS,
    PE_W_FFN_UP_BIAS,
    PE_W_FFN_DOWN_BIAS,
    PE_W_COUNT
} pe_slot;

typedef enum pe_slot_flag {
    PE_SLOT_REQUIRED = 0,
    PE_SLOT_OPTIONAL = 1,  // absent: the step that reads it does without
    PE_SLOT_TIED = 2,      // absent: the token embedding serves
    PE_SLOT_VECTOR = 4     // read as floats: must be F32
} pe_slot_flag;

/* One weight: its GGUF name, in which a leading "blk." means one per layer
 * ("blk.<layer>." is put there), and its shape as rows x columns. */
typedef struct pe_slot_row {
    pe_slot slot;
    const char *name;
    pe_dim rows;
    pe_dim cols;
    uint32_t flags;
} pe_slot_row;

/* What a layer does, in order. x is the residual stream, h the current value. */
typedef enum pe_step_kind {
    PE_STEP_RMS_NORM,     // h = rms_norm(x) * weight
    PE_STEP_QKV,          // q, k, v = projections of h
    PE_STEP_ROPE_PAIRS,   // rotate pairs (2 i, 2 i + 1) of each q and k head
    PE_STEP_ATTEND,       // store k, v; h = attention of q
    PE_STEP_SWIGLU,       // h = silu(gate h) * (up h)
    PE_STEP_PROJECT_ADD,  // x += weight h + bias
} pe_step_kind;

typedef struct pe_step {
    pe_step_kind kind;
    pe_slot weight;
    pe_slot bias;
} pe_step;

typedef struct pe_arch {
    const char *name;  // general.architecture
    const pe_hparam_row *hparams;
    size_t n_hparams;
    const pe_slot_row *slots;
    size_t n_slots;
    const pe_step *steps;
    size_t n_steps;
} pe_arch;

extern const pe_arch pe_arch_llama;

/* The descriptor at an index, or NULL past the last. */
const pe_arch *pe_arch_at(size_t index);

#endif
