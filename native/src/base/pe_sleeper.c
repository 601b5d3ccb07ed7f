#define _GNU_SOURCE
#include "pe_sleeper.h"

#if PE_SLEEPER_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(_Atomic uint32_t) == 4, "the kernel reads the word as 32 bits");

// glibc has no wrapper. Of its failures, EAGAIN and EINTR mean "look again", which every
// caller does, and others cannot happen to a word of our own.
static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    (void)syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

void pe_sleeper_init(pe_sleeper *sleeper) {
    atomic_init(&sleeper->asleep, 0);
}

void pe_sleeper_destroy(pe_sleeper *sleeper) {
    (void)sleeper;
}

void pe_sleeper_wait(pe_sleeper *sleeper) {
    while (atomic_load(&sleeper->asleep) == 1) {
        futex(&sleeper->asleep, FUTEX_WAIT, 1);
    }
}

bool pe_sleeper_wake(pe_sleeper *sleeper) {
    if (atomic_exchange(&sleeper->asleep, 0) == 0) {
        return false;
    }
    futex(&sleeper->asleep, FUTEX_WAKE, 1);
    return true;
}

#else

void pe_sleeper_init(pe_sleeper *sleeper) {
    atomic_init(&sleeper->asleep, 0);
    pthread_mutex_init(&sleeper->mutex, NULL);
    pthread_cond_init(&sleeper->woken, NULL);
}

void pe_sleeper_destroy(pe_sleeper *sleeper) {
    pthread_cond_destroy(&sleeper->woken);
    pthread_mutex_destroy(&sleeper->mutex);
}

void pe_sleeper_wait(pe_sleeper *sleeper) {
    pthread_mutex_lock(&sleeper->mutex);
    while (atomic_load(&sleeper->asleep) == 1) {
        pthread_cond_wait(&sleeper->woken, &sleeper->mutex);
    }
    pthread_mutex_unlock(&sleeper->mutex);
}

bool pe_sleeper_wake(pe_sleeper *sleeper) {
    if (atomic_exchange(&sleeper->asleep, 0) == 0) {
        return false;
    }
    // The mutex keeps the signal from falling between the sleeper's look and its wait.
    pthread_mutex_lock(&sleeper->mutex);
    pthread_cond_signal(&sleeper->woken);
    pthread_mutex_unlock(&sleeper->mutex);
    return true;
}

#endif

void pe_sleeper_announce(pe_sleeper *sleeper) {
    atomic_store(&sleeper->asleep, 1);
}

bool pe_sleeper_cancel(pe_sleeper *sleeper) {
    return atomic_exchange(&sleeper->asleep, 0) == 1;
}

bool pe_sleeper_is_asleep(pe_sleeper *sleeper) {
    return atomic_load(&sleeper->asleep) == 1;
}
