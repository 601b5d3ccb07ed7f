/* The weight store: all parts of a model file, mapped, with lookup by name.
 * Weights are views into the mapping; nothing is copied.
 */
#ifndef PE_FILE_H
#define PE_FILE_H

#include "pe_gguf.h"

/* Adds a reference; undone by pe_file_close. */
pe_file *pe_file_acquire(pe_file *file);

/* The path that was opened, for messages: only its end when it is long. */
const char *pe_file_path(const pe_file *file);

/* The entry or tensor of that name, or NULL. */
const pe_meta *pe_file_find_meta(const pe_file *file, const char *key);
const pe_tensor_info *pe_file_find_tensor(const pe_file *file, const char *name);

/* The tensor at an index below pe_file_info.n_tensors. */
const pe_tensor_info *pe_file_tensor_at(const pe_file *file, uint64_t index);

#endif
