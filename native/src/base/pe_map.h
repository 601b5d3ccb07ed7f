/* A read-only memory mapping of one whole file. */
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

#endif
