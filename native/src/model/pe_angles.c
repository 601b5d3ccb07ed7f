#include "pe_angles.h"

#include "pe_math.h"

/* YaRN's 0.1 m ln(factor) + 1, which makes up for flatter scores. */
static double yarn_gain(double factor, double m) {
    return factor <= 1.0 ? 1.0 : 0.1 * m * pe_log(factor) + 1.0;
}

static float magnitude_of(const pe_hparams *hp) {
    double magnitude = 1.0;
    if (hp->rope_scaling == PE_ROPE_YARN && hp->yarn_attn_factor > 0.0f) {
        magnitude = (double)hp->yarn_attn_factor;
    } else if (hp->rope_scaling == PE_ROPE_YARN) {
        const double factor = (double)hp->rope_factor;
        magnitude = yarn_gain(factor, 1.0);
        if (hp->yarn_log_mul > 0.0f) {
            magnitude /= yarn_gain(factor, (double)hp->yarn_log_mul);
        }
    }
    return (float)(magnitude * (double)hp->rope_attn_factor);
}

void pe_angles_rule(pe_rope_rule *out, float *out_magnitude, const pe_model *model,
                    pe_rope_angles_kind kind, uint32_t n_ctx) {
    const pe_hparams *hp = &model->hparams;
    *out = (pe_rope_rule){.base = kind == PE_ROPE_LOCAL ? hp->rope_base_local : hp->rope_base,
                          .factor = 1.0f};
    *out_magnitude = 1.0f;
    if (kind == PE_ROPE_LOCAL && model->arch->local_rope_is_unscaled) {
        return;
    }
    *out_magnitude = magnitude_of(hp);
    out->factor = hp->rope_factor;
    out->is_yarn = hp->rope_scaling == PE_ROPE_YARN;
    out->truncates = hp->yarn_truncate != 0;
    out->beta_fast = hp->yarn_beta_fast;
    out->beta_slow = hp->yarn_beta_slow;
    out->n_ctx = hp->n_ctx_rope;
    out->factors = model->shared[PE_W_ROPE_FREQS].data;
    if (model->shared[PE_W_ROPE_LONG].data != NULL) {
        const pe_slot slot = n_ctx > hp->n_ctx_rope ? PE_W_ROPE_LONG : PE_W_ROPE_SHORT;
        out->factors = model->shared[slot].data;
    }
}
