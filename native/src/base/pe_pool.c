#define _GNU_SOURCE
#include "pe_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "pe_mem.h"

/* How often an idle worker looks for the next loop before it sleeps. About
 * 20 microseconds: longer than the gap between two loops of a layer, short
 * enough that an idle engine burns nothing a user could notice. */
#define SPIN_LOOKS 1000u

/* How often the caller looks for the last chunks before it yields its core to
 * whoever runs them. */
#define SPIN_DONE 4000u

/* The chunk number of a ticket under which nothing can be claimed. */
#define CLOSED UINT32_MAX

typedef struct worker {
    struct pe_pool *pool;
    pthread_t thread;
    uint32_t i_thread;
} worker;

/* A loop is published by storing its ticket: the loop's serial number in the high
 * half, the next unclaimed chunk in the low half. A chunk is claimed by adding one
 * with compare-and-swap, which fails when the loop has ended meanwhile: a late
 * thread can never run a chunk of an old loop, nor an old function on a new one.
 * fn, arg and n_chunks are written between loops under a closed ticket, one that
 * no chunk number can be below: a thread that mixes an old ticket with new fields
 * finds its compare-and-swap refused. */
struct pe_pool {
    _Atomic uint64_t ticket;
    char pad_ticket[PE_CACHE_LINE - sizeof(uint64_t)];
    _Atomic uint32_t n_done;
    char pad_done[PE_CACHE_LINE - sizeof(uint32_t)];
    _Atomic(pe_pool_fn) fn;
    _Atomic(void *) arg;
    _Atomic uint32_t n_chunks;
    _Atomic uint32_t n_sleeping;
    _Atomic bool stopping;
    uint32_t n_threads;
    uint32_t n_workers;
    pthread_mutex_t mutex;  // guards going to sleep
    pthread_cond_t wake;
    worker *workers;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Claims and runs chunks of the current loop until none is left. */
static void work(pe_pool *pool, uint32_t i_thread) {
    uint64_t ticket = atomic_load(&pool->ticket);
    for (;;) {
        const pe_pool_fn fn = atomic_load(&pool->fn);
        void *arg = atomic_load(&pool->arg);
        const uint32_t n_chunks = atomic_load(&pool->n_chunks);
        const uint32_t i_chunk = (uint32_t)ticket;
        if (i_chunk >= n_chunks) {
            return;
        }
        if (atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) {
            fn(arg, i_chunk, i_thread);
            atomic_fetch_add(&pool->n_done, 1);
            ticket = atomic_load(&pool->ticket);
        }
    }
}

static void *worker_main(void *arg) {
    const worker *self = arg;
    pe_pool *pool = self->pool;
    uint32_t seen = 0;  // serial number of the last loop looked at
    for (;;) {
        uint32_t looks = 0;
        while ((uint32_t)(atomic_load(&pool->ticket) >> 32) == seen &&
               !atomic_load_explicit(&pool->stopping, memory_order_relaxed)) {
            if (looks++ < SPIN_LOOKS) {
                relax();
                continue;
            }
            pthread_mutex_lock(&pool->mutex);
            // Announce first, look again second: pe_pool_run publishes first and
            // looks for sleepers second, so one of the two sees the other.
            atomic_fetch_add(&pool->n_sleeping, 1);
            while ((uint32_t)(atomic_load(&pool->ticket) >> 32) == seen &&
                   !atomic_load(&pool->stopping)) {
                pthread_cond_wait(&pool->wake, &pool->mutex);
            }
            atomic_fetch_sub(&pool->n_sleeping, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        if (atomic_load(&pool->stopping)) {
            return NULL;
        }
        seen = (uint32_t)(atomic_load(&pool->ticket) >> 32);
        work(pool, self->i_thread);
    }
}

static void wake_all(pe_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

pe_status pe_pool_new(pe_pool **out_pool, uint32_t n_threads, pe_error *err) {
    *out_pool = NULL;
    pe_pool *pool = pe_mem_zalloc(1, sizeof *pool);
    worker *workers = pe_mem_zalloc(n_threads, sizeof *workers);
    if (pool == NULL || workers == NULL) {
        pe_mem_free(pool);
        pe_mem_free(workers);
        return pe_fail(err, PE_ERR_NOMEM, "thread pool: no memory for %u threads", n_threads);
    }
    pool->n_threads = n_threads;
    pool->workers = workers;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);

    // Workers must not take the host program's signals (Ctrl-C belongs to it).
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int refused = 0;
    for (uint32_t i = 1; i < n_threads && refused == 0; i++) {
        worker *w = &workers[pool->n_workers];
        *w = (worker){.pool = pool, .i_thread = i};
        refused = pthread_create(&w->thread, NULL, worker_main, w);
        pool->n_workers += refused == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (refused != 0) {
        const uint32_t n_started = pool->n_workers + 1;
        pe_pool_free(pool);
        return pe_fail(err, PE_ERR_NOMEM, "thread pool: asked for %u threads, the system gave %u",
                       n_threads, n_started);
    }
    *out_pool = pool;
    return PE_OK;
}

void pe_pool_free(pe_pool *pool) {
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->stopping, true);
    wake_all(pool);
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    pe_mem_free(pool->workers);
    pe_mem_free(pool);
}

uint32_t pe_pool_n_threads(const pe_pool *pool) {
    return pool->n_threads;
}

void pe_pool_run(pe_pool *pool, pe_pool_fn fn, void *arg, uint32_t n_chunks) {
    if (n_chunks <= 1 || pool->n_workers == 0) {
        for (uint32_t i = 0; i < n_chunks; i++) {
            fn(arg, i, 0);
        }
        return;
    }
    const uint64_t serial = atomic_load(&pool->ticket) >> 32;
    atomic_store(&pool->ticket, (serial << 32) | CLOSED);
    atomic_store(&pool->fn, fn);
    atomic_store(&pool->arg, arg);
    atomic_store(&pool->n_chunks, n_chunks);
    atomic_store(&pool->n_done, 0);
    atomic_store(&pool->ticket, (uint64_t)(uint32_t)(serial + 1) << 32);
    if (atomic_load(&pool->n_sleeping) > 0) {
        wake_all(pool);
    }
    work(pool, 0);
    for (uint32_t looks = 0; atomic_load(&pool->n_done) != n_chunks; looks++) {
        if (looks < SPIN_DONE) {
            relax();
        } else {
            sched_yield();
        }
    }
}
