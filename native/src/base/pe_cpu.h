/* What this processor can do; asked once per engine. */
#ifndef PE_CPU_H
#define PE_CPU_H

#include "pe_base.h"

/* The best instruction set of this processor and operating system. */
pe_isa pe_cpu_best_isa(void);

/* Whether this processor and operating system have it; BEST and SCALAR always, a
 * number that names none never. */
bool pe_cpu_has_isa(pe_isa isa);

/* "scalar", "avx2", "avx_vnni", "avx512", "neon", "dotprod", "i8mm", else "unknown"; static
 * storage. */
const char *pe_cpu_isa_name(pe_isa isa);

#endif
