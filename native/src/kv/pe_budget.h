/* Bytes that pages and recurrent states of all sessions may take together. */
#ifndef PE_BUDGET_H
#define PE_BUDGET_H

#include "pe_status.h"

typedef struct pe_budget {
    uint64_t max_bytes;  // UINT64_MAX: no limit
    uint64_t n_bytes;    // taken now
    uint64_t n_bytes_peak;
} pe_budget;

/* Zeroed memory that counts; `what` names it in messages.
 * owner    the caller's, returned with pe_budget_give and the same size
 * errors   PE_ERR_NOMEM when the budget or memory is spent */
pe_status pe_budget_take(void **out, pe_budget *budget, uint64_t n_bytes, const char *what,
                         pe_error *err);

void pe_budget_give(pe_budget *budget, void *block, uint64_t n_bytes);

#endif
