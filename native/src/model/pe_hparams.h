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

/* What one layer has of its own. */
pe_status pe_hparams_read_layer(pe_layer_hparams *out, const pe_hparams *hp, uint32_t layer,
                                const pe_arch *arch, const pe_file *file, pe_error *err);

/* Once all layers are read: the last n_shared_kv of them attend to the keys and values of the
 * last one before them that has a window, or none, as they have. */
pe_status pe_hparams_share_kv(pe_layer_hparams *layers, const pe_hparams *hp, const pe_file *file,
                              pe_error *err);

#endif
