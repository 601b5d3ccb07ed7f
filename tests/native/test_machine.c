/* What the core finds out about the machine, from made-up /proc and /sys. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "harness.h"
#include "pe_cores.h"
#include "pe_ram.h"

#define PATH_BYTES 4096

static char root[PATH_BYTES];

/* A new empty root. */
static void new_root(void) {
    static unsigned n;
    char name[32];
    snprintf(name, sizeof name, "root-%u", n++);
    snprintf(root, sizeof root, "%s.d", temp_file(name, "", 0));
    CHECK(mkdir(root, 0700) == 0, "mkdir %s", root);
}

/* A file below root, with the folders that it takes. */
static void put(const char *name, const char *text) {
    char path[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = strchr(path + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    CHECK(file != NULL, "%s", path);
    if (file != NULL) {
        fputs(text, file);
        fclose(file);
    }
}

static void put_cpu(unsigned cpu, const char *siblings, const char *capacity) {
    char name[128];
    snprintf(name, sizeof name, "sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    put(name, siblings);
    if (capacity != NULL) {
        snprintf(name, sizeof name, "sys/devices/system/cpu/cpu%u/cpu_capacity", cpu);
        put(name, capacity);
    }
}

static pe_cores find(const char *allowed) {
    pe_cores cores;
    pe_cores_find(&cores, root, allowed);
    return cores;
}

static void cores_without_files(void) {
    new_root();
    const pe_cores cores = find("0-3,8");
    CHECK_U64(cores.n_allowed, 5);
    CHECK_U64(cores.n_physical, 5);
    CHECK_U64(cores.n_fast, 5);
    CHECK_U64(cores.n_quota, 0);
    CHECK_U64(cores.n_threads, 5);
    CHECK(find("what").n_threads >= 1, "a garbled list");
}

static void siblings_count_once(void) {
    new_root();
    for (unsigned cpu = 0; cpu < 4; cpu++) {
        put_cpu(cpu, cpu % 2 == 0 ? "0,2\n" : "1,3\n", NULL);
    }
    CHECK_U64(find("0-3").n_physical, 2);
    CHECK_U64(find("2-3").n_physical, 2);  // each the only one of its core that may be used
    CHECK_U64(find("0,2").n_physical, 1);
}

static void slow_cores_are_left_out(void) {
    new_root();
    for (unsigned cpu = 0; cpu < 8; cpu++) {
        char self[8];
        snprintf(self, sizeof self, "%u\n", cpu);
        put_cpu(cpu, self, cpu < 4 ? "381\n" : "1024\n");  // A55 beside A76
    }
    CHECK_U64(find("0-7").n_fast, 4);
    CHECK_U64(find("0-7").n_threads, 4);
    CHECK_U64(find("0-3").n_fast, 4);  // the fastest of those that may be used
}

static void quota_of_groups(void) {
    new_root();
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    CHECK_U64(find("0-7").n_quota, 0);
    put("sys/fs/cgroup/a/cpu.max", "250000 100000\n");  // above it: 2.5 processors
    CHECK_U64(find("0-7").n_quota, 3);
    CHECK_U64(find("0-7").n_threads, 3);
    CHECK_U64(find("0-1").n_threads, 2);
    put("sys/fs/cgroup/cpu.max", "50000 100000\n");
    CHECK_U64(find("0-7").n_threads, 1);
    put("sys/fs/cgroup/cpu.max", "nonsense\n");
    CHECK_U64(find("0-7").n_quota, 3);

    new_root();  // version 1
    put("proc/self/cgroup", "5:cpuacct,cpu:/c\n2:memory:/c\n");
    put("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "200000\n");
    put("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
    CHECK_U64(find("0-7").n_quota, 2);
    put("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
    CHECK_U64(find("0-7").n_quota, 0);
}

static void memory_of_machine_and_groups(void) {
    new_root();
    CHECK(pe_ram_available(root) == UINT64_MAX, "nothing to read");
    put("proc/meminfo", "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\n");
    CHECK_U64(pe_ram_available(root), 4000 * 1024);
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    put("sys/fs/cgroup/a/b/memory.current", "5000000\n");
    CHECK_U64(pe_ram_available(root), 4000 * 1024);
    put("sys/fs/cgroup/a/memory.max", "3000000\n");
    put("sys/fs/cgroup/a/memory.current", "2900000\n");
    CHECK_U64(pe_ram_available(root), 100000);
    // What is cached of files would be dropped.
    put("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 500000\nactive_file 400000\n");
    CHECK_U64(pe_ram_available(root), 1000000);
    put("sys/fs/cgroup/a/memory.current", "9900000\n");  // a limit lowered later
    CHECK_U64(pe_ram_available(root), 0);

    new_root();  // version 1
    put("proc/meminfo", "MemAvailable:    4000 kB\n");
    put("proc/self/cgroup", "2:memory:/c\n");
    put("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "1000\n");
    CHECK_U64(pe_ram_available(root), 4000 * 1024);
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1500000\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "700000\n");
    put("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100000\ntotal_active_file 0\n");
    CHECK_U64(pe_ram_available(root), 900000);
}

int main(void) {
    static const test_case tests[] = {
        TEST(cores_without_files),          TEST(siblings_count_once),
        TEST(slow_cores_are_left_out),      TEST(quota_of_groups),
        TEST(memory_of_machine_and_groups),
    };
    return run_tests(tests, sizeof tests / sizeof *tests);
}
