/* Lattices: whether weights are, exactly, the values of some grid. Those of checkpoints
 * trained for a grid are, and lose nothing when it is found again. */
#ifndef PE_LATTICE_H
#define PE_LATTICE_H

#include "pe_grid.h"

/* Finds a grid of Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0, and the 32 levels, whose values rounded
 * to source (F32, F16 or BF16) are w, number for number; -0 counts as 0.
 *
 * The widest weight (with minimums: the range) is some number of steps, 1 to 15 or so: each
 * is tried, a sign and a lowest level too, and dropped at the first weight that is no
 * multiple of the step within its own rounding. The fp16 numbers around the step of least
 * squares are tried, each with the minimums that all weights allow, until all come out.
 * The coarsest step that does is taken. Zeros have step 0.
 *
 * errors   false when there is none, for other types, and for NaN or infinity */
bool pe_lattice_find(pe_grid *out, int8_t *levels, uint32_t dtype, const float *w, uint32_t source);

#endif
