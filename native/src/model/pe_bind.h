/* A model: an architecture's slots filled with a file's tensors, every shape, type
 * and hyper-parameter checked, so that the forward pass can trust its pointers.
 */
#ifndef PE_BIND_H
#define PE_BIND_H

#include "pe_arch.h"
#include "pe_file.h"
#include "pe_ops.h"

typedef struct pe_model {
    const pe_arch *arch;
    pe_hparams hparams;
    pe_weight shared[PE_W_COUNT];     // weights of the model as a whole
    pe_weight (*layers)[PE_W_COUNT];  // [n_layers]
    pe_layer_hparams *layer_hparams;  // [n_layers]
    uint32_t n_kv_layers;             // places of keys and values
    uint64_t state_floats;            // of a session's state; 0: no layer has one
    bool all_f32;                     // no matrix in a smaller type
    uint64_t weight_bytes;            // of all that is read
    uint64_t decode_bytes;            // read to decode one token
} pe_model;

/* Binds file to the architecture it names.
 * owner    out_model is freed with pe_bind_free and must not outlive file
 * errors   PE_ERR_UNSUPPORTED, PE_ERR_FORMAT: the file's path, the key or weight,
 *          expected, found; when several weights are wrong the message counts them
 *          and shows the first; PE_ERR_NOMEM */
pe_status pe_bind(pe_model *out_model, const pe_file *file, pe_error *err);

/* A zeroed model is allowed. */
void pe_bind_free(pe_model *model);

#endif
