#include "pe_hparams.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "pe_gguf.h"

/* Bounds that keep products of hyper-parameters far from overflow and positions
 * within what the rotation's angles are exact for. */
#define MAX_HEADS 65536u
#define MAX_WIDTH (1u << 24)
#define MAX_SCALE 1e6
#define MAX_EXPERTS 65536u

#define NAME_BYTES 128

static const pe_meta *find_hparam(const pe_file *file, const pe_arch *arch, const char *key) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", arch->name, key);
    return pe_file_find_meta(file, name);
}

/* ---- rows ------------------------------------------------------------- */

static float attn_scale(const pe_hparams *hp, float n_layers) {
    const bool by_width = (float)hp->n_layers == n_layers && hp->n_heads > 0;
    const uint32_t width = by_width ? hp->d_model / hp->n_heads : hp->d_k;
    return 1.0f / sqrtf((float)width);
}

/* A number that every layer has, or the largest of those that layers have. */
static pe_status read_each(uint32_t *out, const pe_meta *meta, pe_error *err) {
    if (meta->type != PE_META_ARRAY) {
        return pe_meta_get_u32(out, meta, err);
    }
    *out = 0;
    for (uint64_t i = 0; i < meta->n_items; i++) {
        uint32_t item = 0;
        *out = pe_meta_u32_at(&item, meta, i) ? PE_MAX(*out, item) : *out;
    }
    return PE_OK;
}

static pe_status read_row(pe_hparams *hp, const pe_hparam_row *row, const pe_arch *arch,
                          const pe_file *file, pe_error *err) {
    void *field = (uint8_t *)hp + row->field;
    const pe_meta *meta = find_hparam(file, arch, row->key);
    if (meta != NULL) {
        switch (row->kind) {
        case PE_HPARAM_U32: return pe_meta_get_u32(field, meta, err);
        case PE_HPARAM_EACH: return read_each(field, meta, err);
        case PE_HPARAM_BOOL: return pe_meta_get_bool(field, meta, err);
        case PE_HPARAM_F32: return pe_meta_get_f32(field, meta, err);
        }
    }
    uint32_t u32 = (uint32_t)row->value;
    float f32 = row->value;
    switch (row->absent) {
    case PE_ABSENT_ERROR:
        return pe_fail(err, PE_ERR_FORMAT, "%s: %s.%s: expected a value, found no such key",
                       pe_file_path(file), arch->name, row->key);
    case PE_ABSENT_VALUE: break;
    case PE_ABSENT_HEADS: u32 = hp->n_heads; break;
    case PE_ABSENT_HEAD_WIDTH: u32 = hp->n_heads > 0 ? hp->d_model / hp->n_heads : 0; break;
    case PE_ABSENT_D_K: u32 = hp->d_k; break;
    case PE_ABSENT_D_V: u32 = hp->d_v; break;
    case PE_ABSENT_D_ROT: u32 = hp->d_rot; break;
    case PE_ABSENT_D_FF: u32 = hp->d_ff; break;
    case PE_ABSENT_CTX: u32 = hp->n_ctx_train; break;
    case PE_ABSENT_ROPE_BASE: f32 = hp->rope_base; break;
    case PE_ABSENT_ROOT_WIDTH: f32 = sqrtf((float)hp->d_model); break;
    case PE_ABSENT_ATTN_SCALE: f32 = attn_scale(hp, row->value); break;
    }
    if (row->kind == PE_HPARAM_F32) {
        memcpy(field, &f32, sizeof f32);
    } else {
        memcpy(field, &u32, sizeof u32);
    }
    return PE_OK;
}

/* llama3 scaling lies in rope_freqs.weight and has no key. */
static pe_status read_rope_scaling(pe_hparams *hp, const pe_arch *arch, const pe_file *file,
                                   pe_error *err) {
    hp->rope_factor = 1.0f;
    hp->rope_scaling = PE_ROPE_LINEAR;
    const pe_meta *type = find_hparam(file, arch, "rope.scaling.type");
    const pe_meta *factor = find_hparam(file, arch, "rope.scaling.factor");
    if (type == NULL) {
        // Files of 2023 have another key.
        factor = factor == NULL ? find_hparam(file, arch, "rope.scale_linear") : factor;
    } else if (pe_meta_is_string(type, "none") || pe_meta_is_string(type, "longrope")) {
        factor = NULL;
        hp->rope_scaling = pe_meta_is_string(type, "none") ? PE_ROPE_LINEAR : PE_ROPE_LONG;
    } else if (pe_meta_is_string(type, "yarn")) {
        hp->rope_scaling = PE_ROPE_YARN;
    } else if (!pe_meta_is_string(type, "linear")) {
        const bool text = type->type == PE_META_STRING;
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "%s: %s.rope.scaling.type: expected none, linear, yarn or longrope, found"
                       " \"%.*s\", which this build cannot run",
                       pe_file_path(file), arch->name,
                       PE_QUOTE(text ? (const char *)type->data : "?", text ? type->n_bytes : 1));
    }
    return factor != NULL ? pe_meta_get_f32(&hp->rope_factor, factor, err) : PE_OK;
}

/* ---- checks ----------------------------------------------------------- */

static pe_status in_range(const char *what, double value, double min, double max,
                          const pe_file *file, pe_error *err) {
    if (!(value >= min && value <= max)) {
        // %.10g shows every 32-bit integer in full.
        return pe_fail(err, PE_ERR_FORMAT, "%s: %s: expected %.10g to %.10g, found %.10g",
                       pe_file_path(file), what, min, max, value);
    }
    return PE_OK;
}

static pe_status check_scales(const pe_hparams *hp, const pe_file *file, pe_error *err) {
    const struct {
        const char *what;
        float value;
        double min;
    } scales[] = {
        {"embedding scale", hp->embd_scale, 1.0 / MAX_SCALE},
        {"residual scale", hp->residual_scale, 1.0 / MAX_SCALE},
        {"attention scale", hp->attn_scale, 1.0 / MAX_SCALE},
        {"logit scale", hp->logit_divisor, 1.0 / MAX_SCALE},
        {"attention softcap", hp->attn_softcap, 0.0},
        {"logit softcap", hp->logit_softcap, 0.0},
        {"attention temperature scale", hp->temper_scale, 0.0},
        {"rope factor", hp->rope_factor, 1.0 / MAX_SCALE},
        {"rope attention factor", hp->rope_attn_factor, 1.0 / MAX_SCALE},
        {"YaRN attention factor", hp->yarn_attn_factor, 0.0},
        {"YaRN log multiplier", hp->yarn_log_mul, 0.0},
        {"YaRN beta_fast", hp->yarn_beta_fast, 1.0 / MAX_SCALE},
        {"YaRN beta_slow", hp->yarn_beta_slow, 1.0 / MAX_SCALE},
    };
    for (size_t i = 0; i < PE_LEN(scales); i++) {
        PE_TRY(
            in_range(scales[i].what, (double)scales[i].value, scales[i].min, MAX_SCALE, file, err));
    }
    return PE_OK;
}

static pe_status check_experts(const pe_hparams *hp, const pe_arch *arch, const pe_file *file,
                               pe_error *err) {
    const pe_layer_kind kind = hp->n_experts > 0 ? PE_LAYER_EXPERTS : PE_LAYER_DENSE;
    if (arch->layers[kind].n_steps == 0) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "%s: architecture %s: expected %s, found a mixture of %u experts, which"
                       " this build cannot run",
                       pe_file_path(file), arch->name,
                       hp->n_experts > 0 ? "a dense model" : "experts", hp->n_experts);
    }
    if (hp->n_experts > 0) {
        PE_TRY(in_range("number of experts", hp->n_experts, 1, MAX_EXPERTS, file, err));
        PE_TRY(in_range("experts used", hp->n_experts_used, 1, hp->n_experts, file, err));
        PE_TRY(in_range("expert length", hp->d_expert, 1, MAX_WIDTH, file, err));
        PE_TRY(in_range("shared expert length", hp->d_shared, 0, MAX_WIDTH, file, err));
    }
    return PE_OK;
}

static pe_status check_heads(uint32_t n_heads, uint32_t n_kv_heads, const pe_file *file,
                             pe_error *err) {
    PE_TRY(in_range("number of KV heads", n_kv_heads, 1, n_heads, file, err));
    if (n_heads % n_kv_heads != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: heads: expected a multiple of the %u KV heads, found %u",
                       pe_file_path(file), n_kv_heads, n_heads);
    }
    return PE_OK;
}

static pe_status check_hparams(const pe_hparams *hp, const pe_arch *arch, const pe_file *file,
                               pe_error *err) {
    pe_file_info info;
    pe_file_describe(&info, file);
    // A layer has at least one tensor, so a file bounds the number of layers.
    PE_TRY(in_range("number of layers", hp->n_layers, 1, (double)info.n_tensors, file, err));
    PE_TRY(in_range("context length", hp->n_ctx_train, 1, PE_MAX_CTX, file, err));
    PE_TRY(in_range("original context length", hp->n_ctx_rope, 1, PE_MAX_CTX, file, err));
    PE_TRY(in_range("embedding length", hp->d_model, 1, MAX_WIDTH, file, err));
    PE_TRY(in_range("feed-forward length", hp->d_ff, 1, MAX_WIDTH, file, err));
    PE_TRY(in_range("number of heads", hp->n_heads, 1, MAX_HEADS, file, err));
    PE_TRY(in_range("key length", hp->d_k, 1, MAX_WIDTH / hp->n_heads, file, err));
    PE_TRY(in_range("value length", hp->d_v, 1, MAX_WIDTH / hp->n_heads, file, err));
    PE_TRY(in_range("rotated dimensions", hp->d_rot, 0, hp->d_k, file, err));
    PE_TRY(in_range("key length in windows", hp->d_k_local, 1, MAX_WIDTH / hp->n_heads, file, err));
    PE_TRY(
        in_range("value length in windows", hp->d_v_local, 1, MAX_WIDTH / hp->n_heads, file, err));
    PE_TRY(in_range("rotated dimensions in windows", hp->d_rot_local, 0, hp->d_k_local, file, err));
    PE_TRY(in_range("layers without keys and values", hp->n_shared_kv, 0, hp->n_layers - 1, file,
                    err));
    PE_TRY(in_range("per-layer input length", hp->d_ple, 0, MAX_WIDTH / hp->n_layers, file, err));
    PE_TRY(in_range("norm epsilon", (double)hp->norm_eps, 0.0, 1.0, file, err));
    // YaRN divides by the logarithm of the base.
    const double least_base = hp->rope_scaling == PE_ROPE_YARN ? 1.001 : 1.0;
    PE_TRY(in_range("rope base", (double)hp->rope_base, least_base, 1e30, file, err));
    PE_TRY(in_range("local rope base", (double)hp->rope_base_local, least_base, 1e30, file, err));
    PE_TRY(check_scales(hp, file, err));
    PE_TRY(check_experts(hp, arch, file, err));
    PE_TRY(check_heads(hp->n_heads, hp->n_kv_heads, file, err));
    if (hp->d_rot % 2 != 0 || hp->d_rot_local % 2 != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: rotated dimensions: expected an even number, found %u",
                       pe_file_path(file), hp->d_rot % 2 != 0 ? hp->d_rot : hp->d_rot_local);
    }
    return PE_OK;
}

/* ---- layers ----------------------------------------------------------- */

/* One flag of a key that has either one for each layer or, as a number, the period
 * after which a layer is not flagged. */
static pe_status read_flag(bool *out, const pe_meta *meta, uint32_t period, uint32_t layer,
                           const pe_file *file, pe_error *err) {
    if (meta != NULL && meta->type == PE_META_ARRAY) {
        if (!pe_meta_flag_at(out, meta, layer)) {
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: %.*s: expected a flag for layer %u, found an array of %" PRIu64
                           " items of another kind or too few",
                           pe_file_path(file), PE_QUOTE(meta->key, meta->key_bytes), layer,
                           meta->n_items);
        }
        return PE_OK;
    }
    if (meta != NULL) {
        PE_TRY(pe_meta_get_u32(&period, meta, err));
    }
    *out = period == 0 || (layer + 1) % period != 0;
    return PE_OK;
}

/* The number of a layer where a key may have one for each; value: where it has not. */
static pe_status read_number(uint32_t *out, const pe_meta *meta, uint32_t value, uint32_t layer,
                             const pe_file *file, pe_error *err) {
    *out = value;
    if (meta != NULL && meta->type == PE_META_ARRAY && !pe_meta_u32_at(out, meta, layer)) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: %.*s: expected a number for layer %u, found an array of %" PRIu64
                       " items of another kind or too few",
                       pe_file_path(file), PE_QUOTE(meta->key, meta->key_bytes), layer,
                       meta->n_items);
    }
    return PE_OK;
}

pe_status pe_hparams_read_layer(pe_layer_hparams *out, const pe_hparams *hp, uint32_t layer,
                                const pe_arch *arch, const pe_file *file, pe_error *err) {
    const pe_meta *windows = find_hparam(file, arch, "attention.sliding_window_pattern");
    const pe_meta *rotated = find_hparam(file, arch, "attention.rope_pattern");
    bool is_windowed = false;
    bool is_rotated = false;
    if (hp->window > 0) {
        PE_TRY(read_flag(&is_windowed, windows, arch->window_period, layer, file, err));
    }
    if (hp->has_rope != 0) {
        PE_TRY(read_flag(&is_rotated, rotated, arch->nope_period, layer, file, err));
    }
    *out = (pe_layer_hparams){
        .kind = hp->n_experts > 0 ? PE_LAYER_EXPERTS : PE_LAYER_DENSE,
        .rope = !is_rotated   ? PE_ROPE_NONE
                : is_windowed ? PE_ROPE_LOCAL
                              : PE_ROPE_GLOBAL,
        .window = is_windowed ? hp->window : 0,
        .d_k = is_windowed ? hp->d_k_local : hp->d_k,
        .d_v = is_windowed ? hp->d_v_local : hp->d_v,
        .d_rot = is_windowed ? hp->d_rot_local : hp->d_rot,
        .kv_layer = layer,
    };
    const pe_meta *d_ff = find_hparam(file, arch, "feed_forward_length");
    const pe_meta *n_kv_heads = find_hparam(file, arch, "attention.head_count_kv");
    PE_TRY(read_number(&out->d_ff, d_ff, hp->d_ff, layer, file, err));
    PE_TRY(read_number(&out->n_kv_heads, n_kv_heads, hp->n_kv_heads, layer, file, err));
    PE_TRY(in_range("feed-forward length", out->d_ff, 1, MAX_WIDTH, file, err));
    return check_heads(hp->n_heads, out->n_kv_heads, file, err);
}

/* The last of the first n layers that is windowed, or not, as the given one; n: none. */
static uint32_t last_alike(const pe_layer_hparams *layers, uint32_t n, const pe_layer_hparams *as) {
    for (uint32_t i = n; i > 0; i--) {
        if ((layers[i - 1].window > 0) == (as->window > 0)) {
            return i - 1;
        }
    }
    return n;
}

pe_status pe_hparams_share_kv(pe_layer_hparams *layers, const pe_hparams *hp, const pe_file *file,
                              pe_error *err) {
    const uint32_t n_own = hp->n_layers - hp->n_shared_kv;
    for (uint32_t i = n_own; i < hp->n_layers; i++) {
        pe_layer_hparams *layer = &layers[i];
        layer->kv_layer = last_alike(layers, n_own, layer);
        if (layer->kv_layer == n_own || layers[layer->kv_layer].n_kv_heads != layer->n_kv_heads) {
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: layer %u: expected a layer below %u with %s window and %u KV heads,"
                           " whose keys and values it attends to, found none",
                           pe_file_path(file), i, n_own, layer->window > 0 ? "a" : "no",
                           layer->n_kv_heads);
        }
    }
    return PE_OK;
}

pe_status pe_hparams_read(pe_hparams *out, const pe_arch *arch, const pe_file *file,
                          pe_error *err) {
    for (size_t i = 0; i < arch->n_hparams; i++) {
        PE_TRY(read_row(out, &arch->hparams[i], arch, file, err));
    }
    PE_TRY(read_rope_scaling(out, arch, file, err));
    return check_hparams(out, arch, file, err);
}
