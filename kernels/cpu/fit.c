/* Grids for groups of weights: search and comparison, for quantizing.
 *
 * A lane is a group, so nothing is ever summed across lanes: LANES rows times the columns of one
 * group are turned once, and then lie in the first cache for all tries. What the searches look
 * for is kernels/reference.py's; sums are in the order of columns.
 */
#include "fit.h"
#include "floats.h"

enum { UNIFORM, AFFINE, TABLE, MOST_COLUMNS = 32 };

typedef struct {
    vf x[MOST_COLUMNS], h[MOST_COLUMNS]; /* weights and what their squared errors count */
    float_table values, borders;
    int columns;
    float top, zero;
} fit_tile;

typedef struct {
    vf scale, offset, gain; /* gain: what they take from the sum of h x x */
} fit_found;

INLINE void fit_load(fit_tile *t, const float *w, const float *h, int rows, int stride) {
    turn_rows(t->x, w, t->columns, rows, stride);
    for (int i = 0; i < t->columns; i++) t->h[i] = vf_set(h[i]);
}

INLINE void fit_table(fit_tile *t, const float *table) {
    for (int i = 0; i < 16; i++) {
        t->values.value[i] = table[i];
        t->borders.value[i] = i < 15 ? (table[i] + table[i + 1]) * 0.5f : 0;
    }
}

/* What x over the scale becomes: a number of steps from the zero point, an entry of the table, or
 * with AFFINE a number of steps from the offset. */
INLINE vf fit_value(const fit_tile *t, int mode, vf x) {
    if (mode == TABLE) {
        vu code = {0};
        for (int step = 8; step; step /= 2) {
            vf border = look_up(&t->borders, code + (uint32_t)(step - 1));
            code += (vu)(x > border) & (uint32_t)step;
        }
        return look_up(&t->values, code);
    }
    float low = mode == AFFINE ? 0 : -t->zero;
    return fit_code(x, vf_set(low), vf_set(low + t->top));
}

/* Round with 1 / `inverse` and `offset`; keep the best scale and offset for these codes if they
 * are better than what was found. */
INLINE void fit_try(const fit_tile *t, int mode, vf inverse, vf offset, vf highest, vf sum_h,
                    vf sum_x, fit_found *found) {
    vf sq = {0}, sqq = {0}, sxq = {0};
    for (int i = 0; i < t->columns; i++) {
        vf x = t->x[i];
        vf q = fit_value(t, mode, (mode == AFFINE ? x - offset : x) * inverse);
        vf hq = t->h[i] * q;
        sqq = vf_fma(hq, q, sqq);
        sxq = vf_fma(hq, x, sxq);
        if (mode == AFFINE) sq += hq;
    }
    const vf none = {0};
    vf some = (vf)(sqq > none);
    vf scale = (vf)((vi)(sxq / vf_pick((vi)some, sqq, vf_set(1))) & (vi)some);
    if (mode == AFFINE) scale = vf_max2(scale, none);
    vf gain = scale * sxq;
    offset = none;
    if (mode == AFFINE) {
        vf d = sum_h * sqq - sq * sq;
        vi good = d > sum_h * sqq * 1e-6f;
        d = vf_pick(good, d, vf_set(1));
        vf s = (sum_h * sxq - sum_x * sq) / d, o = (sqq * sum_x - sq * sxq) / d;
        good &= (s > none) & (o <= highest);
        vf both = s * sxq + o * sum_x;
        good &= both > gain;
        scale = vf_pick(good, s, scale);
        offset = vf_pick(good, o, offset);
        gain = vf_pick(good, both, gain);
    }
    vi better = gain > found->gain;
    found->scale = vf_pick(better, scale, found->scale);
    found->offset = vf_pick(better, offset, found->offset);
    found->gain = vf_pick(better, gain, found->gain);
}

INLINE void fit_lanes(const struct fit_groups *op, const fit_tile *t, int mode, float *scales,
                      float *offsets, int rows, int groups) {
    const vf none = {0}, highest = vf_set(op->free ? INFINITY : 0.0f);
    vf low = t->x[0], high = t->x[0], sum_h = {0}, sum_x = {0};
    for (int i = 0; i < t->columns; i++) {
        low = vf_min2(low, t->x[i]);
        high = vf_max2(high, t->x[i]);
        sum_h += t->h[i];
        sum_x = vf_fma(t->h[i], t->x[i], sum_x);
    }
    fit_found found = {none, none, none};
    if (mode == AFFINE) {
        vf mean = sum_x / vf_pick(sum_h > none, sum_h, vf_set(1));
        found.offset = vf_min2(mean, highest);
        found.gain = found.offset * (2.0f * sum_x - found.offset * sum_h);
        low = vf_min2(low, highest);
    }
    vf range = mode == AFFINE ? high - low : vf_max2(vf_abs(low), vf_abs(high));
    float step = op->tries > 1 ? (op->last - op->first) / (float)(op->tries - 1) : 0;
    for (int j = 0; j < op->tries; j++) {
        float steps = op->first + step * (float)j;
        vf inverse = steps / range;
        if (mode == AFFINE) {
            fit_try(t, mode, inverse, low, highest, sum_h, sum_x, &found);
        } else {
            fit_try(t, mode, inverse, none, none, sum_h, sum_x, &found);
            fit_try(t, mode, -inverse, none, none, sum_h, sum_x, &found);
        }
    }
    for (int j = 0; j < op->refits; j++)
        fit_try(t, mode, 1.0f / found.scale, found.offset, highest, sum_h, sum_x, &found);
    for (int lane = 0; lane < rows; lane++) {
        scales[(size_t)lane * groups] = found.scale[lane];
        if (mode == AFFINE) offsets[(size_t)lane * groups] = found.offset[lane];
    }
}

void hb_fit_groups(const struct fit_groups *op, int tid, int threads) {
    int groups = op->groups.k / op->groups.group, begin, end;
    hb_share((op->groups.n + LANES - 1) / LANES, tid, threads, &begin, &end);
    fit_tile t = {.columns = op->groups.group, .top = (float)op->groups.top, .zero = (float)op->groups.zero};
    if (op->groups.table) fit_table(&t, op->groups.table);
    for (int tile = begin; tile < end; tile++) {
        int row = tile * LANES, rows = op->groups.n - row < LANES ? op->groups.n - row : LANES;
        for (int g = 0; g < groups; g++) {
            size_t at = (size_t)row * groups + g;
            fit_load(&t, op->groups.weight + (size_t)row * op->groups.k + g * op->groups.group,
                     op->groups.importance + g * op->groups.group, rows, op->groups.k);
            float *scales = op->scales + at;
            if (op->groups.table) fit_lanes(op, &t, TABLE, scales, NULL, rows, groups);
            else if (op->offsets) fit_lanes(op, &t, AFFINE, scales, op->offsets + at, rows, groups);
            else fit_lanes(op, &t, UNIFORM, scales, NULL, rows, groups);
        }
    }
}

/* Which of some grids has the least error, and the sums that fit scales of super-blocks. */
INLINE void try_lanes(const struct try_groups *op, const fit_tile *t, int mode, size_t at, int rows,
                      int groups) {
    size_t all = (size_t)op->groups.n * groups;
    vf least = vf_set(INFINITY), best_q = {0}, best_qq = {0}, best_xq = {0};
    vf sum_x = {0};
    vi best = {0};
    for (int i = 0; i < t->columns; i++) sum_x = vf_fma(t->h[i], t->x[i], sum_x);
    for (int c = 0; c < op->choices; c++) {
        vf scale = {0}, offset = {0};
        for (int lane = 0; lane < LANES; lane++) {
            size_t from = c * all + at + (size_t)(lane < rows ? lane : rows - 1) * groups;
            scale[lane] = op->scales[from];
            if (mode == AFFINE) offset[lane] = op->offsets[from];
        }
        vf inverse = 1.0f / scale, sq = {0}, sqq = {0}, sxq = {0}, error = {0};
        for (int i = 0; i < t->columns; i++) {
            vf x = mode == AFFINE ? t->x[i] - offset : t->x[i];
            vf q = fit_value(t, mode, x * inverse), hq = t->h[i] * q;
            vf miss = x - q * scale;
            error = vf_fma(t->h[i] * miss, miss, error);
            sqq = vf_fma(hq, q, sqq);
            sxq = vf_fma(hq, t->x[i], sxq);
            if (mode == AFFINE) sq += hq;
        }
        vi better = error < least;
        least = vf_pick(better, error, least);
        best = (vi)vf_pick(better, (vf)((vi){0} + c), (vf)best);
        best_qq = vf_pick(better, sqq, best_qq);
        best_xq = vf_pick(better, sxq, best_xq);
        if (mode == AFFINE) best_q = vf_pick(better, sq, best_q);
    }
    for (int lane = 0; lane < rows; lane++) {
        size_t to = at + (size_t)lane * groups;
        op->best[to] = best[lane];
        op->sums[to] = least[lane];
        op->sums[all + to] = best_qq[lane];
        op->sums[2 * all + to] = best_xq[lane];
        if (mode == AFFINE) op->sums[3 * all + to] = best_q[lane];
        op->sums[4 * all + to] = sum_x[lane];
    }
}

void hb_try_groups(const struct try_groups *op, int tid, int threads) {
    int groups = op->groups.k / op->groups.group, begin, end;
    hb_share((op->groups.n + LANES - 1) / LANES, tid, threads, &begin, &end);
    fit_tile t = {.columns = op->groups.group, .top = (float)op->groups.top, .zero = (float)op->groups.zero};
    if (op->groups.table) fit_table(&t, op->groups.table);
    for (int tile = begin; tile < end; tile++) {
        int row = tile * LANES, rows = op->groups.n - row < LANES ? op->groups.n - row : LANES;
        for (int g = 0; g < groups; g++) {
            fit_load(&t, op->groups.weight + (size_t)row * op->groups.k + g * op->groups.group,
                     op->groups.importance + g * op->groups.group, rows, op->groups.k);
            size_t at = (size_t)row * groups + g;
            if (op->groups.table) try_lanes(op, &t, TABLE, at, rows, groups);
            else if (op->offsets) try_lanes(op, &t, AFFINE, at, rows, groups);
            else try_lanes(op, &t, UNIFORM, at, rows, groups);
        }
    }
}
