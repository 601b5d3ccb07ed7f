#define _GNU_SOURCE
#include "pe_group.h"

#include <stdarg.h>
#include <stdio.h>

bool pe_group_read_line(char *out_line, int n_bytes, const char *format, ...) {
    char path[PE_GROUP_PATH_BYTES];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(path, sizeof path, format, args);
    va_end(args);
    FILE *file = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    if (file == NULL) {
        return false;
    }
    const bool found = fgets(out_line, n_bytes, file) != NULL;
    fclose(file);
    return found;
}

typedef struct visit {
    const char *root;
    const char *controller;
    pe_group_fn fn;
    void *arg;
} visit;

static void visit_folder(const visit *v, const char *mount, const char *group) {
    char folder[PE_GROUP_PATH_BYTES];
    const int n = snprintf(folder, sizeof folder, "%s/sys/fs/cgroup%s%s", v->root, mount, group);
    if (n > 0 && (size_t)n < sizeof folder) {
        v->fn(v->arg, folder);
    }
}

/* A group and all above it up to the mount's root. */
static void visit_path(const visit *v, const char *mount, char *group) {
    for (;;) {
        char *slash = strrchr(group, '/');
        const bool is_root = slash == NULL || slash[1] == '\0';
        if (!is_root) {
            visit_folder(v, mount, group);
        }
        if (slash == NULL) {
            visit_folder(v, mount, "");
            return;
        }
        *slash = '\0';
    }
}

static bool has_word(const char *words, const char *word) {
    const size_t n = strlen(word);
    for (;; words++) {
        if (strncmp(words, word, n) == 0 && (words[n] == ',' || words[n] == '\0')) {
            return true;
        }
        words = strchr(words, ',');
        if (words == NULL) {
            return false;
        }
    }
}

/* Lines of /proc/self/cgroup are "number:controllers:/group". */
static void visit_line(const visit *v, char *line) {
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':');
    char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (group == NULL) {
        return;
    }
    *group++ = '\0';
    controllers++;
    if (controllers[0] == '\0') {
        visit_path(v, "", group);  // version 2
    } else if (has_word(controllers, v->controller)) {
        // Version 1 is mounted under its controllers' names, with a link for each.
        char mount[32];
        snprintf(mount, sizeof mount, "/%s", v->controller);
        visit_path(v, mount, group);
    }
}

void pe_group_visit(const char *root, const char *controller, pe_group_fn fn, void *arg) {
    const visit v = {root, controller, fn, arg};
    char line[PE_GROUP_PATH_BYTES];
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *file = fopen(line, "re");
    if (file == NULL) {
        visit_folder(&v, "", "");
        return;
    }
    while (fgets(line, sizeof line, file) != NULL) {
        visit_line(&v, line);
    }
    fclose(file);
}
