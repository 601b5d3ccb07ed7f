/* What an engine is, for the files that implement its calls. */
#ifndef PE_ENGINE_H
#define PE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "pe_resident.h"
#include "pe_scratch.h"

struct pe_engine {
    atomic_uint n_references;
    pthread_mutex_t mutex;  // held by every call that computes or changes pages
    pid_t owner;            // the process whose threads and locks these are
    pe_file *file;
    pe_model model;
    pe_ops ops;
    pe_kv_pool kv;
    pe_state_pool states;  // from the budget of kv
    pe_scratch scratch;
    pe_resident resident;
    uint32_t n_ctx;
};

/* errors   PE_ERR_ARG in a child made by fork() */
pe_status pe_engine_check_owner(const pe_engine *engine, pe_error *err);

/* Runs what the scratch holds and empties it.
 * threads  the caller holds the mutex
 * errors   as pe_forward */
pe_status pe_engine_run_batch(pe_engine *engine, const int32_t *cancel, pe_error *err);

#endif
