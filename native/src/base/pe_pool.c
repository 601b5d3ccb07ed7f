#define _GNU_SOURCE
#include "pe_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "pe_cores.h"
#include "pe_mem.h"
#include "pe_sleeper.h"

/* How long a thread looks for its next work before it sleeps: a few times what a
 * sleep and a wake-up cost (docs/SPEED.md), so that looking in vain wastes little more
 * than sleeping at once would, longer than the gap between two loops of a layer, and
 * too short for an idle engine to be noticed. In time, not in looks: a look takes 60 ns
 * where `pause` waits and 2 where `yield` does nothing. */
#define SPIN_NS 50000

/* Looks between two looks at the clock. */
#define CLOCK_LOOKS 16u

/* How long nobody is woken after a worker has found itself on the caller's processor:
 * the others are taken, and a worker that comes would only push the caller aside. As
 * long as a scheduler's slice, after which things may have changed. */
#define CROWDED_NS 1000000

/* The chunk number of a ticket under which nothing can be claimed. */
#define CLOSED UINT32_MAX

typedef struct worker {
    struct pe_pool *pool;
    pthread_t thread;
    uint32_t i_thread;
    pe_sleeper sleeper;
} worker;

/* A loop is published by storing its ticket: the loop's serial number in the high
 * half, the next unclaimed chunk in the low half. A chunk is claimed by adding one
 * with compare-and-swap, which fails when the loop has ended meanwhile: a late
 * thread can never run a chunk of an old loop, nor an old function on a new one.
 * fn, arg and n_chunks are written between loops under a closed ticket, one that
 * no chunk number can be below: a thread that mixes an old ticket with new fields
 * finds its compare-and-swap refused.
 *
 * Orders. The fields are stored with release and loaded with acquire: who reads a new
 * field has seen the closed ticket before it, so its compare-and-swap meets that or a
 * later one. Who reads a new ticket (stored after the fields, claimed only by
 * read-modify-writes, which carry the release on) has all the fields. n_done is reset
 * before the ticket is published and every finished chunk adds to it with release, so
 * the caller's acquire of the last count sees what all chunks wrote. What decides
 * whether somebody sleeps for ever (ticket against the workers' sleepers, n_done
 * against the caller's) is sequentially consistent on both sides.
 *
 * Workers beyond n_awake_max sleep: threads that share a core only take it from each
 * other, and one that looks for work takes it from one that computes. n_sleeping rises
 * before an announcement, and who ends that (the waker, or the worker that changes its
 * mind) lowers it; other threads may read it one off. */
struct pe_pool {
    _Atomic uint64_t ticket;  // alone in its line: idle workers look at nothing else
    char pad_ticket[PE_CACHE_LINE - sizeof(uint64_t)];
    _Atomic uint32_t n_done;
    _Atomic uint32_t n_sleeping;
    pe_sleeper caller;  // waits for the last chunks
    char pad_done[PE_CACHE_LINE];
    _Atomic(pe_pool_fn) fn;
    _Atomic(void *) arg;
    _Atomic uint32_t n_chunks;
    _Atomic int caller_cpu;  // where the loop was published
    _Atomic bool stopping;
    _Atomic int64_t crowded_until;
    uint32_t n_threads;
    uint32_t n_workers;    // started; the workers themselves use n_threads - 1
    uint32_t n_awake_max;  // workers that may be awake: the caller has one core
    worker *workers;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The processor that runs this thread, a moment ago; -1 where nobody tells. */
static int this_cpu(void) {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Time spent looking; all zero before the first look. */
typedef struct patience {
    int64_t until;
    uint32_t n_looks;
} patience;

/* Passes a moment; false once SPIN_NS are over. */
static bool wait_more(patience *p) {
    relax();
    if (++p->n_looks % CLOCK_LOOKS != 0) {
        return true;
    }
    const int64_t now = now_ns();
    if (p->until == 0) {
        p->until = now + SPIN_NS;
    }
    return now < p->until;
}

/* Claims and runs chunks of the current loop until none is left. */
static void work(pe_pool *pool, uint32_t i_thread) {
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    for (;;) {
        const pe_pool_fn fn = atomic_load_explicit(&pool->fn, memory_order_acquire);
        void *arg = atomic_load_explicit(&pool->arg, memory_order_acquire);
        const uint32_t n_chunks = atomic_load_explicit(&pool->n_chunks, memory_order_acquire);
        const uint32_t i_chunk = (uint32_t)ticket;
        if (i_chunk >= n_chunks) {
            return;
        }
        if (atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1,
                                                  memory_order_acq_rel, memory_order_acquire)) {
            fn(arg, i_chunk, i_thread);
            // Count first, look for a sleeping caller second: see wait_for_chunks. Once all
            // are counted the caller may be gone and in its next loop; woken there, it
            // looks again.
            if (atomic_fetch_add(&pool->n_done, 1) + 1 == n_chunks && i_thread != 0 &&
                pe_sleeper_is_asleep(&pool->caller)) {
                pe_sleeper_wake(&pool->caller);
            }
            ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
        }
    }
}

static uint32_t serial_of(pe_pool *pool) {
    return (uint32_t)(atomic_load(&pool->ticket) >> 32);
}

static void sleep_until_published(pe_pool *pool, pe_sleeper *sleeper, uint32_t seen) {
    // Announce first, look again second: pe_pool_run publishes first and looks for
    // sleepers second, so one of the two sees the other.
    atomic_fetch_add(&pool->n_sleeping, 1);
    pe_sleeper_announce(sleeper);
    if (serial_of(pool) == seen) {
        pe_sleeper_wait(sleeper);
    } else if (pe_sleeper_cancel(sleeper)) {
        atomic_fetch_sub(&pool->n_sleeping, 1);
    }
}

static bool too_many_awake(pe_pool *pool) {
    return pool->n_threads - 1 - atomic_load(&pool->n_sleeping) > pool->n_awake_max;
}

/* Whether this worker runs where the caller would: looking for work there keeps that
 * very work from coming. */
static bool is_in_the_way(pe_pool *pool) {
    const int cpu = this_cpu();
    if (cpu < 0 || cpu != atomic_load_explicit(&pool->caller_cpu, memory_order_relaxed)) {
        return false;
    }
    atomic_store_explicit(&pool->crowded_until, now_ns() + CROWDED_NS, memory_order_relaxed);
    return true;
}

static void *worker_main(void *arg) {
    worker *self = arg;
    pe_pool *pool = self->pool;
    uint32_t seen = 0;  // serial number of the last loop looked at
    for (;;) {
        patience p = {0};
        const bool sleepy = too_many_awake(pool);
        while (serial_of(pool) == seen) {
            if (sleepy || !wait_more(&p) || (p.n_looks % CLOCK_LOOKS == 1 && is_in_the_way(pool))) {
                sleep_until_published(pool, &self->sleeper, seen);
            }
        }
        if (atomic_load(&pool->stopping)) {
            return NULL;
        }
        seen = serial_of(pool);
        work(pool, self->i_thread);
    }
}

/* Wakes up to n workers, the first ones first: their caches are the warm ones. */
static void wake_workers(pe_pool *pool, uint32_t n) {
    for (uint32_t i = 0; i < pool->n_workers && n > 0; i++) {
        if (pe_sleeper_wake(&pool->workers[i].sleeper)) {
            atomic_fetch_sub(&pool->n_sleeping, 1);
            n--;
        }
    }
}

/* Waits for chunks that workers have claimed. A worker that is late for long has lost
 * its core; the caller's may be the one that it needs. */
static void wait_for_chunks(pe_pool *pool, uint32_t n_chunks) {
    patience p = {0};
    while (atomic_load(&pool->n_done) != n_chunks) {
        if (wait_more(&p)) {
            continue;
        }
        // Announce first, look again second: workers count first and look second.
        pe_sleeper_announce(&pool->caller);
        if (atomic_load(&pool->n_done) != n_chunks) {
            pe_sleeper_wait(&pool->caller);
        } else {
            (void)pe_sleeper_cancel(&pool->caller);
        }
    }
}

/* Gives the next serial number to idle workers; the new ticket. */
static uint64_t publish(pe_pool *pool, uint32_t i_chunk) {
    const uint64_t serial = serial_of(pool) + UINT64_C(1);
    const uint64_t ticket = serial << 32 | i_chunk;
    atomic_store(&pool->ticket, ticket);
    return ticket;
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
    pool->n_awake_max = PE_MIN(n_threads, pe_cores_n_allowed()) - 1;
    atomic_init(&pool->ticket, CLOSED);
    atomic_init(&pool->caller_cpu, -1);
    pe_sleeper_init(&pool->caller);

    // Workers must not take the host program's signals (Ctrl-C belongs to it).
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int refused = 0;
    for (uint32_t i = 1; i < n_threads && refused == 0; i++) {
        worker *w = &workers[pool->n_workers];
        w->pool = pool;
        w->i_thread = i;
        pe_sleeper_init(&w->sleeper);
        refused = pthread_create(&w->thread, NULL, worker_main, w);
        if (refused == 0) {
            pool->n_workers++;
        } else {
            pe_sleeper_destroy(&w->sleeper);
        }
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
    // The end is a loop too, one that nobody can claim from.
    atomic_store(&pool->stopping, true);
    publish(pool, CLOSED);
    wake_workers(pool, pool->n_workers);
    for (uint32_t i = 0; i < pool->n_workers; i++) {
        pthread_join(pool->workers[i].thread, NULL);
        pe_sleeper_destroy(&pool->workers[i].sleeper);
    }
    pe_sleeper_destroy(&pool->caller);
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
    atomic_store_explicit(&pool->fn, fn, memory_order_release);
    atomic_store_explicit(&pool->arg, arg, memory_order_release);
    atomic_store_explicit(&pool->n_chunks, n_chunks, memory_order_release);
    atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->caller_cpu, this_cpu(), memory_order_relaxed);
    const uint64_t ticket = publish(pool, 0);
    const uint32_t n_wanted = PE_MIN(n_chunks - 1, pool->n_awake_max);
    const uint32_t n_awake = pool->n_workers - atomic_load(&pool->n_sleeping);
    const int64_t crowded_until = atomic_load_explicit(&pool->crowded_until, memory_order_relaxed);
    if (n_awake < n_wanted && (crowded_until == 0 || now_ns() > crowded_until)) {
        wake_workers(pool, n_wanted - n_awake);
    }
    work(pool, 0);
    wait_for_chunks(pool, n_chunks);
    // Closed here and not by the next loop, which need not wait for the line then.
    atomic_store_explicit(&pool->ticket, ticket | CLOSED, memory_order_release);
}
