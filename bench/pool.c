/* What the thread pool costs: an empty loop, a storm of loops as short as those of
 * decoding, with more threads than cores and with neighbours that want the cores too.
 * `python bench/pool.py` builds and runs it.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pe_base.h"
#include "pe_pool.h"

/* A loop of decoding: 16 chunks of a microsecond, then a piece that the caller does alone. */
#define N_CHUNKS 16u
#define CHUNK_US 1.0
#define SERIAL_US 2.0

#define MAX_NEIGHBOURS 64

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double cpu_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void spin(uint32_t n_steps) {
    uint32_t x = n_steps;
    for (uint32_t i = 0; i < n_steps; i++) {
        x = x * 1664525u + 1013904223u;
        __asm__ volatile("" : "+r"(x));
    }
}

/* Steps of spin in a microsecond: the fastest of many short tries. */
static double steps_per_us(void) {
    double best = 1.0;
    for (int i = 0; i < 2000; i++) {
        const double start = seconds();
        spin(20000);
        const double time = seconds() - start;
        best = i == 0 ? time : PE_MIN(best, time);
    }
    return 20000 / (best * 1e6);
}

static void chunk(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)i_chunk;
    (void)i_thread;
    spin(*(const uint32_t *)arg);
}

static void nothing(void *arg, uint32_t i_chunk, uint32_t i_thread) {
    (void)arg;
    (void)i_chunk;
    (void)i_thread;
}

static pe_pool *open_pool(uint32_t n_threads) {
    pe_pool *pool = NULL;
    pe_error err;
    if (pe_pool_new(&pool, n_threads, &err) != PE_OK) {
        fprintf(stderr, "%s\n", err.message);
        exit(EXIT_FAILURE);
    }
    return pool;
}

/* Nanoseconds of one loop of two empty chunks, the median of many runs. */
static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double empty_loop_ns(uint32_t n_threads) {
    pe_pool *pool = open_pool(n_threads);
    double tries[41];
    for (size_t i = 0; i < PE_LEN(tries); i++) {
        const double start = seconds();
        for (uint32_t n = 0; n < 5000; n++) {
            pe_pool_run(pool, nothing, NULL, 2);
        }
        tries[i] = (seconds() - start) * 1e9 / 5000;
    }
    pe_pool_free(pool);
    qsort(tries, PE_LEN(tries), sizeof tries[0], by_value);
    return tries[PE_LEN(tries) / 2];
}

/* Microseconds per loop and its serial piece, over n_seconds; also the cores kept busy. */
static double storm_us(double *out_cores, uint32_t n_threads, double per_us, double n_seconds) {
    pe_pool *pool = open_pool(n_threads);
    uint32_t n_steps = (uint32_t)(CHUNK_US * per_us);
    const double cpu_start = cpu_seconds();
    const double start = seconds();
    uint32_t n_loops = 0;
    double now = start;
    for (; now < start + n_seconds; now = seconds()) {
        pe_pool_run(pool, chunk, &n_steps, N_CHUNKS);
        spin((uint32_t)(SERIAL_US * per_us));
        n_loops++;
    }
    *out_cores = (cpu_seconds() - cpu_start) / (now - start);
    pe_pool_free(pool);
    return (now - start) * 1e6 / n_loops;
}

/* Microseconds of a two-chunk loop that finds all workers asleep: they may not come in time. */
static double cold_loop_us(uint32_t n_threads, double per_us) {
    pe_pool *pool = open_pool(n_threads);
    double tries[101];
    uint32_t n_steps = (uint32_t)(200 * per_us);
    for (size_t i = 0; i < PE_LEN(tries); i++) {
        const struct timespec nap = {.tv_nsec = 3000000};
        nanosleep(&nap, NULL);
        const double start = seconds();
        pe_pool_run(pool, chunk, &n_steps, 2);
        tries[i] = (seconds() - start) * 1e6;
    }
    pe_pool_free(pool);
    qsort(tries, PE_LEN(tries), sizeof tries[0], by_value);
    return tries[PE_LEN(tries) / 2];
}

int main(void) {
    cpu_set_t set;
    const uint32_t n_cores =
        sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1u;
    const double per_us = steps_per_us();
    printf("%u cores\n", n_cores);
    printf("empty loop of 2 chunks, %u threads: %.0f ns\n", PE_MAX(n_cores, 2u),
           empty_loop_ns(PE_MAX(n_cores, 2u)));
    printf("2 chunks of 200 us, workers asleep: %.0f us\n",
           cold_loop_us(PE_MAX(n_cores, 2u), per_us));
    printf("storm: %u chunks of %g us and %g us alone\n", N_CHUNKS, CHUNK_US, SERIAL_US);
    printf("%10s %10s %10s %10s %10s\n", "neighbours", "threads", "us a loop", "speed", "cores");
    for (uint32_t n_neighbours = 0; n_neighbours <= n_cores; n_neighbours++) {
        pid_t neighbours[MAX_NEIGHBOURS];
        for (uint32_t i = 0; i < PE_MIN(n_neighbours, MAX_NEIGHBOURS); i++) {
            neighbours[i] = fork();
            if (neighbours[i] == 0) {
                alarm(60);
                for (;;) {
                    spin(1000000);
                }
            }
        }
        double cores;
        const double alone = storm_us(&cores, 1, per_us, 0.5);
        printf("%10u %10u %10.1f %10.2f %10.2f\n", n_neighbours, 1u, alone, 1.0, cores);
        for (uint32_t times = 1; times <= 4; times *= 2) {
            const double time = storm_us(&cores, times * n_cores, per_us, 0.5);
            printf("%10u %10u %10.1f %10.2f %10.2f\n", n_neighbours, times * n_cores, time,
                   alone / time, cores);
        }
        for (uint32_t i = 0; i < PE_MIN(n_neighbours, MAX_NEIGHBOURS); i++) {
            kill(neighbours[i], SIGKILL);
            waitpid(neighbours[i], NULL, 0);
        }
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}
