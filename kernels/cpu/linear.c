/* y [T, N] = x [T, K] W^T with float activations: straight from packed codes for few rows, from an
 * unpacked panel for many.
 *
 * Late scaling: products with bare codes are summed by blocks of 16 or 32 columns, then scaled:
 *   y = fma(sum of code * x, scale, y), and with offsets y = fma(offset, sum of x, y)
 * block after block, each sum one chain of fused multiply-adds in the order of K. That is cheaper
 * than scaling each weight and more accurate, and both ways do just this, so a row has the same
 * bits in both. Weights without scales, and those with one for each row, which comes last: y = y + sum.
 */
#include "product.h"
#include "floats.h"

/* Rows of activations in whole chunks. */
typedef struct {
    const float *x;     /* [rows][stride] */
    const float *sums;  /* [rows][chunks][3]: of the halves and of all of a chunk; or NULL */
    size_t stride;
    int chunks;
} float_rows;

/* y [rows][parts] of a tile += a block. `sum` are its products. */
INLINE void add_block(const float *scale, const float *offset, int v, int parts, int rows,
                      const float *const *sums, int h, vf sum[][FEW_ROWS], float *const *y) {
    for (int p = 0; p < parts; p++) {
        int at = (v + p) * LANES;
        for (int m = 0; m < rows; m++) {
            vf value = vf_load(y[m] + at);
            value = scale ? vf_fma(sum[p][m], vf_load(scale + at), value) : value + sum[p][m];
            if (offset) value = vf_fma(vf_load(offset + at), vf_set(sums[m][h]), value);
            vf_store(y[m] + at, value);
        }
    }
}

INLINE int sums_needed(const weight *w) { return has_offsets(w) || has_zeros(w); }

/* y [rows][TILE] of a tile straight from its codes. */
INLINE void direct(const weight *w, int codes, int bits, int halves, int tile, const float_rows *x,
                   int count, int rows, float y[][TILE]) {
    /* A sum waits for each of its steps: with few rows, parts of the tile go side by side. */
    const int most = MICRO_ROWS * MICRO_PARTS / rows, parts = most > PARTS ? PARTS : most ? most : 1;
    float_table table = table_of(w);
    float *to[FEW_ROWS];
    const float *from[FEW_ROWS], *sums[FEW_ROWS] = {0};
    reader r;
    read_tile(w, tile, w->fetch == FETCH_SECOND ? 2 * AHEAD : AHEAD, &r);
    memset(y, 0, (size_t)rows * sizeof *y);
    for (int m = 0; m < rows; m++) {
        int own = m < count ? m : count - 1; /* those beyond are thrown away */
        to[m] = y[m];
        from[m] = x->x + (size_t)own * x->stride;
        if (x->sums) sums[m] = x->sums + (size_t)own * x->chunks * 3;
    }
    for (int c = 0; c < w->chunks; c++) {
        const char *chunk = next_chunk(&r, 0, codes, bits);
        for (int v = 0; v < PARTS; v += parts)
#pragma GCC unroll 2
            for (int h = 0; h <= halves; h++) {
                vf sum[PARTS][FEW_ROWS];
                int quads = halves ? 4 : 8;
                for (int p = 0; p < parts; p++)
                    for (int m = 0; m < rows; m++) sum[p][m] = (vf){0};
#pragma GCC unroll 8
                for (int i = 0; i < quads; i++) {
                    vf four[PARTS][4];
                    for (int p = 0; p < parts; p++)
                        four_values(w, codes, bits, &table, chunk, 4 * h + i, v + p, four[p]);
                    for (int j = 0; j < 4; j++)
                        for (int m = 0; m < rows; m++) {
                            vf one = vf_set(from[m][16 * h + 4 * i + j]);
                            for (int p = 0; p < parts; p++)
                                sum[p][m] = vf_fma(four[p][j], one, sum[p][m]);
                        }
                }
                const float *scale = NULL, *offset = NULL;
                if (w->head_bytes && !w->late) {
                    scale = r.values.scale[value_at(&r, h)];
                    if (x->sums) offset = r.values.offset[value_at(&r, h)];
                }
                add_block(scale, offset, v, parts, rows, sums, halves ? h : 2, sum, to);
            }
        for (int m = 0; m < rows; m++) {
            from[m] += CHUNK;
            if (x->sums) sums[m] += 3;
        }
    }
}

#define FEW_CASE(width)                                                                         \
    if (rows <= width) {                                                                        \
        direct(w, codes, bits, halves, tile, x, rows, width, y);                                \
        return;                                                                                 \
    }

INLINE void few(const weight *w, int codes, int bits, int halves, int tile, const float_rows *x,
                int rows, float y[][TILE]) {
    FEW_CASE(1)
    FEW_CASE(2)
    FEW_CASE(4)
    FEW_CASE(8)
}

#define FEW(name, codes, bits)                                                                  \
    static void name(const weight *w, int tile, const float_rows *x, int rows,                  \
                     float y[][TILE]) {                                                         \
        if (w->halves) few(w, codes, bits, 1, tile, x, rows, y);                                \
        else few(w, codes, bits, 0, tile, x, rows, y);                                          \
    }
#define FEW_DENSE(name, codes, bits)                                                            \
    static void name(const weight *w, int tile, const float_rows *x, int rows,                  \
                     float y[][TILE]) {                                                         \
        few(w, codes, bits, 0, tile, x, rows, y);                                               \
    }
FEW(few_2, W_BITS2, 2)
FEW(few_3, W_BITS3, 3)
FEW(few_4, W_BITS4, 4)
FEW(few_5, W_BITS5, 5)
FEW(few_6, W_BITS6, 6)
FEW(few_8, W_BITS8, 8)
FEW(few_table, W_TABLE, 4)
FEW(few_e4m3, W_E4M3, 8)
FEW_DENSE(few_f32, W_F32, 32)
FEW_DENSE(few_f16, W_F16, 16)
FEW_DENSE(few_bf16, W_BF16, 16)

typedef void few_rows(const weight *, int, const float_rows *, int, float (*)[TILE]);
static few_rows *const FEW_OF[] = {
    [W_BITS2] = few_2,     [W_BITS3] = few_3,     [W_BITS4] = few_4, [W_BITS5] = few_5,
    [W_BITS6] = few_6,     [W_BITS8] = few_8,     [W_E4M3] = few_e4m3,
    [W_TABLE] = few_table,
    [W_F32] = few_f32,     [W_F16] = few_f16,     [W_BF16] = few_bf16};

/* Unpacked codes and values of 128 columns of a tile, which stay in the first cache. */
enum { PANEL = 4 };
typedef struct {
    float codes[PANEL * CHUNK][TILE];
    float scale[PANEL][2][TILE], offset[PANEL][2][TILE];
} panel;

static void unpack_panel(reader *r, int count, panel *to) {
    for (int c = 0; c < count; c++) {
        hb_unpack_chunk(r, to->codes + c * CHUNK);
        for (int h = 0; h <= r->w->halves && r->w->head_bytes; h++) {
            memcpy(to->scale[c][h], r->values.scale[value_at(r, h)], LINE);
            if (sums_needed(r->w)) memcpy(to->offset[c][h], r->values.offset[value_at(r, h)], LINE);
        }
    }
}

/* y [MICRO_ROWS][TILE] += a panel of `count` chunks from `first` by rows of x. */
INLINE void micro(const weight *w, int halves, const panel *from, int first, int count,
                  const float_rows *x, int row, int last, float y[][TILE]) {
    float *to[FEW_ROWS];
    const float *rows[FEW_ROWS], *sums[FEW_ROWS] = {0};
    for (int m = 0; m < MICRO_ROWS; m++) {
        int own = row + m < last ? row + m : last - 1; /* those beyond are thrown away */
        to[m] = y[m];
        rows[m] = x->x + (size_t)own * x->stride + first * CHUNK;
        if (x->sums) sums[m] = x->sums + ((size_t)own * x->chunks + first) * 3;
    }
    for (int c = 0; c < count; c++) {
        for (int v = 0; v < PARTS; v += MICRO_PARTS)
#pragma GCC unroll 2
            for (int h = 0; h <= halves; h++) {
                vf sum[PARTS][FEW_ROWS];
                int begin = 16 * h, stop = halves ? begin + 16 : CHUNK;
                for (int p = 0; p < MICRO_PARTS; p++)
                    for (int m = 0; m < MICRO_ROWS; m++) sum[p][m] = (vf){0};
#pragma GCC unroll 4
                for (int k = begin; k < stop; k++) {
                    vf code[PARTS];
                    for (int p = 0; p < MICRO_PARTS; p++)
                        code[p] = vf_load(from->codes[c * CHUNK + k] + (v + p) * LANES);
                    for (int m = 0; m < MICRO_ROWS; m++) {
                        vf one = vf_set(rows[m][c * CHUNK + k]);
                        for (int p = 0; p < MICRO_PARTS; p++)
                            sum[p][m] = vf_fma(code[p], one, sum[p][m]);
                    }
                }
                add_block(w->head_bytes && !w->late ? from->scale[c][h] : NULL,
                          x->sums ? from->offset[c][h] : NULL, v, MICRO_PARTS, MICRO_ROWS, sums,
                          halves ? h : 2, sum, to);
            }
        for (int m = 0; m < MICRO_ROWS; m++)
            if (x->sums) sums[m] += 3;
    }
}

/* Tile by tile for a block of rows; y has room for the rows that micro() throws away. */
static void many(const weight *w, int tile, const float_rows *x, int rows, panel *room,
                 float y[][TILE]) {
    reader r;
    read_tile(w, tile, PANEL * (int)w->chunk_bytes, &r);
    memset(y, 0, (size_t)(rows + MICRO_ROWS) * sizeof *y);
    for (int first = 0; first < w->chunks; first += PANEL) {
        int count = w->chunks - first < PANEL ? w->chunks - first : PANEL;
        unpack_panel(&r, count, room);
        for (int m = 0; m < rows; m += MICRO_ROWS) {
            if (w->halves) micro(w, 1, room, first, count, x, m, rows, y + m);
            else micro(w, 0, room, first, count, x, m, rows, y + m);
        }
    }
}

/* Rows of x with zeros up to a whole chunk, where K is none. */
static void pad_columns(const struct linear *op, int row, int rows, float *to, size_t stride) {
    for (int m = 0; m < rows; m++, to += stride) {
        memcpy(to, op->x + (size_t)(row + m) * op->x_stride, (size_t)op->tiled.k * sizeof(float));
        memset(to + op->tiled.k, 0, (stride - (size_t)op->tiled.k) * sizeof(float));
    }
}

static void sum_blocks(const float_rows *x, int rows, float *sums) {
    for (int m = 0; m < rows; m++)
        for (int c = 0; c < x->chunks; c++, sums += 3) {
            const float *from = x->x + (size_t)m * x->stride + c * CHUNK;
            for (int h = 0; h < 2; h++) {
                vf part = vf_load(from + 16 * h);
                for (int j = LANES; j < 16; j += LANES) part += vf_load(from + 16 * h + j);
                sums[h] = vf_sum(part);
            }
            sums[2] = sums[0] + sums[1];
        }
}

void hb_linear(const struct linear *op, int tid, int threads) {
    enum { BLOCK = 64 };
    weight w;
    read_weight(&op->tiled, &w);
    int total = op->tokens, begin, end;
    int most = total <= FEW_ROWS ? FEW_ROWS : BLOCK, blocks = (total + most - 1) / most;
    w.fetch = total <= FEW_ROWS ? op->fetch : FETCH_KEEP;
    size_t ldo = (size_t)op->out_stride, width = (size_t)w.chunks * CHUNK;
    int pads = w.k % CHUNK, sums = sums_needed(&w);
    hb_share(w.tiles * blocks, tid, threads, &begin, &end);
    if (begin == end) return;
    size_t results = (BLOCK + FEW_ROWS) * TILE, rows_of = (size_t)most * (width + 3 * (size_t)w.chunks);
    float *scratch = hb_scratch(results + sizeof(panel) / 4 + rows_of);
    float(*y)[TILE] = (float(*)[TILE])scratch;
    panel *room = (panel *)(scratch + results);
    float *padded = scratch + results + sizeof(panel) / 4, *added = padded + (size_t)most * width;
    float_rows x = {0};
    for (int unit = begin; unit < end; unit++) {
        int tile = unit % w.tiles, row = unit / w.tiles * most;
        int rows = total - row < most ? total - row : most;
        if (unit == begin || tile == 0) { /* other rows */
            x = (float_rows){op->x + (size_t)row * op->x_stride, NULL, (size_t)op->x_stride, w.chunks};
            if (pads) {
                pad_columns(op, row, rows, padded, width);
                x.x = padded, x.stride = width;
            }
            if (sums) {
                sum_blocks(&x, rows, added);
                x.sums = added;
            }
            w.row_scales = op->factors ? op->factors + row : NULL;
        }
        if (total <= FEW_ROWS) FEW_OF[w.codes](&w, tile, &x, rows, y);
        else many(&w, tile, &x, rows, room, y);
        if (w.late) scale_late(&w, tile, y, rows);
        finish(&w, tile, rows, y, op->out + (size_t)row * ldo, ldo, op->add);
    }
}

/* See halfbyte.h. Only with few rows memory is what a product waits for. */
int hb_reads_weight(const hb_op *op, int tid, int threads, const char **data, size_t *bytes) {
    int rounded = op->kind == OP_LINEAR_ROUNDED, begin, end;
    if (!rounded && op->kind != OP_LINEAR) return 0;
    if ((rounded ? op->linear_rounded.tokens : op->linear.tokens) > FEW_ROWS) return 0;
    weight w;
    read_weight(rounded ? &op->linear_rounded.tiled : &op->linear.tiled, &w);
    hb_share(w.tiles, tid, threads, &begin, &end);
    *data = w.data + (size_t)begin * w.tile_bytes;
    *bytes = (size_t)(end - begin) * w.tile_bytes;
    return 1;
}

void hb_embed(const struct embed *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    const int32_t *order = op->order;
    float(*codes)[TILE] = (float(*)[TILE])hb_scratch(CHUNK * TILE);
    for (int t = tid; t < op->tokens; t += threads) {
        int lane = (int)(op->ids[t] % TILE);
        float *out = op->out + (size_t)t * op->out_stride;
        reader r;
        read_tile(&w, (int)(op->ids[t] / TILE), 0, &r);
        for (int c = 0; c < w.chunks; c++) {
            hb_unpack_chunk(&r, codes);
            for (int j = 0; j < CHUNK && c * CHUNK + j < w.k; j++) {
                int k = c * CHUNK + j, at = value_at(&r, w.halves ? j / 16 : 0);
                float value = codes[j][lane];
                if (w.head_bytes) value *= r.values.scale[at][lane];
                if (sums_needed(&w)) value += r.values.offset[at][lane];
                out[order ? order[k] : k] = value * op->factor;
            }
        }
    }
}
