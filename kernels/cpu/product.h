/* What products with float and with rounded activations share: their sizes, and what is done with
 * the sums of a tile at the end. */
#ifndef HALFBYTE_PRODUCT_H
#define HALFBYTE_PRODUCT_H

#include "weight.h"

#define AHEAD 8192 /* bytes; FETCH_SECOND takes twice as many */
#define FEW_ROWS 8 /* that are computed straight from codes, side by side */

/* As many sums as registers hold, with what they are made of. */
#if LANES == 16
enum { MICRO_ROWS = 6, MICRO_PARTS = 2 };
#elif LANES == 8
enum { MICRO_ROWS = 4, MICRO_PARTS = 2 };
#else
enum { MICRO_ROWS = 4, MICRO_PARTS = 4 };
#endif
_Static_assert(MICRO_ROWS <= FEW_ROWS, "arrays of sums have room for them");

/* The weights' scales, one for each of their rows, on sums that were made without. */
static inline void scale_late(const weight *w, int tile, float sums[][TILE], int rows) {
    reader r;
    read_tile(w, tile, 0, &r);
    next_span(&r, 0, w->codes);
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < PARTS; v++) {
            float *to = sums[m] + v * LANES;
            vf_store(to, vf_load(to) * vf_load(r.values.scale[0] + v * LANES));
        }
}

/* Factors of rows of x, on sums that were made without. */
static inline void scale_rows(const float *factors, float sums[][TILE], int rows) {
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < PARTS; v++) {
            float *to = sums[m] + v * LANES;
            vf_store(to, vf_load(to) * vf_set(factors[m]));
        }
}

/* Rows of sums to their place in y [T, N]: factors, bias, and what is there already. */
static inline void finish(const weight *w, int tile, int rows, float sums[][TILE], float *out,
                          size_t ldo, int add) {
    for (int m = 0; m < rows; m++) {
        vf factor = vf_set(w->row_scales ? w->row_scales[m] : 1.0f);
        for (int v = 0; v < PARTS; v++) {
            int row = tile * TILE + v * LANES, left = w->n - row;
            float *to = out + m * ldo + row;
            vf bias = {0};
            if (left <= 0) break;
            if (w->bias) bias = vf_load(w->bias + row);
            vf y = vf_fma(vf_load(sums[m] + v * LANES), factor, bias);
            if (left >= LANES) {
                vf_store(to, add ? vf_load(to) + y : y);
            } else {
                float part[LANES];
                vf_store(part, y);
                for (int i = 0; i < left; i++) to[i] = add ? to[i] + part[i] : part[i];
            }
        }
    }
}

#endif
