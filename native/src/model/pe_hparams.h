/* Hyper-parameters out of metadata, checked. */
#ifndef PE_HPARAMS_H
#define PE_HPARAMS_H

#include "pe_arch.h"
#include "pe_file.h"

/* No angle of a rotation may leave what pe_sincos is exact for. */
#define PE_MAX_CTX (1u << 28)

/* Reads all rows of the architecture; n_vocab is left alone.
 * errors   PE_ERR_FORMAT, PE_ERR_UNSUPPORTED: the file's path, the key or the quantity,
 *          expected, found */
pe_status pe_hparams_read(pe_hparams *out, const pe_arch *arch, const pe_file *file, pe_error *err);

/* Floats that a recurrent layer of this kind remembers. */
uint64_t pe_hparams_state_floats(const pe_hparams *hp, pe_state_kind kind);

/* Queries, keys and values of a layer of the gated delta rule, and the width of a value head;
 * 0 in models without such layers. */
static inline uint64_t pe_hparams_delta_channels(const pe_hparams *hp) {
    return 2 * (uint64_t)hp->n_delta_k_heads * hp->d_delta_k + hp->d_delta_values;
}
static inline uint64_t pe_hparams_delta_v(const pe_hparams *hp) {
    return hp->n_delta_v_heads > 0 ? hp->d_delta_values / hp->n_delta_v_heads : 0;
}

/* Width of what such a layer projects its input to. */
uint64_t pe_hparams_mix_width(const pe_hparams *hp, pe_state_kind kind);

/* Channels that Mamba-2's convolution sees. */
static inline uint64_t pe_hparams_ssm_conv(const pe_hparams *hp) {
    return hp->d_inner + 2 * (uint64_t)hp->n_ssm_groups * hp->d_state;
}

/* Where, in a Mamba-2 layer's state, that of the heads begins. */
static inline uint64_t pe_hparams_ssm_first(const pe_hparams *hp) {
    const uint64_t per_line = PE_CACHE_LINE / sizeof(float);
    return pe_ceil_div((hp->n_conv - 1) * pe_hparams_ssm_conv(hp), per_line) * per_line;
}

/* What one layer has of its own; its places among others are left alone. */
pe_status pe_hparams_read_layer(pe_layer_hparams *out, const pe_hparams *hp, uint32_t layer,
                                const pe_arch *arch, const pe_file *file, pe_error *err);

/* Once all layers are read: the last n_shared_kv of them attend to the keys and values of the
 * last one before them that has a window, or none, as they have. */
pe_status pe_hparams_share_kv(pe_layer_hparams *layers, const pe_hparams *hp, const pe_file *file,
                              pe_error *err);

#endif
