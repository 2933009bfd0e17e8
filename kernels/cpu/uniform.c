/* Uniform grids with float16 scales and whole zero points, for groups of any number of columns.
 *
 * A lane is a row, as in fit.c. What is searched is kernels/calibrator.py's.
 */
#include "fit.h"

typedef struct {
    const vf *x;    /* weights */
    const float *h; /* what their squared errors count */
    int columns;
    float top;
} uniform_tile;

typedef struct {
    vf scale, zero, error;
} uniform_found;

/* A scale as it is stored: a number of float16, and none of the smallest. */
INLINE vf stored_scale(vf scale) {
    vf size = vf_min2(vf_max2(vf_abs(scale), vf_set(0x1p-14f)), vf_set(65504.0f));
    vh half = vf_to_half((vf)((vi)size | ((vi)scale & INT32_MIN)));
    return vf_from_half((const uint16_t *)&half);
}

INLINE void uniform_keep(vf error, vf scale, vf zero, uniform_found *found) {
    vi better = error < found->error;
    found->error = vf_pick(better, error, found->error);
    found->scale = vf_pick(better, scale, found->scale);
    found->zero = vf_pick(better, zero, found->zero);
}

/* Round, and keep the grid if it is better; with `refit` also the best scale for these codes. */
static __attribute__((noinline)) void uniform_try(const uniform_tile *t, vf scale, vf zero, int refit,
                                                  uniform_found *found) {
    const vf none = {0}, inverse = 1.0f / scale, low = -zero, high = t->top - zero;
    vf error = none, slope = none, sqq = none;
    for (int i = 0; i < t->columns; i++) {
        vf q = fit_code(t->x[i] * inverse, low, high);
        vf miss = vf_fma(q, -scale, t->x[i]), hq = t->h[i] * q;
        error = vf_fma(t->h[i] * miss, miss, error);
        slope = vf_fma(hq, miss, slope);
        sqq = vf_fma(hq, q, sqq);
    }
    uniform_keep(error, scale, zero, found);
    if (!refit) return;
    /* The error of these codes is a parabola in the scale. */
    vi some = sqq > none;
    vf by = (vf)((vi)(slope / vf_pick(some, sqq, vf_set(1))) & some);
    vf fitted = stored_scale(scale + by);
    by = fitted - scale;
    uniform_keep(vf_fma(by, vf_fma(by, sqq, -2.0f * slope), error), fitted, zero, found);
}

INLINE uniform_found uniform_search(const struct fit_uniform *op, const uniform_tile *t) {
    const vf none = {0}, top = vf_set(t->top), middle = vf_set((t->top + 1) / 2);
    vf low = none, high = none;
    for (int i = 0; i < t->columns; i++) {
        low = vf_min2(low, t->x[i]);
        high = vf_max2(high, t->x[i]);
    }
    if (op->symmetric) {
        high = vf_max2(high, -low);
        low = -high;
    }
    uniform_found found = {vf_set(1), middle, vf_set(INFINITY)};
    for (int j = 0; j < op->tries; j++) {
        float clip = op->clips[j];
        vf scale = stored_scale((high - low) * clip / t->top);
        vf zero = op->symmetric ? middle : fit_code(-low * clip / scale, none, top);
        uniform_try(t, scale, zero, op->refits, &found);
        if (op->both_signs) uniform_try(t, -scale, zero, op->refits, &found);
    }
    for (int j = 0; j < op->refits; j++) {
        vf scale = found.scale, zero = found.zero;
        uniform_try(t, scale, zero, 1, &found);
        if (op->symmetric) continue;
        uniform_try(t, scale, vf_max2(zero - 1.0f, none), 1, &found);
        uniform_try(t, scale, vf_min2(zero + 1.0f, top), 1, &found);
    }
    return found;
}

void hb_fit_uniform(const struct fit_uniform *op, int tid, int threads) {
    int groups = (op->k + op->group - 1) / op->group, begin, end;
    hb_share((op->n + LANES - 1) / LANES, tid, threads, &begin, &end);
    if (begin == end) return;
    vf *x = (vf *)hb_scratch((size_t)op->group * LANES);
    for (int tile = begin; tile < end; tile++) {
        int row = tile * LANES, rows = op->n - row < LANES ? op->n - row : LANES;
        for (int g = 0; g < groups; g++) {
            int first = g * op->group, left = op->k - first;
            uniform_tile t = {x, op->importance + first, left < op->group ? left : op->group, op->top};
            turn_rows(x, op->weight + (size_t)row * op->k + first, t.columns, rows, op->k);
            uniform_found found = uniform_search(op, &t);
            for (int lane = 0; lane < rows; lane++) {
                size_t to = (size_t)(row + lane) * groups + g;
                op->scales[to] = found.scale[lane];
                op->zeros[to] = found.zero[lane];
            }
        }
    }
}
