#include "pe_state.h"

#include "pe_mem.h"

pe_status pe_state_new(pe_state **out_state, const pe_state_pool *pool, pe_error *err) {
    *out_state = NULL;
    pe_state *state = pe_mem_zalloc(1, sizeof *state);
    if (state == NULL) {
        return pe_fail(err, PE_ERR_NOMEM, "state: no memory for another");
    }
    void *data;
    const pe_status status =
        pe_budget_take(&data, pool->budget, pool->n_floats * sizeof(float), "state", err);
    if (status != PE_OK) {
        pe_mem_free(state);
        return status;
    }
    *state = (pe_state){.n_references = 1, .data = data};
    *out_state = state;
    return PE_OK;
}

pe_state *pe_state_share(pe_state *state) {
    if (state != NULL) {
        state->n_references++;
    }
    return state;
}

void pe_state_release(const pe_state_pool *pool, pe_state *state) {
    if (state != NULL && --state->n_references == 0) {
        pe_budget_give(pool->budget, state->data, pool->n_floats * sizeof(float));
        pe_mem_free(state);
    }
}
