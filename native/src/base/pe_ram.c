#define _GNU_SOURCE
#include "pe_ram.h"

#include <stdio.h>

#include "pe_group.h"

/* The number behind a name that begins a line of a file; false when there is none. */
static bool read_field(uint64_t *out_value, const char *folder, const char *file_name,
                       const char *name) {
    char path[PE_GROUP_PATH_BYTES];
    char line[256];
    const int n = snprintf(path, sizeof path, "%s/%s", folder, file_name);
    FILE *file = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    if (file == NULL) {
        return false;
    }
    const size_t n_name = strlen(name);
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        unsigned long long value;
        // "max" and what is garbled are no number.
        if (strncmp(line, name, n_name) == 0 && sscanf(line + n_name, " %19llu", &value) == 1) {
            *out_value = value;
            found = true;
        }
    }
    fclose(file);
    return found;
}

/* What a group of version 2 or 1 leaves: its limit less what it uses and cannot drop. */
static void add_group(void *arg, const char *folder) {
    uint64_t *least = arg;
    uint64_t limit;
    uint64_t used;
    uint64_t cache[2] = {0, 0};
    const bool v2 = read_field(&limit, folder, "memory.max", "");
    if (!(v2 && read_field(&used, folder, "memory.current", "")) &&
        !(read_field(&limit, folder, "memory.limit_in_bytes", "") &&
          read_field(&used, folder, "memory.usage_in_bytes", ""))) {
        return;
    }
    (void)read_field(&cache[0], folder, "memory.stat", v2 ? "active_file " : "total_active_file ");
    (void)read_field(&cache[1], folder, "memory.stat",
                     v2 ? "inactive_file " : "total_inactive_file ");
    const uint64_t dropped = PE_MIN(used, cache[0] + cache[1]);
    const uint64_t kept = used - dropped;
    *least = PE_MIN(*least, limit > kept ? limit - kept : 0);
}

uint64_t pe_ram_available(const char *root) {
    char folder[PE_GROUP_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s/proc", root);
    uint64_t kilobytes;
    uint64_t available = UINT64_MAX;
    if (read_field(&kilobytes, folder, "meminfo", "MemAvailable:")) {
        available = kilobytes <= UINT64_MAX / 1024 ? kilobytes * 1024 : UINT64_MAX;
    }
    pe_group_visit(root, "memory", add_group, &available);
    return available;
}
