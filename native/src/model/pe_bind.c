#include "pe_bind.h"

#include <inttypes.h>
#include <stdio.h>

#include "pe_mem.h"

/* Bounds that keep products of hyper-parameters far from overflow and positions
 * within what the rotation's angles are exact for. */
#define MAX_HEADS 65536u
#define MAX_WIDTH (1u << 24)
#define MAX_CTX (1u << 28)

#define NAME_BYTES 128

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

/* ---- hyper-parameters ------------------------------------------------- */

static const pe_meta *find_hparam(const pe_file *file, const pe_arch *arch, const char *key) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", arch->name, key);
    return pe_file_find_meta(file, name);
}

static pe_status read_hparam(pe_hparams *hp, const pe_hparam_row *row, const pe_arch *arch,
                             const pe_file *file, pe_error *err) {
    void *field = (uint8_t *)hp + row->field;
    const pe_meta *meta = find_hparam(file, arch, row->key);
    if (meta != NULL) {
        return row->kind == PE_HPARAM_U32 ? pe_meta_get_u32(field, meta, err)
                                          : pe_meta_get_f32(field, meta, err);
    }
    uint32_t u32 = (uint32_t)row->value;
    switch (row->absent) {
    case PE_ABSENT_ERROR:
        return pe_fail(err, PE_ERR_FORMAT, "%s: %s.%s: expected a value, found no such key",
                       pe_file_path(file), arch->name, row->key);
    case PE_ABSENT_VALUE: break;
    case PE_ABSENT_HEADS: u32 = hp->n_heads; break;
    case PE_ABSENT_HEAD_WIDTH: u32 = hp->n_heads > 0 ? hp->d_model / hp->n_heads : 0; break;
    case PE_ABSENT_D_K: u32 = hp->d_k; break;
    }
    if (row->kind == PE_HPARAM_U32) {
        memcpy(field, &u32, sizeof u32);
    } else {
        memcpy(field, &row->value, sizeof row->value);
    }
    return PE_OK;
}

/* Scaling kinds other than linear need angles that this build does not compute;
 * llama3 scaling lies in rope_freqs.weight and has no key. */
static pe_status read_rope_scaling(pe_hparams *hp, const pe_arch *arch, const pe_file *file,
                                   pe_error *err) {
    hp->rope_factor = 1.0f;
    const pe_meta *type = find_hparam(file, arch, "rope.scaling.type");
    if (type != NULL && !pe_meta_is_string(type, "none") && !pe_meta_is_string(type, "linear")) {
        const bool text = type->type == PE_META_STRING;
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "%s: %s.rope.scaling.type: expected none or linear, found \"%.*s\", which"
                       " this build cannot run",
                       pe_file_path(file), arch->name,
                       PE_QUOTE(text ? (const char *)type->data : "?", text ? type->n_bytes : 1));
    }
    const pe_meta *factor = find_hparam(file, arch, "rope.scaling.factor");
    if (factor == NULL && type == NULL) {
        factor = find_hparam(file, arch, "rope.scale_linear");  // files of 2023
    } else if (type == NULL || !pe_meta_is_string(type, "linear")) {
        factor = NULL;
    }
    return factor != NULL ? pe_meta_get_f32(&hp->rope_factor, factor, err) : PE_OK;
}

static pe_status in_range(const char *what, double value, double min, double max,
                          const pe_file *file, pe_error *err) {
    if (!(value >= min && value <= max)) {
        // %.10g shows every 32-bit integer in full.
        return pe_fail(err, PE_ERR_FORMAT, "%s: %s: expected %.10g to %.10g, found %.10g",
                       pe_file_path(file), what, min, max, value);
    }
    return PE_OK;
}

static pe_status check_hparams(const pe_hparams *hp, const pe_file *file, pe_error *err) {
    pe_file_info info;
    pe_file_describe(&info, file);
    if (hp->n_experts > 0) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "%s: expected a dense model, found a mixture of %u experts, which this"
                       " build cannot run",
                       pe_file_path(file), hp->n_experts);
    }
    // A layer has at least one tensor, so a file bounds the number of layers.
    PE_TRY(in_range("number of layers", hp->n_layers, 1, (double)info.n_tensors, file, err));
    PE_TRY(in_range("context length", hp->n_ctx_train, 1, MAX_CTX, file, err));
    PE_TRY(in_range("embedding length", hp->d_model, 1, MAX_WIDTH, file, err));
    PE_TRY(in_range("feed-forward length", hp->d_ff, 1, MAX_WIDTH, file, err));
    PE_TRY(in_range("number of heads", hp->n_heads, 1, MAX_HEADS, file, err));
    PE_TRY(in_range("number of KV heads", hp->n_kv_heads, 1, hp->n_heads, file, err));
    PE_TRY(in_range("key length", hp->d_k, 1, MAX_WIDTH / hp->n_heads, file, err));
    PE_TRY(in_range("value length", hp->d_v, 1, MAX_WIDTH / hp->n_heads, file, err));
    PE_TRY(in_range("rotated dimensions", hp->d_rot, 0, hp->d_k, file, err));
    PE_TRY(in_range("norm epsilon", (double)hp->norm_eps, 0.0, 1.0, file, err));
    PE_TRY(in_range("rope base", (double)hp->rope_base, 1.0, 1e30, file, err));
    PE_TRY(in_range("rope factor", (double)hp->rope_factor, 1e-6, 1e6, file, err));
    if (hp->n_heads % hp->n_kv_heads != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: heads: expected a multiple of the %u KV heads, found %u",
                       pe_file_path(file), hp->n_kv_heads, hp->n_heads);
    }
    if (hp->d_rot % 2 != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: rotated dimensions: expected an even number, found %u",
                       pe_file_path(file), hp->d_rot);
    }
    return PE_OK;
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

static uint64_t dim_of(const pe_hparams *hp, pe_dim dim) {
    switch (dim) {
    case PE_DIM_ONE: return 1;
    case PE_DIM_VOCAB: return hp->n_vocab;
    case PE_DIM_MODEL: return hp->d_model;
    case PE_DIM_FF: return hp->d_ff;
    case PE_DIM_Q: return (uint64_t)hp->n_heads * hp->d_k;
    case PE_DIM_K: return (uint64_t)hp->n_kv_heads * hp->d_k;
    case PE_DIM_V: return (uint64_t)hp->n_kv_heads * hp->d_v;
    case PE_DIM_HEADS: return (uint64_t)hp->n_heads * hp->d_v;
    case PE_DIM_ROT_PAIRS: return hp->d_rot / 2;
    }
    return 0;
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
    char name[NAME_BYTES];
    weight_name(name, row, layer);
    const pe_tensor_info *tensor = pe_file_find_tensor(b->file, name);
    const uint64_t n_rows = dim_of(hp, row->rows);
    const uint64_t n_cols = dim_of(hp, row->cols);
    if (tensor == NULL) {
        if ((row->flags & PE_SLOT_TIED) != 0) {
            *out = b->model->shared[PE_W_TOKEN_EMBD];
        } else if ((row->flags & PE_SLOT_OPTIONAL) == 0) {
            WRONG(b, PE_ERR_FORMAT,
                  "%s: %s: expected a tensor [%" PRIu64 ", %" PRIu64 "], found none of that name",
                  pe_file_path(b->file), name, n_rows, n_cols);
        }
        return;
    }
    const pe_dtype_traits *traits = pe_dtype_find(tensor->dtype);
    if (tensor->dims[0] != n_cols || tensor->dims[1] != n_rows || tensor->dims[2] != 1 ||
        tensor->dims[3] != 1) {
        WRONG(b, PE_ERR_FORMAT,
              "%s: %s: expected shape [%" PRIu64 ", %" PRIu64 "], found [%" PRIu64 ", %" PRIu64
              ", %" PRIu64 ", %" PRIu64 "] (columns first)",
              pe_file_path(b->file), name, n_cols, n_rows, tensor->dims[0], tensor->dims[1],
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
    *out = (pe_weight){
        .data = tensor->data,
        .n_rows = n_rows,
        .n_cols = n_cols,
        .row_bytes = n_cols / traits->info.block_weights * traits->info.block_bytes,
        .dtype = (pe_dtype)tensor->dtype,
    };
    b->model->all_f32 &= tensor->dtype == PE_DTYPE_F32;
    b->model->weight_bytes += tensor->n_bytes;
    if (row->slot != PE_W_TOKEN_EMBD) {
        b->model->decode_bytes += tensor->n_bytes;
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
            if (n_head == 0) {
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
        if (sscanf(number, "%u", &layer) == 1 && layer < model->hparams.n_layers) {
            snprintf(canonical, sizeof canonical, "%u", layer);
            if (strcmp(canonical, number) == 0) {
                return true;
            }
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
        if (!is_known(b->model, tensor)) {
            WRONG(b, PE_ERR_UNSUPPORTED,
                  "%s: %.*s: expected only weights that architecture %s of %u layers has, found"
                  " one that nothing would read",
                  pe_file_path(b->file), PE_QUOTE(tensor->name, tensor->name_bytes),
                  b->model->arch->name, b->model->hparams.n_layers);
        }
    }
}

static pe_status bind_weights(pe_model *model, const pe_file *file, pe_error *err) {
    binder b = {.model = model, .file = file};
    model->all_f32 = true;
    for (size_t i = 0; i < model->arch->n_slots; i++) {
        const pe_slot_row *row = &model->arch->slots[i];
        if (!is_per_layer(row)) {
            bind_weight(&b, &model->shared[row->slot], row, 0);
            continue;
        }
        for (uint32_t layer = 0; layer < model->hparams.n_layers; layer++) {
            bind_weight(&b, &model->layers[layer][row->slot], row, layer);
        }
    }
    check_unused(&b);
    if (b.n_wrong > 1) {
        return pe_fail(err, (pe_status)b.first.code, "%s (and %u more)", b.first.message,
                       b.n_wrong - 1);
    }
    if (b.n_wrong == 1) {
        return pe_fail(err, (pe_status)b.first.code, "%s", b.first.message);
    }
    if (model->shared[PE_W_OUTPUT].data == model->shared[PE_W_TOKEN_EMBD].data) {
        const pe_weight *tied = &model->shared[PE_W_OUTPUT];
        model->decode_bytes += tied->n_rows * tied->row_bytes;
    }
    return PE_OK;
}

/* The fastest rotation has frequency 1 before scaling; no angle may leave what
 * pe_sincos is exact for. */
static pe_status check_angles(const pe_model *model, const pe_file *file, pe_error *err) {
    const pe_weight *factors = &model->shared[PE_W_ROPE_FREQS];
    const pe_hparams *hp = &model->hparams;
    const uint64_t n = factors->data != NULL ? factors->n_cols : 1;
    for (uint64_t i = 0; i < n; i++) {
        const float factor = factors->data != NULL ? ((const float *)factors->data)[i] : 1.0f;
        const double largest = (double)hp->n_ctx_train / ((double)hp->rope_factor * (double)factor);
        if (!(factor > 0.0f) || !pe_f32_is_finite(factor) || largest > MAX_CTX) {
            const bool tensor = factors->data != NULL;
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: %s: expected factors above 0 that keep angles below 2^28, found %g"
                           " at %" PRIu64,
                           pe_file_path(file), tensor ? "rope_freqs.weight" : "rope.scaling.factor",
                           (double)(tensor ? factor : hp->rope_factor), i);
        }
    }
    return PE_OK;
}

/* ---- the whole -------------------------------------------------------- */

static pe_status bind(pe_model *model, const pe_file *file, pe_error *err) {
    PE_TRY(find_arch(&model->arch, file, err));
    pe_hparams *hp = &model->hparams;
    for (size_t i = 0; i < model->arch->n_hparams; i++) {
        PE_TRY(read_hparam(hp, &model->arch->hparams[i], model->arch, file, err));
    }
    PE_TRY(read_rope_scaling(hp, model->arch, file, err));
    PE_TRY(check_hparams(hp, file, err));
    PE_TRY(read_vocab(hp, file, err));
    model->layers = pe_mem_zalloc(hp->n_layers, sizeof *model->layers);
    if (model->layers == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "%s: no memory for %u layers", pe_file_path(file),
                       hp->n_layers);
    }
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
    *model = (pe_model){0};
}
