/* What searches for grids and rounding of columns share. */
#ifndef HALFBYTE_FIT_H
#define HALFBYTE_FIT_H

#include "weight.h"

INLINE vf vf_min2(vf a, vf b) { return vf_pick(a < b, a, b); }
INLINE vf vf_max2(vf a, vf b) { return vf_pick(a > b, a, b); }

/* To the nearest whole number, ties to even, for numbers below 2**22. */
INLINE vf vf_whole(vf x) {
    const vf magic = vf_set(12582912.0f);
    return (x + magic) - magic;
}

INLINE vf vf_abs(vf x) { return (vf)((vi)x & 0x7FFFFFFF); }

/* The nearest whole number between two. */
INLINE vf fit_code(vf x, vf low, vf high) { return vf_whole(vf_min2(vf_max2(x, low), high)); }

/* Columns of up to LANES rows, a row a lane; lanes beyond repeat the last row. */
INLINE void turn_rows(vf *x, const float *w, int columns, int rows, int stride) {
    for (int lane = 0; lane < LANES; lane++) {
        const float *row = w + (size_t)(lane < rows ? lane : rows - 1) * (size_t)stride;
        for (int i = 0; i < columns; i++) ((float *)&x[i])[lane] = row[i];
    }
}

#endif
