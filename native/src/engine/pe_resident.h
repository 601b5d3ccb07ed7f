/* Weights kept in memory of the process, interleaved as fast kernels want them.
 *
 * The file's mapping holds rows, which is what prefill and short runs need. Decoding and small
 * batches read all weights for a few columns, and do it faster from strips (pe_strip.h) in
 * huge pages. Strips are made bit by bit, a share after each pass, so that opening takes
 * no time and nothing waits; the mapping's pages that they replace are given back.
 * Results do not change by it.
 */
#ifndef PE_RESIDENT_H
#define PE_RESIDENT_H

#include "pe_bind.h"
#include "pe_ops.h"

typedef struct pe_resident {
    uint8_t *memory;
    uint64_t n_bytes;       // reserved: strips of all weights that get some
    uint64_t n_used;        // filled by those that are made
    uint64_t n_rows;        // of the next one, filled too
    uint64_t n_bytes_free;  // of the machine, to be left so
    pe_weight **weights;    // [n_weights], in the order in which a pass reads them
    uint32_t n_weights;
    uint32_t n_made;  // the first ones have their strips
    char why[160];    // why there are strips, or none, for people
} pe_resident;

/* Decides, and reserves addresses, no memory.
 *
 * owner    undone by pe_resident_free; model and ops outlive it
 * errors   with PE_RESIDENT_ON: PE_ERR_NOMEM when memory does not suffice, PE_ERR_UNSUPPORTED
 *          when nothing would be gained here; else it cannot fail, and why says what it chose */
pe_status pe_resident_init(pe_resident *out_resident, pe_model *model, const pe_ops *ops,
                           pe_resident_mode mode, pe_error *err);

/* Makes strips of another 1 / share of the weights, unless memory has become short: then
 * those that are there remain the only ones, and why says so. Not during a pass. */
void pe_resident_make(pe_resident *resident, const pe_ops *ops, uint32_t share);

/* Bytes of strips when all are made that will be. */
uint64_t pe_resident_goal(const pe_resident *resident);

/* A zeroed one is allowed. The model's weights point to strips no more. */
void pe_resident_free(pe_resident *resident);

#endif
