/* Rows of activations as their readers want them: float, or bfloat16 in whole blocks. */
#ifndef HALFBYTE_ROWS_H
#define HALFBYTE_ROWS_H

#include "halfbyte.h"

static inline float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A row to bfloat16, zeros from `width` to `stride`. */
static inline void row_to_bf16(const float *x, int width, uint16_t *out, int stride) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        vh h = __builtin_convertvector(vf_to_bf16(vf_load(x + i)), vh);
        memcpy(out + i, &h, sizeof h);
    }
    if (i < width) {
        float part[LANES] = {0};
        memcpy(part, x + i, (size_t)(width - i) * sizeof(float));
        vh h = __builtin_convertvector(vf_to_bf16(vf_load(part)), vh);
        memcpy(out + i, &h, (size_t)(width - i) * 2);
    }
    memset(out + width, 0, (size_t)(stride - width) * 2);
}

static inline void row_to_half(const float *x, int width, uint16_t *out) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        vh h = vf_to_half(vf_load(x + i));
        memcpy(out + i, &h, sizeof h);
    }
    if (i < width) {
        float part[LANES] = {0};
        memcpy(part, x + i, (size_t)(width - i) * sizeof(float));
        vh h = vf_to_half(vf_load(part));
        memcpy(out + i, &h, (size_t)(width - i) * 2);
    }
}

/* Symmetric int8 codes of a row by its own scale, which is returned: its largest element becomes
 * `top`. No number where any element is none. `work` holds a row of floats (inputs.c). */
float hb_row_to_int8(const float *x, int width, float top, float *work, int8_t *out);

/* One activation row as float, or as bfloat16 padded with zeros to `stride`. */
static inline void put_row(const float *x, void *out, size_t row, int width, int stride, int half) {
    if (!half) memcpy((float *)out + row * stride, x, (size_t)width * sizeof(float));
    else row_to_bf16(x, width, (uint16_t *)out + row * stride, stride);
}

/* Zero the rows that pad a bfloat16 matrix to whole blocks. */
static inline void pad_rows(void *out, int rows, int stride) {
    size_t missing = (size_t)(-rows & (BLOCK_ROWS - 1));
    memset((uint16_t *)out + (size_t)rows * stride, 0, missing * stride * 2);
}

#endif
