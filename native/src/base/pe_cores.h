/* How many cores this process may use, and how many of them are worth a thread. */
#ifndef PE_CORES_H
#define PE_CORES_H

#include "pe_base.h"

/* Each line counts fewer than the one before, n_quota apart. */
typedef struct pe_cores {
    uint32_t n_allowed;   // processors of the affinity mask
    uint32_t n_physical;  // cores: siblings of simultaneous multithreading count once
    uint32_t n_fast;      // cores at least 60 % as fast as the fastest of them
    uint32_t n_quota;     // what control groups grant, rounded up; 0: no limit
    uint32_t n_threads;   // the threads to compute with: the fast cores within the quota
} pe_cores;

/* Looks at the machine. What cannot be read, or is garbled, is taken as absent:
 * without anything to read all counts are those of the affinity mask, at least 1.
 * shape    root: "" or a folder that stands for "/", with its own proc and sys;
 *          allowed: processors as in "0-3,8", NULL: the calling thread's affinity mask
 * threads  any
 * errors   cannot fail */
void pe_cores_find(pe_cores *out_cores, const char *root, const char *allowed);

/* Processors of the calling thread's affinity mask, at least 1; one system call. */
uint32_t pe_cores_n_allowed(void);

#endif
