/* The error record: filling it, and passing failures up. */
#ifndef PE_STATUS_H
#define PE_STATUS_H

#include "pe_base.h"

/* Writes code and message into err, when it is not NULL. */
__attribute__((format(printf, 3, 4))) void pe_error_set(pe_error *err, pe_status code,
                                                        const char *format, ...);

/* Fills err and is the code, to be returned. The message says: the thing, what was
 * expected, what was found. A macro so that compilers see the value is not PE_OK. */
#define pe_fail(err, code, ...) (pe_error_set((err), (code), __VA_ARGS__), (code))

/* Passes a failure of call to the caller; only where nothing is held. */
#define PE_TRY(call)                                                                               \
    do {                                                                                           \
        const pe_status pe_try_status_ = (call);                                                   \
        if (pe_try_status_ != PE_OK) {                                                             \
            return pe_try_status_;                                                                 \
        }                                                                                          \
    } while (0)

/* Longest piece of a file's text that an error message quotes, in bytes: names
 * in a hostile file may be gigabytes long. Use with "%.*s". */
#define PE_QUOTE_BYTES 96
#define PE_QUOTE(text, n_bytes) (int)PE_MIN((uint64_t)(n_bytes), (uint64_t)PE_QUOTE_BYTES), (text)

/* The end of a path, as much of it as leaves room for the rest of a message. */
static inline const char *pe_path_tail(const char *path) {
    const size_t n = strlen(path);
    return n > 200 ? path + (n - 200) : path;
}

#endif
