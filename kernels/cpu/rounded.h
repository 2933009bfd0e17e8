/* Rows rounded to int8 by chunks, between inputs.c, which rounds, and integer.c, which multiplies. */
#ifndef HALFBYTE_ROUNDED_H
#define HALFBYTE_ROUNDED_H

#include "weight.h"

/* What the activations of a chunk add to their codes (Python: ops.py, RoundBlocks). */
typedef struct {
    float scale, scaled_sum, scaled_half[2];
    int32_t sum, half[2], none;
} block_values;

#endif
