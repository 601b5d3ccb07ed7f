/* The forward pass: runs an architecture's steps over a batch of tokens. */
#ifndef PE_FORWARD_H
#define PE_FORWARD_H

#include "pe_scratch.h"

/* Computes the batch in scratch: stores its keys and values, whose positions are
 * reserved, and fills the logits and hidden states that are wanted. Tokens of one session stand in
 * the order of their positions.
 * cancel   polled before each layer; may be NULL
 * errors   PE_ERR_CANCELLED; PE_ERR_NUMERIC for a logit that is NaN or infinite */
pe_status pe_forward(const pe_model *model, const pe_ops *ops, const pe_kv_pool *kv,
                     pe_scratch *scratch, const int32_t *cancel, pe_error *err);

#endif
