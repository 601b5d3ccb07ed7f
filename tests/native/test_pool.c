/* The thread pool: every chunk once, whoever is awake. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "harness.h"
#include "pe_base.h"
#include "pe_cores.h"
#include "pe_pool.h"

#define MAX_CHUNKS 10000
#define MAX_THREADS 8

typedef struct job {
    atomic_uint n_runs[MAX_CHUNKS];
    atomic_uint in_thread[MAX_THREADS];
    atomic_uint n_wrong;
    uint32_t n_threads;
    uint32_t plain[MAX_CHUNKS];  // written without atomics: the caller must see it
    uint32_t value;
} job;

static job the_job;

static void sleep_ms(long ms) {
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    job *j = arg;
    if (i_thread >= j->n_threads || atomic_fetch_add(&j->in_thread[i_thread], 1) != 0) {
        atomic_fetch_add(&j->n_wrong, 1);  // out of range, or two chunks under one number
        return;
    }
    atomic_fetch_add(&j->n_runs[i_chunk], 1);
    j->plain[i_chunk] = j->value + i_chunk;
    atomic_fetch_sub(&j->in_thread[i_thread], 1);
}

static void run_loop(pe_pool *pool, uint32_t n_chunks) {
    for (uint32_t i = 0; i < n_chunks; i++) {
        atomic_store_explicit(&the_job.n_runs[i], 0, memory_order_relaxed);
    }
    the_job.value++;
    the_job.n_threads = pe_pool_n_threads(pool);
    pe_pool_run(pool, chunk, &the_job, n_chunks);
    uint32_t n_once = 0;
    for (uint32_t i = 0; i < n_chunks; i++) {
        n_once += atomic_load_explicit(&the_job.n_runs[i], memory_order_relaxed) == 1 &&
                  the_job.plain[i] == the_job.value + i;
    }
    CHECK_U64(n_once, n_chunks);
    CHECK_U64(atomic_load(&the_job.n_wrong), 0);
}

static void every_chunk_once(void) {
    static const uint32_t sizes[] = {0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, MAX_CHUNKS};
    for (uint32_t n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
        pe_pool *pool = NULL;
        CHECK_OK(pe_pool_new(&pool, n_threads, err));
        CHECK_U64(pe_pool_n_threads(pool), n_threads);
        for (size_t i = 0; i < 4 * PE_LEN(sizes); i++) {
            run_loop(pool, sizes[i * 5 % PE_LEN(sizes)]);
        }
        pe_pool_free(pool);
    }
    pe_pool_free(NULL);
}

static void many_tiny_loops(void) {
    for (uint32_t n_threads = 2; n_threads <= MAX_THREADS; n_threads += 3) {
        pe_pool *pool = NULL;
        CHECK_OK(pe_pool_new(&pool, n_threads, err));
        for (uint32_t i = 0; i < 6000; i++) {
            run_loop(pool, 2 + rng_below(6));
        }
        pe_pool_free(pool);
    }
}

/* Pools that end while their workers start, sleep or work. */
static void short_lives(void) {
    for (uint32_t i = 0; i < 150; i++) {
        pe_pool *pool = NULL;
        CHECK_OK(pe_pool_new(&pool, 1 + rng_below(MAX_THREADS), err));
        for (uint32_t n = rng_below(3); n > 0; n--) {
            run_loop(pool, 1 + rng_below(20));
        }
        pe_pool_free(pool);
    }
}

typedef struct slow_job {
    atomic_uint seen;  // a bit per thread
    atomic_uint n_finished;
} slow_job;

static void slow_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_chunk;
    slow_job *j = arg;
    atomic_fetch_or(&j->seen, 1u << i_thread);
    sleep_ms(i_thread == 0 ? 15 : 35);
    atomic_fetch_add(&j->n_finished, 1);
}

/* Chunks that wait leave room: as many threads get some of sixteen as have a core, and
 * only when the workers have been woken. The caller, which is faster, must wait for the
 * last. */
static void sleepers_wake(void) {
    pe_pool *pool = NULL;
    CHECK_OK(pe_pool_new(&pool, 4, err));
    const uint32_t n_wanted = PE_MIN(4, pe_cores_n_allowed());
    for (uint32_t round = 0; round < 4; round++) {
        slow_job j = {0};
        sleep_ms(30);  // long enough for all workers to sleep
        pe_pool_run(pool, slow_chunk, &j, 16);
        CHECK_U64(atomic_load(&j.n_finished), 16);
        const uint32_t n_seen = (uint32_t)__builtin_popcount(atomic_load(&j.seen));
        CHECK_U64(PE_MIN(n_seen, n_wanted), n_wanted);
    }
    pe_pool_free(pool);
}

static void count_chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_thread;
    atomic_fetch_add_explicit(&((job *)arg)->n_runs[i_chunk], 1, memory_order_relaxed);
}

/* Chunks so short that threads spend their time claiming. */
static void claims_under_contention(void) {
    for (uint32_t n_threads = 2; n_threads <= 4; n_threads++) {
        pe_pool *pool = NULL;
        CHECK_OK(pe_pool_new(&pool, n_threads, err));
        for (uint32_t round = 0; round < 60; round++) {
            memset(the_job.n_runs, 0, sizeof the_job.n_runs);
            pe_pool_run(pool, count_chunk, &the_job, MAX_CHUNKS);
            uint32_t n_once = 0;
            for (uint32_t i = 0; i < MAX_CHUNKS; i++) {
                n_once += atomic_load_explicit(&the_job.n_runs[i], memory_order_relaxed) == 1;
            }
            CHECK_U64(n_once, MAX_CHUNKS);
        }
        pe_pool_free(pool);
    }
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void idle_costs_nothing(void) {
    pe_pool *pool = NULL;
    CHECK_OK(pe_pool_new(&pool, MAX_THREADS, err));
    run_loop(pool, 100);
    sleep_ms(100);  // workers look for a while before they sleep; emulators take long
    const double before = cpu_seconds();
    sleep_ms(200);
    const double used = cpu_seconds() - before;
    CHECK(used < 0.01, "%g s of CPU time in 0.2 s of waiting", used);
    run_loop(pool, 100);
    pe_pool_free(pool);
}

int main(void) {
    static const test_case tests[] = {
        TEST(every_chunk_once), TEST(many_tiny_loops),         TEST(short_lives),
        TEST(sleepers_wake),    TEST(claims_under_contention), TEST(idle_costs_nothing),
    };
    return run_tests(tests, PE_LEN(tests));
}
