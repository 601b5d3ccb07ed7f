#include "pe_budget.h"

#include <inttypes.h>

#include "pe_mem.h"

pe_status pe_budget_take(void **out, pe_budget *budget, uint64_t n_bytes, const char *what,
                         pe_error *err) {
    *out = NULL;
    const uint64_t used = budget->n_bytes;
    if (used > budget->max_bytes || n_bytes > budget->max_bytes - used) {
        return pe_fail(err, PE_ERR_NOMEM,
                       "KV cache: expected to stay within %" PRIu64 " bytes, found %" PRIu64
                       " in use and a %s of %" PRIu64 " needed",
                       budget->max_bytes, used, what, n_bytes);
    }
    *out = pe_mem_zalloc(1, n_bytes);
    if (*out == NULL) {
        return pe_fail(err, PE_ERR_NOMEM,
                       "KV cache: no memory for a %s of %" PRIu64 " bytes beside the %" PRIu64
                       " in use",
                       what, n_bytes, used);
    }
    budget->n_bytes += n_bytes;
    budget->n_bytes_peak = PE_MAX(budget->n_bytes_peak, budget->n_bytes);
    return PE_OK;
}

void pe_budget_give(pe_budget *budget, void *block, uint64_t n_bytes) {
    pe_mem_free(block);
    budget->n_bytes -= n_bytes;
}
