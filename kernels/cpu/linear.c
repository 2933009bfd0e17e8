/* y [T, N] = x [T, K] W^T for few rows, straight from packed weights (weight.h).
 *
 * Late scaling: a group's products with bare integer codes are summed in float32, then scaled
 * once: y += scale * sum(code * x) + offset * sum(x). That is cheaper than scaling each weight
 * and more accurate. Each output is one chain of fused multiply-adds in the order of K; the
 * number of rows only decides how many chains run side by side.
 */
#include "weight.h"

#define MAX_ROWS 8

/* One group of `depth` columns: acc[t][m] = sum over k of code * x. */
INLINE void group_nibbles(const weight *w, int kind, const char *const *record, int depth,
                          const float *x, size_t ldx, int rows, int tiles, vf acc[][MAX_ROWS],
                          vf table) {
    for (int k = 0; k < depth; k += 8) {
        vu word[4];
        for (int t = 0; t < tiles; t++) {
            const char *from = record[t] + (size_t)(k / 8) * sizeof(vu);
            __builtin_prefetch(from + w->ahead);
            memcpy(&word[t], from, sizeof(vu));
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            for (int t = 0; t < tiles; t++) {
                vf q = nibble(kind, w, table, word[t], i);
                for (int m = 0; m < rows; m++)
                    acc[t][m] = vf_fma(q, vf_set(x[m * ldx + k + i]), acc[t][m]);
            }
        }
    }
}

INLINE void group_bytes(const weight *w, int kind, const char *const *record, int depth,
                        const float *x, size_t ldx, int rows, int tiles, vf acc[][MAX_ROWS]) {
    for (int k = 0; k < depth; k++)
        for (int t = 0; t < tiles; t++) {
            size_t at = (size_t)k * LANES * element_bytes(kind);
            if (at % 64 == 0) __builtin_prefetch(record[t] + at + w->ahead);
            vf q = element(kind, record[t], k);
            for (int m = 0; m < rows; m++)
                acc[t][m] = vf_fma(q, vf_set(x[m * ldx + k]), acc[t][m]);
        }
}

INLINE void finish(const weight *w, int tile, int rows, vf y[MAX_ROWS], float *out, size_t ldo,
                   int add) {
    int lanes = w->n - tile * LANES;
    vf bias = {0};
    if (w->bias) bias = vf_load(w->bias + (size_t)tile * LANES);
    for (int m = 0; m < rows; m++) {
        float *to = out + m * ldo + (size_t)tile * LANES;
        vf scale = vf_set(w->row_scales ? w->row_scales[m] : 1.0f);
        vf v = vf_fma(y[m], scale, bias);
        if (lanes >= LANES) {
            vf_store(to, add ? vf_load(to) + v : v);
        } else {
            float part[LANES];
            vf_store(part, v);
            for (int i = 0; i < lanes; i++) to[i] = add ? to[i] + part[i] : part[i];
        }
    }
}

/* `tiles` tiles from `tile` for `rows` rows; sums[m * groups + g] is the sum of x over a group. */
INLINE void block(const weight *w, int kind, int tile, int tiles, const float *x, size_t ldx,
                  int rows, const float *sums, float *out, size_t ldo, int add) {
    const char *record[4];
    vf y[4][MAX_ROWS];
    vf table = code_table(w);
    for (int t = 0; t < tiles; t++) {
        record[t] = w->data + (size_t)(tile + t) * w->tile_bytes;
        for (int m = 0; m < rows; m++) y[t][m] = (vf){0};
    }
    for (int g = 0; g < w->groups; g++) {
        int begin = g * w->group, depth = w->k - begin < w->group ? w->k - begin : w->group;
        vf acc[4][MAX_ROWS];
        for (int t = 0; t < tiles; t++)
            for (int m = 0; m < rows; m++) acc[t][m] = (vf){0};
        if (kind == W_Q4 || kind == W_T4)
            group_nibbles(w, kind, record, depth, x + begin, ldx, rows, tiles, acc, table);
        else group_bytes(w, kind, record, depth, x + begin, ldx, rows, tiles, acc);
        for (int t = 0; t < tiles; t++) {
            const char *values = record[t] + w->code_bytes;
            record[t] += w->record_bytes;
            if (!w->has_scales) {
                for (int m = 0; m < rows; m++) y[t][m] += acc[t][m];
                continue;
            }
            __builtin_prefetch(values + w->ahead);
            vf scale = group_scale(kind, w, values);
            for (int m = 0; m < rows; m++) y[t][m] = vf_fma(scale, acc[t][m], y[t][m]);
            if (w->has_offsets) {
                vf offset = group_value(w, values + w->value_bytes);
                for (int m = 0; m < rows; m++)
                    y[t][m] = vf_fma(offset, vf_set(sums[m * w->groups + g]), y[t][m]);
            }
        }
    }
    for (int t = 0; t < tiles; t++) finish(w, tile + t, rows, y[t], out, ldo, add);
}

/* Few rows leave registers for more tiles side by side, which hides the latency of the chains. */
#define CASE(kind, rows, wide)                                                              \
    case rows:                                                                              \
        for (; tile + wide <= end; tile += wide)                                            \
            block(w, kind, tile, wide, x, ldx, rows, sums, out, ldo, add);                  \
        for (; tile < end; tile++) block(w, kind, tile, 1, x, ldx, rows, sums, out, ldo, add); \
        break;

#define DISPATCH(name, kind)                                                                \
    static void name(const weight *w, int tile, int end, const float *x, size_t ldx,        \
                     int rows, const float *sums, float *out, size_t ldo, int add) {        \
        switch (rows) {                                                                     \
            CASE(kind, 1, 4) CASE(kind, 2, 4) CASE(kind, 3, 2) CASE(kind, 4, 2)             \
            CASE(kind, 5, 1) CASE(kind, 6, 1) CASE(kind, 7, 1) CASE(kind, 8, 1)             \
        }                                                                                   \
    }

DISPATCH(rows_q4, W_Q4)
DISPATCH(rows_q8, W_Q8)
DISPATCH(rows_f32, W_F32)
DISPATCH(rows_f16, W_F16)
DISPATCH(rows_bf16, W_BF16)
DISPATCH(rows_e4m3, W_E4M3)
#if defined(__AVX512F__)
#define rows_t4 rows_q4 /* both look codes up */
#else
DISPATCH(rows_t4, W_T4)
#endif

void hb_linear(const struct linear *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    int total = op->tokens, begin, end;
    size_t ldx = (size_t)op->x_stride, ldo = (size_t)op->out_stride;
    hb_share(w.tiles, tid, threads, &begin, &end);
    if (begin == end) return;
    float *sums = hb_scratch((size_t)MAX_ROWS * w.groups);
    for (int row = 0; row < total; row += MAX_ROWS) {
        int rows = total - row < MAX_ROWS ? total - row : MAX_ROWS;
        const float *x = op->x + row * ldx;
        float *out = op->out + row * ldo;
        w.row_scales = op->factors ? op->factors + row : NULL;
        if (w.has_offsets)
            for (int m = 0; m < rows; m++)
                for (int g = 0; g < w.groups; g++) {
                    int k = g * w.group, stop = k + w.group < w.k ? k + w.group : w.k;
                    vf part = {0};
                    float sum = 0;
                    for (; k + LANES <= stop; k += LANES) part += vf_load(x + m * ldx + k);
                    for (; k < stop; k++) sum += x[m * ldx + k];
                    sums[m * w.groups + g] = vf_sum(part) + sum;
                }
        switch (w.kind) {
            case W_Q4: rows_q4(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add); break;
            case W_Q8: rows_q8(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add); break;
            case W_F16: rows_f16(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add); break;
            case W_BF16: rows_bf16(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add); break;
            case W_T4: rows_t4(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add); break;
            case W_E4M3: rows_e4m3(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add); break;
            default: rows_f32(&w, begin, end, x, ldx, rows, sums, out, ldo, op->add);
        }
    }
}

int hb_lanes(void) { return LANES; }

void hb_embed(const struct embed *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    const int32_t *order = op->order;
    for (int t = tid; t < op->tokens; t += threads) {
        int tile = (int)(op->ids[t] / LANES), lane = (int)(op->ids[t] % LANES);
        float *out = op->out + (size_t)t * op->out_stride;
        for (int k = 0; k < w.k; k++) {
            vf v = weight_value(&w, tile, k);
            out[order ? order[k] : k] = v[lane] * op->factor;
        }
    }
}
