/* A persistent pool of threads that runs one parallel loop at a time.
 *
 * The loop is cut into chunks which threads claim one by one, so a slow or
 * descheduled thread holds back at most the chunk it is in, and the caller never
 * waits for a thread that has not claimed anything: with every worker asleep (or
 * lost, as after fork()) the caller does all the work itself. Which thread runs a
 * chunk is left to chance; loop bodies must give results that do not depend on it.
 */
#ifndef PE_POOL_H
#define PE_POOL_H

#include "pe_status.h"

typedef struct pe_pool pe_pool;

/* Runs chunk i_chunk; i_thread in [0, n_threads) is this thread's alone meanwhile. */
typedef void (*pe_pool_fn)(void *arg, uint32_t i_chunk, uint32_t i_thread);

/* Starts n_threads - 1 workers; n_threads >= 1.
 * owner    *out_pool is the caller's, freed with pe_pool_free
 * errors   PE_ERR_NOMEM, also when the system grants no further thread */
pe_status pe_pool_new(pe_pool **out_pool, uint32_t n_threads, pe_error *err);

/* Ends and joins the workers; NULL is allowed. */
void pe_pool_free(pe_pool *pool);

uint32_t pe_pool_n_threads(const pe_pool *pool);

/* Calls fn for every chunk in [0, n_chunks) and returns when all are done; the
 * calling thread takes part as thread 0. Writes made by the chunks are visible.
 * shape    n_chunks < UINT32_MAX
 * threads  one caller at a time; fn must not call back into the pool
 * errors   cannot fail */
void pe_pool_run(pe_pool *pool, pe_pool_fn fn, void *arg, uint32_t n_chunks);

#endif
