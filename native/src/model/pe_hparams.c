#include "pe_hparams.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "pe_gguf.h"
#include "pe_math.h"

/* Bounds that keep products of hyper-parameters far from overflow and positions
 * within what the rotation's angles are exact for. */
#define MAX_HEADS 65536u
#define MAX_WIDTH (1u << 24)
#define MAX_SCALE 1e6
#define MAX_EXPERTS 65536u
#define MAX_STATE 65536u

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

/* A number, or the largest of one for each layer. */
static pe_status read_each(uint32_t *out, const pe_meta *meta, uint32_t n_layers,
                           const pe_file *file, pe_error *err) {
    if (meta->type != PE_META_ARRAY) {
        return pe_meta_get_u32(out, meta, err);
    }
    *out = 0;
    for (uint64_t i = 0; i < PE_MAX((uint64_t)n_layers, meta->n_items); i++) {
        uint32_t value;
        if (i >= n_layers || !pe_meta_u32_at(&value, meta, i)) {
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: %.*s: expected a 32-bit number for each of %u layers, found an"
                           " array of %" PRIu64 " items",
                           pe_file_path(file), PE_QUOTE(meta->key, meta->key_bytes), n_layers,
                           meta->n_items);
        }
        *out = PE_MAX(*out, value);
    }
    return PE_OK;
}

static pe_status read_row(pe_hparams *hp, const pe_hparam_row *row, const pe_arch *arch,
                          const pe_file *file, pe_error *err) {
    void *field = (uint8_t *)hp + row->field;
    const pe_meta *meta = find_hparam(file, arch, row->key);
    if (meta == NULL && row->absent == PE_ABSENT_EXPERT_FF) {
        meta = find_hparam(file, arch, "expert_feed_forward_length");
    }
    if (meta != NULL) {
        switch (row->kind) {
        case PE_HPARAM_U32: return pe_meta_get_u32(field, meta, err);
        case PE_HPARAM_BOOL: return pe_meta_get_bool(field, meta, err);
        case PE_HPARAM_F32: return pe_meta_get_f32(field, meta, err);
        case PE_HPARAM_EACH: return read_each(field, meta, hp->n_layers, file, err);
        }
    }
    uint32_t u32 = (uint32_t)row->value;
    float f32 = row->value;
    switch (row->absent) {
    case PE_ABSENT_ERROR:
    case PE_ABSENT_EXPERT_FF:
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

static pe_status check_gating(const pe_hparams *hp, const pe_file *file, pe_error *err) {
    if (hp->expert_gating > PE_GATING_SIGMOID) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "%s: expert gating: expected 1 (softmax) or 2 (sigmoid), found %u, which"
                       " this build cannot run",
                       pe_file_path(file), hp->expert_gating);
    }
    PE_TRY(in_range("expert scale", (double)hp->experts_scale, 0.0, MAX_SCALE, file, err));
    if (hp->n_expert_groups <= 1) {
        return PE_OK;
    }
    PE_TRY(in_range("expert groups", hp->n_expert_groups, 1, hp->n_experts, file, err));
    PE_TRY(in_range("expert groups used", hp->n_expert_groups_used, 1, hp->n_expert_groups, file,
                    err));
    if (hp->n_experts % hp->n_expert_groups != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: experts: expected a multiple of the %u groups, found %u",
                       pe_file_path(file), hp->n_expert_groups, hp->n_experts);
    }
    const uint32_t n_seen = hp->n_experts / hp->n_expert_groups * hp->n_expert_groups_used;
    return in_range("experts used", hp->n_experts_used, 1, n_seen, file, err);
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
        return check_gating(hp, file, err);
    }
    return PE_OK;
}

/* A file says of a latent model what one KV head holds, if projections out of the latent are
 * split, and else what a head would hold without a latent; and YaRN's gain, a tenth of it. */
static pe_status derive_latent(pe_hparams *hp, const pe_file *file, pe_error *err) {
    hp->has_split_kv = hp->d_head_k > 0 || hp->d_head_v > 0;
    if (!hp->has_split_kv) {
        hp->d_head_k = hp->d_k;
        hp->d_head_v = hp->d_v;
    }
    PE_TRY(in_range("number of heads", hp->n_heads, 1, MAX_HEADS, file, err));
    const double widest = (double)(MAX_WIDTH / hp->n_heads);
    PE_TRY(in_range("KV latent length", hp->d_latent, 1, widest / 2, file, err));
    PE_TRY(in_range("query latent length", hp->d_query, 0, MAX_WIDTH, file, err));
    PE_TRY(in_range("head key length", hp->d_head_k, 3, widest / 2, file, err));
    PE_TRY(in_range("head value length", hp->d_head_v, 1, widest / 2, file, err));
    PE_TRY(in_range("rotated dimensions", hp->d_rot, 2, hp->d_head_k - 1, file, err));
    PE_TRY(in_range("attention window", hp->window, 0, 0, file, err));
    if (hp->has_split_kv) {
        PE_TRY(in_range("number of KV heads", hp->n_kv_heads, 1, 1, file, err));
        PE_TRY(in_range("key length", hp->d_k, hp->d_latent + hp->d_rot, hp->d_latent + hp->d_rot,
                        file, err));
        PE_TRY(in_range("value length", hp->d_v, hp->d_latent, hp->d_latent, file, err));
    }
    hp->n_kv_heads = 1;
    hp->d_k = hp->d_rot + hp->d_latent;
    hp->d_v = hp->d_latent;
    double gain = 1.0;
    if (hp->rope_scaling == PE_ROPE_YARN && hp->yarn_log_mul != 0.0f && hp->rope_factor > 1.0f) {
        gain = 1.0 + (double)hp->yarn_log_mul * pe_log((double)hp->rope_factor);
        gain *= (double)hp->rope_attn_factor;
        hp->yarn_attn_factor = 1.0f;  // angles keep what rope_attn_factor says
    }
    hp->attn_scale = (float)(gain * gain / sqrt((double)hp->d_head_k));
    return PE_OK;
}

uint64_t pe_hparams_state_floats(const pe_hparams *hp, pe_state_kind kind) {
    switch (kind) {
    case PE_STATE_NONE: return 0;
    case PE_STATE_SHORTCONV: return (uint64_t)(hp->n_conv - 1) * hp->d_model;
    case PE_STATE_DELTA:
        return (uint64_t)(hp->n_conv - 1) * pe_hparams_delta_channels(hp) +
               (uint64_t)hp->d_delta_k * hp->d_delta_values;
    case PE_STATE_MAMBA2: return pe_hparams_ssm_first(hp) + (uint64_t)hp->d_inner * hp->d_state;
    }
    return 0;
}

uint64_t pe_hparams_mix_width(const pe_hparams *hp, pe_state_kind kind) {
    switch (kind) {
    case PE_STATE_NONE: return 0;
    case PE_STATE_SHORTCONV: return 3 * (uint64_t)hp->d_model;
    case PE_STATE_DELTA:
        return pe_hparams_delta_channels(hp) + hp->d_delta_values +
               2 * (uint64_t)hp->n_delta_v_heads;
    case PE_STATE_MAMBA2: return hp->d_inner + pe_hparams_ssm_conv(hp) + hp->n_ssm_heads;
    }
    return 0;
}

static pe_status check_delta(const pe_hparams *hp, const pe_file *file, pe_error *err) {
    PE_TRY(in_range("key heads of the delta rule", hp->n_delta_k_heads, 1, MAX_HEADS, file, err));
    PE_TRY(in_range("value heads of the delta rule", hp->n_delta_v_heads, 1, MAX_HEADS, file, err));
    PE_TRY(in_range("key length of the delta rule", hp->d_delta_k, 1,
                    MAX_WIDTH / hp->n_delta_k_heads, file, err));
    PE_TRY(in_range("values of the delta rule", hp->d_delta_values, 1, MAX_WIDTH, file, err));
    if (hp->n_delta_v_heads % hp->n_delta_k_heads != 0 ||
        hp->d_delta_values % hp->n_delta_v_heads != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: delta rule: expected value heads that are a multiple of the %u key"
                       " heads and share %u values, found %u",
                       pe_file_path(file), hp->n_delta_k_heads, hp->d_delta_values,
                       hp->n_delta_v_heads);
    }
    return PE_OK;
}

static pe_status check_mamba2(const pe_hparams *hp, const pe_file *file, pe_error *err) {
    PE_TRY(in_range("inner width of Mamba layers", hp->d_inner, 1, MAX_WIDTH, file, err));
    PE_TRY(in_range("state size", hp->d_state, 1, MAX_STATE, file, err));
    PE_TRY(in_range("number of Mamba heads", hp->n_ssm_heads, 1, MAX_HEADS, file, err));
    PE_TRY(in_range("number of Mamba groups", hp->n_ssm_groups, 1, hp->n_ssm_heads, file, err));
    if (hp->d_inner % hp->n_ssm_heads != 0 || hp->n_ssm_heads % hp->n_ssm_groups != 0) {
        return pe_fail(err, PE_ERR_FORMAT,
                       "%s: Mamba layers: expected an inner width that %u heads divide, and heads"
                       " that %u groups divide, found a width of %u",
                       pe_file_path(file), hp->n_ssm_heads, hp->n_ssm_groups, hp->d_inner);
    }
    return PE_OK;
}

static bool has_latent(const pe_arch *arch) {
    for (size_t i = 0; i < arch->n_hparams; i++) {
        if (arch->hparams[i].field == offsetof(pe_hparams, d_latent)) {
            return true;
        }
    }
    return false;
}

static pe_status derive(pe_hparams *hp, const pe_arch *arch, const pe_file *file, pe_error *err) {
    if (has_latent(arch)) {
        PE_TRY(derive_latent(hp, file, err));
    }
    if (hp->n_shared > 0) {
        const double widest = (double)hp->n_shared * (double)hp->d_expert;
        PE_TRY(in_range("shared expert length", widest, 1, MAX_WIDTH, file, err));
        hp->d_shared = hp->n_shared * hp->d_expert;
    }
    if (hp->n_predictors > 0) {
        PE_TRY(in_range("layers that predict", hp->n_predictors, 0, (double)hp->n_layers - 1.0,
                        file, err));
        hp->n_layers -= hp->n_predictors;
    }
    return in_range("leading dense layers", hp->n_dense_layers, 0, hp->n_layers, file, err);
}

/* Widths are bounded so that no product of them overflows. */
static pe_status check_state(const pe_hparams *hp, pe_state_kind kind, const pe_file *file,
                             pe_error *err) {
    if (kind != PE_STATE_NONE) {
        PE_TRY(in_range("tokens of the convolution", hp->n_conv, 1, PE_MAX_CONV, file, err));
    }
    switch (kind) {
    case PE_STATE_DELTA: return check_delta(hp, file, err);
    case PE_STATE_MAMBA2: return check_mamba2(hp, file, err);
    default: return PE_OK;
    }
}

/* Pair i of a head belongs to axis i % 3 of a picture, counted within the sum of the sections,
 * as long as that axis' section has room. In a text all three positions are one; a pair of a
 * fourth kind would stand still, and there is no model that wants it. */
static pe_status check_sections(const pe_hparams *hp, const pe_arch *arch, const pe_file *file,
                                pe_error *err) {
    const pe_meta *meta = find_hparam(file, arch, "rope.dimension_sections");
    if (meta == NULL) {
        return PE_OK;
    }
    uint32_t sections[4] = {0};
    uint64_t n_pairs = 0;
    for (uint32_t i = 0; i < PE_LEN(sections); i++) {
        if (!pe_meta_u32_at(&sections[i], meta, i)) {
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: %s.rope.dimension_sections: expected an array of four numbers,"
                           " found another value",
                           pe_file_path(file), arch->name);
        }
        n_pairs += sections[i];
    }
    for (uint32_t i = 0; i < hp->d_rot / 2; i++) {
        const uint64_t at = n_pairs > 0 ? i % n_pairs : i;
        if (at / 3 >= sections[at % 3]) {
            return pe_fail(err, PE_ERR_UNSUPPORTED,
                           "%s: %s.rope.dimension_sections: expected three sections that share %u"
                           " pairs in turn, found %u, %u, %u, %u",
                           pe_file_path(file), arch->name, hp->d_rot / 2, sections[0], sections[1],
                           sections[2], sections[3]);
        }
    }
    return PE_OK;
}

/* What a token sees, and what becomes of a text. */
static pe_status check_texts(const pe_hparams *hp, const pe_arch *arch, const pe_file *file,
                             pe_error *err) {
    if (arch->is_encoder && hp->is_causal != 0) {
        return pe_fail(err, PE_ERR_UNSUPPORTED,
                       "%s: %s.attention.causal: expected false, since this build knows the"
                       " architecture as an encoder, found true",
                       pe_file_path(file), arch->name);
    }
    if (hp->is_causal == 0 && hp->window > 0 && !arch->window_is_symmetric) {
        return pe_fail(
            err, PE_ERR_UNSUPPORTED,
            "%s: %s.attention.causal: expected true beside a sliding window, found false,"
            " which this build cannot run",
            pe_file_path(file), arch->name);
    }
    if (hp->pooling > PE_POOLING_LAST && hp->pooling != PE_POOLING_UNSAID) {
        return pe_fail(
            err, PE_ERR_UNSUPPORTED,
            "%s: %s.pooling_type: expected 0 (none), 1 (mean), 2 (cls) or 3 (last), found"
            " %u%s, which this build cannot run",
            pe_file_path(file), arch->name, hp->pooling,
            hp->pooling == 4 ? " (rank, a reranker's head)" : "");
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
    PE_TRY(check_state(hp, arch->state, file, err));
    PE_TRY(check_sections(hp, arch, file, err));
    if (arch->queries_are_gated) {
        PE_TRY(in_range("value length", hp->d_v, hp->d_k, hp->d_k, file, err));
        PE_TRY(in_range("value length in windows", hp->d_v_local, hp->d_k_local, hp->d_k_local,
                        file, err));
    }
    PE_TRY(check_texts(hp, arch, file, err));
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
static uint32_t number_of(const pe_meta *meta, uint32_t value, uint32_t layer) {
    if (meta != NULL && meta->type == PE_META_ARRAY) {
        pe_meta_u32_at(&value, meta, layer);  // it is there: read_each has seen it
    }
    return value;
}

/* The last layer of each period is attention, where files do not list them. */
#define ATTENTION_PERIOD 4u

/* Whether a layer has a state: by a key of its own, or those without KV heads, where the
 * architecture has such. */
static pe_status read_recurrent(bool *out, uint32_t n_kv_heads, uint32_t layer, const pe_arch *arch,
                                const pe_file *file, pe_error *err) {
    if (arch->state == PE_STATE_DELTA) {
        const pe_meta *flags = find_hparam(file, arch, "attention.recurrent_layers");
        const pe_meta *period = find_hparam(file, arch, "full_attention_interval");
        return read_flag(out, flags != NULL ? flags : period, ATTENTION_PERIOD, layer, file, err);
    }
    *out = n_kv_heads == 0 && arch->state != PE_STATE_NONE;
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
    const pe_meta *d_ff = find_hparam(file, arch, "feed_forward_length");
    const pe_meta *kv_heads = find_hparam(file, arch, "attention.head_count_kv");
    // A latent is the one head of its layer, whatever the file says.
    const uint32_t n_kv_heads =
        hp->d_latent > 0 ? hp->n_kv_heads : number_of(kv_heads, hp->n_kv_heads, layer);
    bool is_recurrent;
    PE_TRY(read_recurrent(&is_recurrent, n_kv_heads, layer, arch, file, err));
    *out = (pe_layer_hparams){
        .is_recurrent = is_recurrent,
        .has_kv = !is_recurrent && layer < hp->n_layers - hp->n_shared_kv,
        .n_kv_heads = is_recurrent ? 0 : n_kv_heads,
        .kind =
            hp->n_experts > 0 && layer >= hp->n_dense_layers ? PE_LAYER_EXPERTS : PE_LAYER_DENSE,
        .rope = !is_rotated   ? PE_ROPE_NONE
                : is_windowed ? PE_ROPE_LOCAL
                              : PE_ROPE_GLOBAL,
        .window = is_windowed ? hp->window : 0,
        .d_k = is_windowed ? hp->d_k_local : hp->d_k,
        .d_v = is_windowed ? hp->d_v_local : hp->d_v,
        .d_rot = is_windowed ? hp->d_rot_local : hp->d_rot,
        .d_ff = number_of(d_ff, hp->d_ff, layer),
    };
    PE_TRY(in_range("feed-forward length", out->d_ff, 1, MAX_WIDTH, file, err));
    return is_recurrent ? PE_OK : check_heads(hp->n_heads, n_kv_heads, file, err);
}

/* The last of the first n layers that has keys and values and a window, or none, as the given
 * one; NULL: there is none. */
static const pe_layer_hparams *last_alike(const pe_layer_hparams *layers, uint32_t n,
                                          const pe_layer_hparams *as) {
    for (uint32_t i = n; i > 0; i--) {
        const pe_layer_hparams *layer = &layers[i - 1];
        if (layer->has_kv && (layer->window > 0) == (as->window > 0)) {
            return layer;
        }
    }
    return NULL;
}

pe_status pe_hparams_share_kv(pe_layer_hparams *layers, const pe_hparams *hp, const pe_file *file,
                              pe_error *err) {
    const uint32_t n_own = hp->n_layers - hp->n_shared_kv;
    for (uint32_t i = n_own; i < hp->n_layers; i++) {
        pe_layer_hparams *layer = &layers[i];
        const pe_layer_hparams *owner = last_alike(layers, n_own, layer);
        if (owner == NULL || owner->n_kv_heads != layer->n_kv_heads) {
            return pe_fail(err, PE_ERR_FORMAT,
                           "%s: layer %u: expected a layer below %u with %s window and %u KV heads,"
                           " whose keys and values it attends to, found none",
                           pe_file_path(file), i, n_own, layer->window > 0 ? "a" : "no",
                           layer->n_kv_heads);
        }
        layer->kv_layer = owner->kv_layer;
    }
    return PE_OK;
}

pe_status pe_hparams_read(pe_hparams *out, const pe_arch *arch, const pe_file *file,
                          pe_error *err) {
    for (size_t i = 0; i < arch->n_hparams; i++) {
        PE_TRY(read_row(out, &arch->hparams[i], arch, file, err));
    }
    PE_TRY(read_rope_scaling(out, arch, file, err));
    PE_TRY(derive(out, arch, file, err));
    return check_hparams(out, arch, file, err);
}
