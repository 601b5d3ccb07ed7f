#define _GNU_SOURCE
#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pe_cpu.h"

/* A test that hangs is ended by SIGALRM; sanitizers and emulators are slow. */
#define MAX_SECONDS 240u

#define MAX_SHOWN 8u

#define GUARDED_BYTES (1u << 20)
#define CANARY_BYTES 256u
#define CANARY 0xa5

static unsigned n_failed_checks;

/* ---- tests ------------------------------------------------------------ */

static uint64_t hash_text(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text != '\0'; text++) {
        hash = (hash ^ (uint8_t)*text) * 0x100000001b3u;
    }
    return hash;
}

static void remove_temp(void);

int run_tests(const test_case *tests, size_t n_tests) {
    const char *text = getenv("PE_SEED");
    const uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : 1;
    unsigned n_failed = 0;
    printf("seed %llu (PE_SEED)\n", (unsigned long long)seed);
    for (size_t i = 0; i < n_tests; i++) {
        printf("  %s\n", tests[i].name);  // before it runs, to know which one crashed
        fflush(stdout);
        n_failed_checks = 0;
        rng_seed(seed ^ hash_text(tests[i].name));
        alarm(MAX_SECONDS);
        tests[i].run();
        alarm(0);
        if (n_failed_checks > 0) {
            n_failed++;
            printf("  %s: %u checks failed\n", tests[i].name, n_failed_checks);
        }
    }
    remove_temp();
    printf("%u passed, %u failed\n", (unsigned)n_tests - n_failed, n_failed);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

void fail_at(const char *file, int line, const char *format, ...) {
    if (n_failed_checks++ >= MAX_SHOWN) {
        return;
    }
    va_list args;
    va_start(args, format);
    printf("    %s:%d: ", file, line);
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
}

void check_u64(const char *file, int line, const char *what, uint64_t found, uint64_t expected) {
    if (found != expected) {
        fail_at(file, line, "%s: expected %llu, found %llu", what, (unsigned long long)expected,
                (unsigned long long)found);
    }
}

void check_failure(const char *file, int line, const char *what, pe_status status,
                   const pe_error *err, pe_status expected, const char *fragment) {
    if (status != expected) {
        fail_at(file, line, "%s: expected status %d, found %d (%s)", what, (int)expected,
                (int)status, err->message);
    } else if (err->code != status) {
        fail_at(file, line, "%s: expected err->code %d, found %d", what, (int)status,
                (int)err->code);
    } else if (strstr(err->message, fragment) == NULL) {
        fail_at(file, line, "%s: expected a message with \"%s\", found \"%s\"", what, fragment,
                err->message);
    } else if (strchr(err->message, '\n') != NULL) {
        fail_at(file, line, "%s: expected one line, found \"%s\"", what, err->message);
    }
}

bool is_nan(float x) {
    return x != x;
}

bool is_finite(float x) {
    return x - x == 0.0f;
}

size_t first_difference(const float *a, const float *b, size_t n) {
    size_t i = 0;
    while (i < n && (memcmp(&a[i], &b[i], sizeof *a) == 0 || (is_nan(a[i]) && is_nan(b[i])))) {
        i++;
    }
    return i;
}

bool has_sanitizer(void) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return true;
#endif
#endif
    return false;
}

pe_isa next_isa(pe_isa isa) {
    for (uint32_t next = (uint32_t)isa + 1; next < MAX_ISAS; next++) {
        if (pe_cpu_has_isa((pe_isa)next)) {
            return (pe_isa)next;
        }
    }
    return PE_ISA_BEST;
}

/* ---- random numbers --------------------------------------------------- */

static uint64_t rng_state;

void rng_seed(uint64_t seed) {
    rng_state = seed * 2u + 1u;
}

/* Vigna's xorshift64*: not the generator of the sampler that is under test. */
uint64_t rng_u64(void) {
    rng_state ^= rng_state >> 12;
    rng_state ^= rng_state << 25;
    rng_state ^= rng_state >> 27;
    return rng_state * 0x2545f4914f6cdd1du;
}

uint32_t rng_below(uint32_t n) {
    return (uint32_t)((rng_u64() >> 32) * n >> 32);
}

float rng_f32(float low, float high) {
    const float unit = (float)(rng_u64() >> 40) * 0x1p-24f;
    return low + (high - low) * unit;
}

/* ---- memory ----------------------------------------------------------- */

static uint8_t *regions[N_GUARDED];
static uint8_t *buffers[N_GUARDED];

void *guarded(unsigned slot, size_t n_bytes) {
    if (slot >= N_GUARDED || n_bytes > GUARDED_BYTES) {
        printf("guarded: no slot %u of %zu bytes\n", slot, n_bytes);
        exit(EXIT_FAILURE);
    }
    if (regions[slot] == NULL) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        const size_t n_all = GUARDED_BYTES + 2 * page;
        uint8_t *start =
            mmap(NULL, n_all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED || mprotect(start + n_all - page, page, PROT_NONE) != 0) {
            perror("guarded");
            exit(EXIT_FAILURE);
        }
        regions[slot] = start + page;
    }
    buffers[slot] = regions[slot] + GUARDED_BYTES - n_bytes;
    memset(buffers[slot] - CANARY_BYTES, CANARY, n_bytes + CANARY_BYTES);
    return buffers[slot];
}

void check_guards(void) {
    for (unsigned slot = 0; slot < N_GUARDED; slot++) {
        for (size_t i = 1; buffers[slot] != NULL && i <= CANARY_BYTES; i++) {
            if (*(buffers[slot] - i) != CANARY) {
                fail_at(__FILE__, __LINE__, "byte %zu in front of buffer %u was written", i, slot);
                break;
            }
        }
    }
}

float untouched(void) {
    float x;
    memset(&x, CANARY, sizeof x);
    return x;
}

/* ---- allocations that fail -------------------------------------------- */

atomic_uint_fast64_t n_allocations;
atomic_uint_fast64_t failing_allocation;

/* What the linker's --wrap=aligned_alloc makes of the core's one call of it. */
void *__real_aligned_alloc(size_t alignment, size_t n_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes);

void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes) {
    const uint64_t number = atomic_fetch_add(&n_allocations, 1) + 1;
    return number == failing_allocation ? NULL : __real_aligned_alloc(alignment, n_bytes);
}

/* ---- files ------------------------------------------------------------ */

static char temp_dir[256];

static void remove_temp(void) {
    char command[300];
    if (temp_dir[0] != '\0') {
        snprintf(command, sizeof command, "rm -rf '%s'", temp_dir);
        if (system(command) != 0) {
            printf("cannot remove %s\n", temp_dir);
        }
    }
}

const char *temp_path(const char *name) {
    static char paths[8][512];
    static unsigned next;
    if (temp_dir[0] == '\0') {
        const char *root = getenv("TMPDIR");
        snprintf(temp_dir, sizeof temp_dir, "%s/pe_test_XXXXXX", root != NULL ? root : "/tmp");
        if (mkdtemp(temp_dir) == NULL) {
            perror(temp_dir);
            exit(EXIT_FAILURE);
        }
    }
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", temp_dir, name);
    return path;
}

const char *temp_file(const char *name, const void *data, size_t n_bytes) {
    const char *path = temp_path(name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || (n_bytes > 0 && fwrite(data, 1, n_bytes, file) != n_bytes) ||
        fclose(file) != 0) {
        perror(path);
        exit(EXIT_FAILURE);
    }
    return path;
}
