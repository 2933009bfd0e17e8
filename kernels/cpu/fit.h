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

#endif
