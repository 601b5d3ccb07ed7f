/* How much memory this process may still take without anything being swapped or killed. */
#ifndef PE_RAM_H
#define PE_RAM_H

#include "pe_base.h"

/* What the kernel could give now: MemAvailable, which counts what it would drop from the page
 * cache, or less where a control group's limit leaves less (its own page cache counted in
 * the same way). UINT64_MAX when the system does not tell.
 * shape    root: "" or a folder that stands for "/", with its own proc and sys
 * units    bytes */
uint64_t pe_ram_available(const char *root);

#endif
