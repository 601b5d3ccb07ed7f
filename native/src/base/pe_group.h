/* The control groups of this process, and the small files of the kernel. */
#ifndef PE_GROUP_H
#define PE_GROUP_H

#include "pe_base.h"

/* A path of a control group can be as long as a path. */
#define PE_GROUP_PATH_BYTES 5000u

/* The first line of the file of that name; false when there is none or no room for its name. */
__attribute__((format(printf, 3, 4))) bool pe_group_read_line(char *out_line, int n_bytes,
                                                              const char *format, ...);

/* One group: its folder. */
typedef void (*pe_group_fn)(void *arg, const char *folder);

/* Calls fn for the folder of each group that binds this process by controller ("cpu",
 * "memory"), its own and all above it, of version 2 or 1. In a container a group's name may
 * be the host's, of which only the mount's root is to be seen: it is among those called
 * for; a folder need not exist.
 * shape    root: "" or a folder that stands for "/", with its own proc and sys */
void pe_group_visit(const char *root, const char *controller, pe_group_fn fn, void *arg);

#endif
