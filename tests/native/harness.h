/* What the C tests need: checks that say file, line, expected and found; numbers
 * from a printed seed; memory that ends at an unreadable page; temporary files.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyengine.h"

/* ---- tests ------------------------------------------------------------ */

typedef struct test_case {
    const char *name;
    void (*run)(void);
} test_case;

#define TEST(function) {#function, function}

/* Runs the tests and prints "N passed, M failed"; the exit status of main. */
int run_tests(const test_case *tests, size_t n_tests);

/* Notes a failed check of the running test; the first few are printed. */
__attribute__((format(printf, 3, 4))) void fail_at(const char *file, int line, const char *format,
                                                   ...);

/* Checks go on after a failure, so that one run shows them all. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fail_at(__FILE__, __LINE__, "expected " #condition "; " __VA_ARGS__);                  \
        }                                                                                          \
    } while (0)

#define CHECK_U64(found, expected)                                                                 \
    check_u64(__FILE__, __LINE__, #found, (uint64_t)(found), (uint64_t)(expected))

#define CHECK_OK(call)                                                                             \
    do {                                                                                           \
        pe_error check_err_ = {0, ""};                                                             \
        pe_error *const err = &check_err_;                                                         \
        const pe_status check_status_ = (call);                                                    \
        if (check_status_ != PE_OK) {                                                              \
            fail_at(__FILE__, __LINE__, "%s: expected PE_OK, found %d: %s", #call,                 \
                    (int)check_status_, check_err_.message);                                       \
        }                                                                                          \
    } while (0)

/* The call, which names its last argument err, fails with this status, says so in
 * err->code, and its message holds the fragment. */
#define CHECK_FAILS(call, expected, fragment)                                                      \
    do {                                                                                           \
        pe_error check_err_ = {0, ""};                                                             \
        pe_error *const err = &check_err_;                                                         \
        const pe_status check_status_ = (call);                                                    \
        check_failure(__FILE__, __LINE__, #call, check_status_, &check_err_, (expected),           \
                      (fragment));                                                                 \
    } while (0)

void check_u64(const char *file, int line, const char *what, uint64_t found, uint64_t expected);
void check_failure(const char *file, int line, const char *what, pe_status status,
                   const pe_error *err, pe_status expected, const char *fragment);

/* The same bits, or both NaN: which NaN an operation on two of them gives is left
 * to the processor. The index of the first that differs, or n. */
size_t first_difference(const float *a, const float *b, size_t n);

bool is_nan(float x);
bool is_finite(float x);

/* Whether a sanitizer watches this build, which makes limits on memory useless. */
bool has_sanitizer(void);

/* The instruction set after this one that the processor has, starting with
 * PE_ISA_SCALAR after PE_ISA_BEST and ending with PE_ISA_BEST. */
pe_isa next_isa(pe_isa isa);

#define MAX_ISAS 32

#define FOR_EACH_ISA(isa)                                                                          \
    for (pe_isa isa = next_isa(PE_ISA_BEST); isa != PE_ISA_BEST; isa = next_isa(isa))

/* ---- random numbers --------------------------------------------------- */

/* Each test starts from PE_SEED (default 1) and its name; this starts over. */
void rng_seed(uint64_t seed);
uint64_t rng_u64(void);
uint32_t rng_below(uint32_t n);
float rng_f32(float low, float high);

/* ---- memory ----------------------------------------------------------- */

#define N_GUARDED 8

/* n_bytes (up to 1 MiB) that end where an unreadable page begins. There is one such
 * buffer per slot; each call gives it a new size, fills it and the bytes in front of
 * it with a pattern. */
void *guarded(unsigned slot, size_t n_bytes);

/* Fails the test when bytes in front of a guarded buffer have changed. */
void check_guards(void);

/* The pattern as a float, to tell untouched outputs. */
float untouched(void);

/* Allocations of the core so far, and the number of the one that is to fail; 0: none. */
extern atomic_uint_fast64_t n_allocations;
extern atomic_uint_fast64_t failing_allocation;

/* ---- files ------------------------------------------------------------ */

/* A path in a directory of this process that is removed at exit; the text stays
 * until the 8th next call. */
const char *temp_path(const char *name);

/* Writes a file there and gives its path. */
const char *temp_file(const char *name, const void *data, size_t n_bytes);

#endif
