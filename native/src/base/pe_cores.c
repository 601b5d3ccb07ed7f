#define _GNU_SOURCE
#include "pe_cores.h"

#include <stdio.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "pe_group.h"

/* Twice the most that any kernel is built for. */
#define MAX_CPUS 16384u

/* A core takes part when it has at least 60 % of the fastest one's speed. Chunks are
 * claimed, so a slow core never holds a loop back by more than one chunk; but with
 * eight chunks per thread, one of a core at a quarter of the speed (Cortex-A55 beside
 * A76) takes as long as half the loop, and decoding is bound by memory, which the fast
 * cores keep busy alone. From about 60 % on a core brings more than its last chunk costs. */
#define FAST_PERCENT 60u

typedef struct cpu_set {
    uint64_t bits[MAX_CPUS / 64];
} cpu_set;

static bool has_cpu(const cpu_set *set, uint32_t cpu) {
    return (set->bits[cpu / 64] >> (cpu % 64) & 1) != 0;
}

static uint32_t count_cpus(const cpu_set *set) {
    uint32_t n = 0;
    for (size_t i = 0; i < PE_LEN(set->bits); i++) {
        n += (uint32_t)__builtin_popcountll(set->bits[i]);
    }
    return n;
}

/* Digits at *text, moved behind them; false without any, or from MAX_CPUS on. */
static bool read_cpu(uint32_t *out_cpu, const char **text) {
    const char *c = *text;
    uint32_t cpu = 0;
    for (; *c >= '0' && *c <= '9'; c++) {
        cpu = cpu * 10 + (uint32_t)(*c - '0');
        if (cpu >= MAX_CPUS) {
            return false;
        }
    }
    *out_cpu = cpu;
    const bool found = c != *text;
    *text = c;
    return found;
}

/* "0-3,8" as the kernel writes it; false when the text is not of that kind. */
static bool parse_cpus(cpu_set *out_set, const char *text) {
    memset(out_set, 0, sizeof *out_set);
    for (;;) {
        uint32_t first;
        if (!read_cpu(&first, &text)) {
            return false;
        }
        uint32_t last = first;
        if (*text == '-') {
            text++;
            if (!read_cpu(&last, &text)) {
                return false;
            }
        }
        for (uint32_t cpu = first; cpu <= last; cpu++) {
            out_set->bits[cpu / 64] |= UINT64_C(1) << (cpu % 64);
        }
        if (*text != ',') {
            return *text == '\0' || *text == '\n';
        }
        text++;
    }
}

/* The calling thread's affinity mask; false when the system does not tell. */
static bool find_allowed(cpu_set *out_set) {
    memset(out_set, 0, sizeof *out_set);
#if defined(__linux__)
    // The C library's type ends at 1024; the kernel refuses a set smaller than its own.
    return sched_getaffinity(0, sizeof *out_set, (cpu_set_t *)(void *)out_set) == 0;
#else
    return false;
#endif
}

/* Processors that are online, for systems without affinity masks. */
static uint32_t count_online(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)PE_MIN(n, (long)MAX_CPUS) : 1u;
}

uint32_t pe_cores_n_allowed(void) {
    cpu_set set;
    const uint32_t n = find_allowed(&set) ? count_cpus(&set) : 0;
    return n > 0 ? n : count_online();
}

/* ---- the machine's files ---------------------------------------------- */

static bool read_cpus(cpu_set *out_set, const char *root, const char *name) {
    char line[4096];
    return pe_group_read_line(line, sizeof line, "%s/sys/devices/%s", root, name) &&
           parse_cpus(out_set, line);
}

/* A number above 0 out of a processor's folder, else 0. */
static uint64_t read_number(const char *root, uint32_t cpu, const char *name) {
    char line[64];
    unsigned long long value = 0;
    if (!pe_group_read_line(line, sizeof line, "%s/sys/devices/system/cpu/cpu%u/%s", root, cpu,
                            name) ||
        line[0] < '0' || line[0] > '9' || sscanf(line, "%19llu", &value) != 1) {
        return 0;
    }
    return value;
}

/* Keeps the first of the siblings that the mask allows. */
static void drop_siblings(cpu_set *set, const char *root) {
    const cpu_set allowed = *set;
    for (uint32_t cpu = 0; cpu < MAX_CPUS; cpu++) {
        if (!has_cpu(&allowed, cpu)) {
            continue;
        }
        char name[100];
        cpu_set siblings;
        snprintf(name, sizeof name, "system/cpu/cpu%u/topology/thread_siblings_list", cpu);
        if (!read_cpus(&siblings, root, name) || !has_cpu(&siblings, cpu)) {
            continue;
        }
        for (uint32_t other = 0; other < cpu; other++) {
            if (has_cpu(&siblings, other) && has_cpu(&allowed, other)) {
                set->bits[cpu / 64] &= ~(UINT64_C(1) << (cpu % 64));
                break;
            }
        }
    }
}

/* How many have FAST_PERCENT of the largest number in that file; 0 when one lacks it. */
static uint32_t count_fast(const cpu_set *set, const char *root, const char *name) {
    uint64_t best = 0;
    for (uint32_t cpu = 0; cpu < MAX_CPUS; cpu++) {
        if (has_cpu(set, cpu)) {
            const uint64_t value = read_number(root, cpu, name);
            if (value == 0) {
                return 0;
            }
            best = PE_MAX(best, value);
        }
    }
    uint32_t n = 0;
    for (uint32_t cpu = 0; cpu < MAX_CPUS; cpu++) {
        if (has_cpu(set, cpu)) {
            // In floating point nothing can overflow.
            n += (double)read_number(root, cpu, name) * 100 >= (double)best * FAST_PERCENT;
        }
    }
    return n;
}

/* Arm's kernels tell the capacity; Intel's list the performance cores, whose frequency
 * says too little of them; for the rest (AMD's compact cores) frequency is speed. */
static uint32_t find_fast(const cpu_set *set, const char *root) {
    uint32_t n = count_fast(set, root, "cpu_capacity");
    if (n > 0) {
        return n;
    }
    cpu_set performance;
    if (read_cpus(&performance, root, "cpu_core/cpus")) {
        for (size_t i = 0; i < PE_LEN(performance.bits); i++) {
            performance.bits[i] &= set->bits[i];
        }
        n = count_cpus(&performance);
        return n > 0 ? n : count_cpus(set);
    }
    n = count_fast(set, root, "cpufreq/cpuinfo_max_freq");
    return n > 0 ? n : count_cpus(set);
}

/* ---- control groups --------------------------------------------------- */

/* The lesser of two limits, of which 0 is none. */
static uint32_t tighter(uint32_t a, uint32_t b) {
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* Processors' worth of time, rounded up: half a processor still computes. "max", -1
 * and what is garbled are no limit. */
static uint32_t quota_of(const char *quota_text, const char *period_text) {
    unsigned long long quota = 0;
    unsigned long long period = 0;
    if (quota_text[0] < '0' || quota_text[0] > '9' || sscanf(quota_text, "%18llu", &quota) != 1 ||
        period_text[0] < '0' || period_text[0] > '9' ||
        sscanf(period_text, "%18llu", &period) != 1 || quota == 0 || period == 0) {
        return 0;
    }
    return (uint32_t)PE_MIN(pe_ceil_div(quota, period), UINT32_MAX);
}

/* The tightest of the groups so far. */
static void add_quota(void *arg, const char *folder) {
    uint32_t *tightest = arg;
    char quota[64];
    char period[64];
    uint32_t found = 0;
    if (pe_group_read_line(quota, sizeof quota, "%s/cpu.max", folder)) {
        const char *space = strchr(quota, ' ');
        found = space != NULL ? quota_of(quota, space + 1) : 0;
    } else if (pe_group_read_line(quota, sizeof quota, "%s/cpu.cfs_quota_us", folder) &&
               pe_group_read_line(period, sizeof period, "%s/cpu.cfs_period_us", folder)) {
        found = quota_of(quota, period);
    }
    *tightest = tighter(*tightest, found);
}

/* ---- together --------------------------------------------------------- */

#if defined(__APPLE__)
static uint32_t ask_number(const char *name) {
    int value = 0;
    size_t n_bytes = sizeof value;
    return sysctlbyname(name, &value, &n_bytes, NULL, 0) == 0 && value > 0 ? (uint32_t)value : 0;
}
#endif

void pe_cores_find(pe_cores *out_cores, const char *root, const char *allowed) {
    cpu_set set;
    const bool found = allowed != NULL ? parse_cpus(&set, allowed) : find_allowed(&set);
    *out_cores = (pe_cores){.n_allowed = found ? count_cpus(&set) : 0};
    if (out_cores->n_allowed > 0) {
        drop_siblings(&set, root);
        out_cores->n_physical = count_cpus(&set);
        out_cores->n_fast = find_fast(&set, root);
    } else {
        out_cores->n_allowed = count_online();
        out_cores->n_physical = out_cores->n_allowed;
        out_cores->n_fast = out_cores->n_allowed;
#if defined(__APPLE__)
        const uint32_t n_physical = ask_number("hw.physicalcpu");
        const uint32_t n_performance = ask_number("hw.perflevel0.physicalcpu");
        out_cores->n_physical = n_physical > 0 ? n_physical : out_cores->n_allowed;
        out_cores->n_fast = n_performance > 0 ? n_performance : out_cores->n_physical;
#endif
    }
    pe_group_visit(root, "cpu", add_quota, &out_cores->n_quota);
    out_cores->n_threads =
        out_cores->n_quota > 0 ? PE_MIN(out_cores->n_fast, out_cores->n_quota) : out_cores->n_fast;
}
