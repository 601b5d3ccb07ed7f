/* A read-only memory mapping of one whole file, and large blocks of memory. */
#ifndef PE_MAP_H
#define PE_MAP_H

#include "pe_status.h"

typedef struct pe_map {
    const uint8_t *data;
    uint64_t n_bytes;
} pe_map;

/* Maps the file at path. The descriptor is closed again at once; the mapping
 * keeps the file.
 * owner    undone by pe_map_close
 * errors   PE_ERR_IO names the path and the system's reason: missing, a
 *          directory or device, not permitted, empty */
pe_status pe_map_open(pe_map *out_map, const char *path, pe_error *err);

/* A zeroed or closed map is allowed. */
void pe_map_close(pe_map *map);

/* Gives the pages that lie wholly within n_bytes at data, part of a map, back to the
 * system; who reads them again gets them from the page cache or the file. */
void pe_map_forget(const void *data, uint64_t n_bytes);

/* Zeroed memory on a border of 2 MB, in huge pages where the system has them; taken only
 * when it is written to. NULL when there are no addresses for it.
 * owner    undone by pe_map_free_anonymous with the same n_bytes */
void *pe_map_anonymous(uint64_t n_bytes);

/* NULL is allowed. */
void pe_map_free_anonymous(void *memory, uint64_t n_bytes);

#endif
