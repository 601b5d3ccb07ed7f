/* A place where one thread sleeps until another wakes it: a futex on Linux, a
 * condition variable elsewhere.
 *
 * The sleeper announces itself, looks once more for what it waits for, and then
 * waits or cancels. The waker changes the thing first and wakes second. All accesses
 * are sequentially consistent, so one of the two sees the other, and exactly one of
 * wake and cancel ends an announcement.
 */
#ifndef PE_SLEEPER_H
#define PE_SLEEPER_H

#include <stdatomic.h>

#include "pe_base.h"

// PE_SLEEPER_CONDVAR takes the portable way on Linux too, for its tests.
#if defined(__linux__) && !defined(PE_SLEEPER_CONDVAR)
#define PE_SLEEPER_FUTEX 1
#else
#include <pthread.h>
#define PE_SLEEPER_FUTEX 0
#endif

typedef struct pe_sleeper {
    _Atomic uint32_t asleep;  // announced and not yet woken
#if !PE_SLEEPER_FUTEX
    pthread_mutex_t mutex;
    pthread_cond_t woken;
#endif
} pe_sleeper;

void pe_sleeper_init(pe_sleeper *sleeper);
void pe_sleeper_destroy(pe_sleeper *sleeper);

/* The sleeper: from here on pe_sleeper_wake finds it. */
void pe_sleeper_announce(pe_sleeper *sleeper);

/* The sleeper: stays awake after all; false when a waker was faster. */
bool pe_sleeper_cancel(pe_sleeper *sleeper);

/* The sleeper: returns when woken, at once when that has happened already. */
void pe_sleeper_wait(pe_sleeper *sleeper);

/* Whether somebody is announced; a hint. */
bool pe_sleeper_is_asleep(pe_sleeper *sleeper);

/* Wakes the sleeper; false when it was not announced.
 * threads  any; the sleeper's memory must outlive the call, though the sleeper may
 *          be awake and away before it returns */
bool pe_sleeper_wake(pe_sleeper *sleeper);

#endif
