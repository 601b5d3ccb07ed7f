#include "pe_bind.h"

#include <inttypes.h>
#include <stdio.h>

#include "pe_hparams.h"
#include "pe_mem.h"

#define NAME_BYTES 128

/* Far from overflow when counted in bytes. */
#define MAX_STATE_FLOATS ((uint64_t)1 << 36)

/* ---- architecture ----------------------------------------------------- */

static pe_status find_arch(const pe_arch **out, const pe_file *file, pe_error *err) {
    const pe_meta *meta = pe_file_find_meta(file, "general.architecture");
    if (meta == NULL || meta->type != PE_META_STRING) {
        return pe_fail(err, PE_ERR_FORMAT, "%s: general.architecture: expected a string, found %s",
                       pe_file_path(file), meta == NULL ? "nothing" : "another type");
    }
    char known[256] = "";
    for (size_t i = 0; pe_arch_at(i) != NULL; i++) {
        if (pe_meta_is_string(meta, pe_arch_at(i)->name)) {
            *out = pe_arch_at(i);
            return PE_OK;
        }
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", pe_arch_at(i)->name);
    }
    return pe_fail(err, PE_ERR_UNSUPPORTED,
                   "%s: architecture: expected one of %s, found \"%.*s\", which this build"
                   " cannot run",
                   pe_file_path(file), known, PE_QUOTE((const char *)meta->data, meta->n_bytes));
}

/* The vocabulary is as large as the embedding; the tokenizer must agree. */
static pe_status read_vocab(pe_hparams *hp, const pe_file *file, pe_error *err) {
    const pe_tensor_info *embd = pe_file_find_tensor(file, "token_embd.weight");
    if (embd == NULL) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: token_embd.weight: expected a tensor, found none of that name",
                       pe_file_path(file));
    }
    if (embd->dims[1] > UINT32_MAX) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: token_embd.weight: expected fewer than 2^32 rows, found %" PRIu64,
                       pe_file_path(file), embd->dims[1]);
    }
    hp->n_vocab = (uint32_t)embd->dims[1];
    const pe_tensor_info *types = pe_file_find_tensor(file, "token_types.weight");
    hp->n_types = types == NULL ? 0 : (uint32_t)PE_MIN(types->dims[1], UINT32_MAX);
    const pe_meta *tokens = pe_file_find_meta(file, "tokenizer.ggml.tokens");
    if (tokens != NULL && (tokens->type != PE_META_ARRAY || tokens->item_type != PE_META_STRING)) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: tokenizer.ggml.tokens: expected an array of strings, found another"
                       " type",
                       pe_file_path(file));
    }
    if (tokens != NULL && tokens->n_items != hp->n_vocab) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: vocabulary: expected as many tokens as the embedding has rows (%u),"
                       " found %" PRIu64 " in tokenizer.ggml.tokens",
                       pe_file_path(file), hp->n_vocab, tokens->n_items);
    }
    return PE_OK;
}

/* ---- weights ---------------------------------------------------------- */

typedef struct binder {
    pe_model *model;
    const pe_file *file;
    uint32_t n_wrong;
    pe_error first;  // of the wrong ones
} binder;

static uint64_t dim_of(const pe_hparams *hp, const pe_layer_hparams *layer, pe_dim dim) {
    const uint64_t q = (uint64_t)hp->n_heads * layer->d_k;
    const uint64_t k = (uint64_t)layer->n_kv_heads * layer->d_k;
    const uint64_t v = (uint64_t)layer->n_kv_heads * layer->d_v;
    const uint64_t kv_head = (uint64_t)hp->d_head_k - hp->d_rot + hp->d_head_v;
    switch (dim) {
    case PE_DIM_NONE: return 0;
    case PE_DIM_ONE: return 1;
    case PE_DIM_VOCAB: return hp->n_vocab;
    case PE_DIM_MODEL: return hp->d_model;
    case PE_DIM_FF: return layer->d_ff;
    case PE_DIM_TWO_FF: return 2 * (uint64_t)layer->d_ff;
    case PE_DIM_HEAD: return layer->d_k;
    case PE_DIM_N_HEADS: return hp->n_heads;
    case PE_DIM_Q: return q;
    case PE_DIM_K: return k;
    case PE_DIM_V: return v;
    case PE_DIM_QK: return q + k;
    case PE_DIM_QKV: return q + k + v;
    case PE_DIM_HEADS: return (uint64_t)hp->n_heads * layer->d_v;
    case PE_DIM_ROT_PAIRS: return hp->d_rot / 2;
    case PE_DIM_EXPERTS: return hp->n_experts;
    case PE_DIM_EXPERT: return hp->d_expert;
    case PE_DIM_SHARED: return hp->d_shared;
    case PE_DIM_GATE_UP: return 2 * (uint64_t)hp->d_expert;
    case PE_DIM_PLE: return hp->d_ple;
    case PE_DIM_ALL_PLE: return (uint64_t)hp->n_layers * hp->d_ple;
    case PE_DIM_CONV: return hp->n_conv;
    case PE_DIM_THREE_MODEL: return 3 * (uint64_t)hp->d_model;
    case PE_DIM_LATENT: return hp->d_latent;
    case PE_DIM_LATENT_KEY: return (uint64_t)hp->d_rot + hp->d_latent;
    case PE_DIM_QUERY: return hp->d_query;
    case PE_DIM_Q_DIRECT: return hp->d_query == 0 ? (uint64_t)hp->n_heads * hp->d_head_k : 0;
    case PE_DIM_Q_INDIRECT: return hp->d_query > 0 ? (uint64_t)hp->n_heads * hp->d_head_k : 0;
    case PE_DIM_K_SPLIT: return hp->has_split_kv ? hp->d_latent : 0;
    case PE_DIM_V_SPLIT: return hp->has_split_kv ? hp->d_head_v : 0;
    case PE_DIM_KV_HEAD: return hp->has_split_kv ? 0 : kv_head;
    case PE_DIM_KV_HEADS: return hp->has_split_kv ? 0 : hp->n_heads * kv_head;
    case PE_DIM_NOPE: return hp->d_head_k - hp->d_rot;
    case PE_DIM_HEADS_OUT: return (uint64_t)hp->n_heads * hp->d_head_v;
    case PE_DIM_TWO_Q: return 2 * q;
    case PE_DIM_DELTA_CHANNELS: return pe_hparams_delta_channels(hp);
    case PE_DIM_DELTA_VALUES: return hp->d_delta_values;
    case PE_DIM_DELTA_V: return pe_hparams_delta_v(hp);
    case PE_DIM_DELTA_HEADS: return hp->n_delta_v_heads;
    case PE_DIM_TWO_DELTA_HEADS: return 2 * (uint64_t)hp->n_delta_v_heads;
    case PE_DIM_INNER: return hp->d_inner;
    case PE_DIM_SSM_IN: return pe_hparams_mix_width(hp, PE_STATE_MAMBA2);
    case PE_DIM_SSM_CONV: return pe_hparams_ssm_conv(hp);
    case PE_DIM_SSM_HEADS: return hp->n_ssm_heads;
    case PE_DIM_SSM_GROUPS: return hp->n_ssm_groups;
    case PE_DIM_SSM_GROUP: return hp->d_inner / hp->n_ssm_groups;
    case PE_DIM_CTX: return hp->n_ctx_train;
    case PE_DIM_TYPES: return hp->n_types;
    }
    return 0;
}

/* Whether the model has such weights at all. */
static bool is_in_model(const pe_slot_row *row, const pe_hparams *hp) {
    return (row->flags & PE_SLOT_PLE) == 0 || hp->d_ple > 0;
}

/* Whether a layer has the weight. */
static bool is_in_layer(const pe_slot_row *row, const pe_model *model, uint32_t layer) {
    const pe_layer_hparams *lp = &model->layer_hparams[layer];
    const uint32_t absent = (lp->kind == PE_LAYER_DENSE ? PE_SLOT_EXPERTS : PE_SLOT_DENSE) |
                            (lp->is_recurrent ? PE_SLOT_ATTENTION : PE_SLOT_RECURRENT);
    return (row->flags & absent) == 0 && is_in_model(row, &model->hparams);
}

/* Whether the layer reads it. Checkpoints may have key and value weights in layers that attend
 * to others' keys and values. */
static bool is_read(const pe_slot_row *row, const pe_model *model, uint32_t layer) {
    return is_in_layer(row, model, layer) &&
           ((row->flags & PE_SLOT_KV) == 0 || model->layer_hparams[layer].has_kv);
}

/* The shape that the tensor of a slot has, columns first. */
static void shape_of(uint64_t dims[4], const pe_hparams *hp, const pe_layer_hparams *layer,
                     const pe_slot_row *row) {
    dims[0] = dim_of(hp, layer, row->cols);
    dims[1] = dim_of(hp, layer, row->whole != PE_DIM_NONE ? row->whole : row->rows);
    dims[2] = dims[3] = 1;
    if ((row->flags & PE_SLOT_STACKED) != 0) {
        dims[(row->flags & PE_SLOT_VECTOR) != 0 ? 1 : 2] = hp->n_experts;
    }
    if ((row->flags & PE_SLOT_HEADS) != 0 && row->whole == PE_DIM_NONE) {
        dims[2] = hp->n_heads;
    }
}

static bool is_per_layer(const pe_slot_row *row) {
    return strncmp(row->name, "blk.", 4) == 0;
}

/* "blk.attn_q.weight" and layer 3 give "blk.3.attn_q.weight". */
static void weight_name(char *out, const pe_slot_row *row, uint32_t layer) {
    if (is_per_layer(row)) {
        snprintf(out, NAME_BYTES, "blk.%u.%s", layer, row->name + 4);
    } else {
        snprintf(out, NAME_BYTES, "%s", row->name);
    }
}

/* Notes one wrong weight; the first message is kept. */
#define WRONG(b, code, ...)                                                                        \
    do {                                                                                           \
        if ((b)->n_wrong++ == 0) {                                                                 \
            pe_error_set(&(b)->first, (code), __VA_ARGS__);                                        \
        }                                                                                          \
    } while (0)

static void bind_weight(binder *b, pe_weight *out, const pe_slot_row *row, uint32_t layer) {
    const pe_hparams *hp = &b->model->hparams;
    const pe_layer_hparams *lp = &b->model->layer_hparams[layer];
    char name[NAME_BYTES];
    weight_name(name, row, layer);
    const pe_tensor_info *tensor = pe_file_find_tensor(b->file, name);
    uint64_t dims[4];
    shape_of(dims, hp, lp, row);
    if ((row->flags & PE_SLOT_ELSE) != 0 && out->data != NULL) {
        if (tensor != NULL) {
            WRONG(b, PE_ERR_FORMAT, "%s: %s: expected this tensor or its parts, found both",
                  pe_file_path(b->file), name);
        }
        return;
    }
    if (tensor == NULL) {
        if (dims[0] == 0 || dims[1] == 0) {
            return;  // the model has none
        }
        if ((row->flags & PE_SLOT_TIED) != 0) {
            *out = b->model->shared[PE_W_TOKEN_EMBD];
        } else if ((row->flags & PE_SLOT_OPTIONAL) == 0) {
            WRONG(b, PE_ERR_FORMAT,
                  "%s: %s: expected a tensor [%" PRIu64 ", %" PRIu64 "], found none of that name",
                  pe_file_path(b->file), name, dims[1], dims[0]);
        }
        return;
    }
    const pe_dtype_traits *traits = pe_dtype_find(tensor->dtype);
    if (memcmp(tensor->dims, dims, sizeof dims) != 0) {
        char expected[96];
        snprintf(expected, sizeof expected, "[%" PRIu64 ", %" PRIu64 "]", dims[0], dims[1]);
        if (dims[2] != 1) {
            snprintf(expected, sizeof expected, "[%" PRIu64 ", %" PRIu64 ", %" PRIu64 "]", dims[0],
                     dims[1], dims[2]);
        }
        WRONG(b, PE_ERR_FORMAT,
              "%s: %s: expected shape %s, found [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
              "] (columns first)",
              pe_file_path(b->file), name, expected, tensor->dims[0], tensor->dims[1],
              tensor->dims[2], tensor->dims[3]);
        return;
    }
    if (!traits->info.can_compute) {
        WRONG(b, PE_ERR_UNSUPPORTED,
              "%s: %s: expected a tensor type that this build computes with, found %s",
              pe_file_path(b->file), name, traits->info.name);
        return;
    }
    if ((row->flags & PE_SLOT_VECTOR) != 0 && tensor->dtype != PE_DTYPE_F32) {
        WRONG(b, PE_ERR_UNSUPPORTED, "%s: %s: expected an F32 vector, found %s",
              pe_file_path(b->file), name, traits->info.name);
        return;
    }
    const uint64_t row_bytes = dims[0] / traits->info.block_weights * traits->info.block_bytes;
    const uint64_t n_rows = dim_of(hp, lp, row->rows);
    const bool is_stacked = (row->flags & PE_SLOT_STACKED) != 0;
    const bool has_heads = (row->flags & PE_SLOT_HEADS) != 0;
    *out = (pe_weight){
        .data = (const uint8_t *)tensor->data + dim_of(hp, lp, row->first) * row_bytes,
        .n_rows = n_rows,
        .n_cols = dims[0],
        .n_stacked = is_stacked  ? hp->n_experts
                     : has_heads ? hp->n_heads
                                 : 1,
        .stack_rows = has_heads ? n_rows : dims[1],
        .row_bytes = row_bytes,
        .dtype = (pe_dtype)tensor->dtype,
    };
    b->model->all_f32 &= tensor->dtype == PE_DTYPE_F32;
    b->model->weight_bytes += out->n_stacked * n_rows * row_bytes;
    if ((row->flags & PE_SLOT_LOOKUP) == 0) {
        const uint64_t n_read = is_stacked ? hp->n_experts_used : out->n_stacked;
        b->model->decode_bytes += n_read * n_rows * row_bytes;
    }
}

/* Whether a slot of the architecture has this tensor's name. */
static bool is_known(const pe_model *model, const pe_tensor_info *tensor) {
    for (size_t i = 0; i < model->arch->n_slots; i++) {
        const pe_slot_row *row = &model->arch->slots[i];
        const size_t n_tail = strlen(row->name) - (is_per_layer(row) ? 3 : 0);
        if (tensor->name_bytes < n_tail) {
            continue;
        }
        // The tail of a layer's weight begins with the dot behind its number.
        const char *tail = tensor->name + tensor->name_bytes - n_tail;
        if (memcmp(tail, row->name + strlen(row->name) - n_tail, n_tail) != 0) {
            continue;
        }
        char number[16] = "";
        const uint64_t n_head = tensor->name_bytes - n_tail;
        if (!is_per_layer(row)) {
            if (n_head == 0 && is_in_model(row, &model->hparams)) {
                return true;
            }
            continue;
        }
        if (n_head < 5 || n_head >= sizeof number || memcmp(tensor->name, "blk.", 4) != 0) {
            continue;
        }
        memcpy(number, tensor->name + 4, (size_t)n_head - 4);
        uint32_t layer;
        char canonical[16];
        if (sscanf(number, "%u", &layer) == 1 && layer < model->hparams.n_layers &&
            is_in_layer(row, model, layer)) {
            snprintf(canonical, sizeof canonical, "%u", layer);
            if (strcmp(canonical, number) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* Whether a tensor belongs to a layer behind those that the model runs. */
static bool is_left_out(const pe_model *model, const pe_tensor_info *tensor) {
    const pe_hparams *hp = &model->hparams;
    for (uint32_t i = 0; i < hp->n_predictors; i++) {
        char head[NAME_BYTES];
        const int n = snprintf(head, sizeof head, "blk.%u.", hp->n_layers + i);
        if (tensor->name_bytes > (uint64_t)n && memcmp(tensor->name, head, (size_t)n) == 0) {
            return true;
        }
    }
    return false;
}

/* A weight that nothing reads would silently change what the model computes. */
static void check_unused(binder *b) {
    pe_file_info info;
    pe_file_describe(&info, b->file);
    for (uint64_t i = 0; i < info.n_tensors; i++) {
        const pe_tensor_info *tensor = pe_file_tensor_at(b->file, i);
        if (!is_known(b->model, tensor) && !is_left_out(b->model, tensor)) {
            WRONG(b, PE_ERR_UNSUPPORTED,
                  "%s: %.*s: expected only weights that architecture %s of %u layers has, found"
                  " one that nothing would read",
                  pe_file_path(b->file), PE_QUOTE(tensor->name, tensor->name_bytes),
                  b->model->arch->name, b->model->hparams.n_layers);
        }
    }
}

/* Where a family lets keys be the values: only layers without a window do so, and then both
 * have one width. */
static void check_values(binder *b) {
    const pe_hparams *hp = &b->model->hparams;
    for (uint32_t i = 0; i < hp->n_layers && b->n_wrong == 0 && hp->d_latent == 0; i++) {
        const pe_layer_hparams *layer = &b->model->layer_hparams[i];
        if (layer->has_kv && b->model->layers[i][PE_W_ATTN_V].data == NULL &&
            (layer->window > 0 || layer->d_k != layer->d_v)) {
            WRONG(b, PE_ERR_FORMAT,
                  "%s: blk.%u.attn_v.weight: expected a tensor, since the layer %s, found none of"
                  " that name",
                  pe_file_path(b->file), i,
                  layer->window > 0 ? "has a window" : "has values of another width than keys");
        }
    }
}

static pe_status bind_weights(pe_model *model, const pe_file *file, pe_error *err) {
    binder b = {.model = model, .file = file};
    model->all_f32 = true;
    for (size_t i = 0; i < model->arch->n_slots; i++) {
        const pe_slot_row *row = &model->arch->slots[i];
        if (!is_per_layer(row)) {
            if (is_in_model(row, &model->hparams)) {
                bind_weight(&b, &model->shared[row->slot], row, 0);
            }
            continue;
        }
        for (uint32_t layer = 0; layer < model->hparams.n_layers; layer++) {
            if (is_read(row, model, layer)) {
                bind_weight(&b, &model->layers[layer][row->slot], row, layer);
            }
        }
    }
    check_values(&b);
    check_unused(&b);
    if (b.n_wrong > 1) {
        return pe_fail(err, (pe_status)b.first.code, "%s (and %u more)", b.first.message,
                       b.n_wrong - 1);
    }
    if (b.n_wrong == 1) {
        return pe_fail(err, (pe_status)b.first.code, "%s", b.first.message);
    }
    if (model->shared[PE_W_OUTPUT].data != NULL &&
        model->shared[PE_W_OUTPUT].data == model->shared[PE_W_TOKEN_EMBD].data) {
        const pe_weight *tied = &model->shared[PE_W_OUTPUT];
        model->decode_bytes += tied->n_rows * tied->row_bytes;
    }
    return PE_OK;
}

/* The fastest rotation has frequency 1 before scaling; no angle may leave what
 * pe_sincos is exact for. */
static pe_status check_factors(const pe_model *model, pe_slot slot, const char *name,
                               const pe_file *file, pe_error *err) {
    const pe_weight *factors = &model->shared[slot];
    const pe_hparams *hp = &model->hparams;
    const uint64_t n = factors->data != NULL ? factors->n_cols : 1;
    for (uint64_t i = 0; i < n; i++) {
        const float factor = factors->data != NULL ? ((const float *)factors->data)[i] : 1.0f;
        const double least = PE_MIN((double)hp->rope_factor, 1.0);
        const double largest = (double)hp->n_ctx_train / (least * (double)factor);
        if (!(factor > 0.0f) || !pe_f32_is_finite(factor) || largest > PE_MAX_CTX) {
            const bool tensor = factors->data != NULL;
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: %s: expected factors above 0 that keep angles below 2^28, found %g"
                           " at %" PRIu64,
                           pe_file_path(file), tensor ? name : "rope.scaling.factor",
                           (double)(tensor ? factor : hp->rope_factor), i);
        }
    }
    return PE_OK;
}

static pe_status check_angles(const pe_model *model, const pe_file *file, pe_error *err) {
    const pe_weight *weights = model->shared;
    if (model->hparams.rope_scaling == PE_ROPE_LONG &&
        (weights[PE_W_ROPE_LONG].data == NULL || weights[PE_W_ROPE_SHORT].data == NULL)) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: rope.scaling.type longrope: expected rope_factors_long.weight and"
                       " rope_factors_short.weight, found no such tensors",
                       pe_file_path(file));
    }
    PE_TRY(check_factors(model, PE_W_ROPE_FREQS, "rope_freqs.weight", file, err));
    PE_TRY(check_factors(model, PE_W_ROPE_LONG, "rope_factors_long.weight", file, err));
    return check_factors(model, PE_W_ROPE_SHORT, "rope_factors_short.weight", file, err);
}

/* ---- the whole -------------------------------------------------------- */

/* Where a layer with keys and values of its own has them: behind those of the layers before it.
 * Where every token sees the whole text a layer needs no keys but its own, so that layers that
 * are alike have one place. */
static uint32_t place_kv(pe_model *model, const pe_layer_hparams *layer) {
    const pe_layer_hparams *first = model->layer_hparams;
    const bool is_alike = first->n_kv_heads == layer->n_kv_heads && first->d_k == layer->d_k &&
                          first->d_v == layer->d_v;
    if (model->hparams.is_causal == 0 && first->has_kv && first != layer && is_alike) {
        return first->kv_layer;
    }
    return model->n_kv_layers++;
}

/* What layers have of their own, and where their keys and values or states lie. */
static pe_status read_layers(pe_model *model, const pe_file *file, pe_error *err) {
    const pe_hparams *hp = &model->hparams;
    const uint64_t per_line = PE_CACHE_LINE / sizeof(float);
    const uint64_t n_floats = pe_hparams_state_floats(hp, model->arch->state);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        pe_layer_hparams *layer = &model->layer_hparams[i];
        PE_TRY(pe_hparams_read_layer(layer, hp, i, model->arch, file, err));
        if (layer->has_kv) {
            layer->kv_layer = place_kv(model, layer);
        }
        if (!layer->is_recurrent) {
            continue;
        }
        layer->state_first = model->state_floats;
        // At least a line, so that a model with recurrent layers has a state.
        const uint64_t n_lines = PE_MAX(pe_ceil_div(n_floats, per_line), 1u);
        if (!pe_add_u64(&model->state_floats, model->state_floats, n_lines * per_line) ||
            model->state_floats > MAX_STATE_FLOATS) {
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: recurrent layers: expected states of at most 2^36 numbers together,"
                           " found %" PRIu64 " in each of the first %u",
                           pe_file_path(file), n_floats, i + 1);
        }
    }
    return pe_hparams_share_kv(model->layer_hparams, hp, file, err);
}

static pe_status bind(pe_model *model, const pe_file *file, pe_error *err) {
    PE_TRY(find_arch(&model->arch, file, err));
    pe_hparams *hp = &model->hparams;
    PE_TRY(pe_hparams_read(hp, model->arch, file, err));
    PE_TRY(read_vocab(hp, file, err));
    model->layers = pe_mem_zalloc(hp->n_layers, sizeof *model->layers);
    model->layer_hparams = pe_mem_zalloc(hp->n_layers, sizeof *model->layer_hparams);
    if (model->layers == NULL || model->layer_hparams == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "%s: no memory for %u layers", pe_file_path(file),
                       hp->n_layers);
    }
    PE_TRY(read_layers(model, file, err));
    PE_TRY(bind_weights(model, file, err));
    return check_angles(model, file, err);
}

pe_status pe_bind(pe_model *out_model, const pe_file *file, pe_error *err) {
    *out_model = (pe_model){0};
    const pe_status status = bind(out_model, file, err);
    if (status != PE_OK) {
        pe_bind_free(out_model);
    }
    return status;
}

void pe_bind_free(pe_model *model) {
    pe_mem_free(model->layers);
    pe_mem_free(model->layer_hparams);
    *model = (pe_model){0};
}
