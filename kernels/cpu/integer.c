/* y [T, N] = x [T, K] W^T with x rounded to int8, straight from packed codes for few rows, from an
 * unpacked panel for many.
 *
 * Where each block of 32 columns of x has a scale d, for each block b of 16 or 32 columns, in order:
 *   y = fma(float(sum of (code - zero) * q), scale_b * d, y), and with offsets
 *   y = fma(offset_b, d * float(sum of q), y)
 * where x stands for d * q; entries of a table are rounded to bytes (dot.h). Where a whole row of x
 * shares a scale, d is 1 above, b is a piece (reference.py, token_linear) of up to four chunks, and
 * the row's scale comes last. Both ways do just this, so a row has the same bits in both.
 */
#include "amx.h"
#include "dot.h"
#include "product.h"
#include "rounded.h"

/* Rounded rows as a product reads them; those of a call begin at the pointers. There is room for
 * FEW_ROWS rows beyond the last, whose results are thrown away. */
typedef struct {
    const int8_t *codes;
    const block_values *values;
    size_t chunks;
} rounded;

INLINE rounded rows_from(const rounded *x, int row, int chunk) {
    size_t at = (size_t)row * x->chunks + (size_t)chunk;
    return (rounded){x->codes + at * CHUNK, x->values + at, x->chunks};
}

/* The values of a block for all rows of a tile. `zero` and `offset` may be NULL. */
typedef struct {
    const float *scale, *offset;
    const int32_t *zero;
} block_factors;

/* Sums of products over a block of `count` quads from `first`, for `parts` parts of a tile from
 * `v` and `rows` rows. With `codes` < 0 the chunk is a panel's. */
INLINE void block_sums(int codes, int bits, int negative, const byte_table *table,
                       const char *chunk, int first, int count, int v, int parts,
                       const rounded *x, int rows, vi sum[][FEW_ROWS]) {
    const int8_t *from = x->codes + 4 * first;
    size_t stride = x->chunks * CHUNK;
#if defined(DOT_PAIRS)
    int most = most_pairs(bits, negative), runs = count / most ? count / most : 1;
    if (most > count) most = count;
    for (int r = 0; r < runs; r++) {
        vp run[PARTS][FEW_ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < most; i++) {
            int q = r * most + i;
            vu w[PARTS];
            for (int p = 0; p < parts; p++)
                w[p] = codes < 0 ? line_of(chunk + (first + q) * LINE, v + p)
                                 : shifted_quad(codes, bits, table, chunk, first + q, v + p);
            for (int m = 0; m < rows; m++) {
                vu four = word_of(from + (size_t)m * stride + 4 * q);
                for (int p = 0; p < parts; p++) {
                    vp pairs = dot_pairs(negative, w[p], four);
                    run[p][m] = i ? run[p][m] + pairs : pairs;
                }
            }
        }
        for (int p = 0; p < parts; p++)
            for (int m = 0; m < rows; m++) {
                vi wide = widen_pairs(run[p][m]);
                sum[p][m] = r ? sum[p][m] + wide : wide;
            }
    }
#else
    (void)negative;
    /* Panels hold joined quads. */
    const int joined = codes < 0 ? JOINED : joined_quads(rows);
    for (int p = 0; p < parts; p++)
        for (int m = 0; m < rows; m++) sum[p][m] = (vi){0};
#pragma GCC unroll 8
    for (int q = 0; q < count; q += joined) {
        vu w[PARTS][JOINED];
        for (int p = 0; p < parts; p++) {
            for (int i = 0; i < joined; i++)
                w[p][i] = codes < 0 ? line_of(chunk + (first + q + i) * LINE, v + p)
                                    : shifted_quad(codes, bits, table, chunk, first + q + i, v + p);
            if (codes >= 0) join_quads(joined, w[p]);
        }
        for (int m = 0; m < rows; m += joined) {
            vu words = words_of(joined, from + (size_t)m * stride + 4 * q, stride);
            for (int p = 0; p < parts; p++)
                for (int i = 0; i < joined; i++)
                    sum[p][m + i] = dot_joined(joined, sum[p][m + i], w[p][i], words);
        }
    }
    for (int p = 0; p < parts; p++)
        for (int m = 0; m < rows; m += joined) part_rows(joined, &sum[p][m]);
#endif
}

/* Running sums of some parts of a tile for some rows, in registers where there are enough. */
typedef vf running[PARTS][FEW_ROWS];

INLINE void load_running(float y[][TILE], int v, int parts, int rows, running to) {
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < parts; p++) to[p][m] = vf_load(y[m] + (v + p) * LANES);
}

INLINE void store_running(running from, int v, int parts, int rows, float y[][TILE]) {
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < parts; p++) vf_store(y[m] + (v + p) * LANES, from[p][m]);
}

/* Chunks of a piece; a constant where there is one, so that nothing is left of all this then. */
INLINE int piece_of(const weight *w, int joins) { return joins ? w->piece : 1; }

/* Whether chunk c is the first of a piece, or the last; a panel begins with a piece. */
INLINE int begins_piece(int piece, int c) { return !(c & (piece - 1)); }
INLINE int ends_piece(int piece, int c, int count) {
    return begins_piece(piece, c + 1) || c + 1 == count;
}

/* Chunks of the piece that ends with chunk c. */
INLINE int piece_chunks(int piece, int c) { return (c & (piece - 1)) + 1; }

/* Sums of chunks that make a piece: those of the chunks before are added, and kept but for the last. */
INLINE void join_chunks(int first, int last, int v, int parts, int rows, int32_t kept[][TILE],
                        vi sum[][FEW_ROWS]) {
    for (int m = 0; m < rows; m++)
        for (int p = 0; p < parts; p++) {
            vi before;
            int32_t *at = kept[m] + (v + p) * LANES;
            memcpy(&before, at, sizeof before);
            if (!first) sum[p][m] += before;
            if (!last) memcpy(at, &sum[p][m], sizeof before);
        }
}

/* Sum of the codes of a row of x: of half h of the chunk at hand, or (2) of the piece that it ends. */
INLINE int32_t sum_of_codes(const block_values *own, int h, int chunks) {
    if (h != 2) return own->half[h];
    int32_t total = own->sum;
    for (int i = 1; i < chunks; i++) total += own[-i].sum;
    return total;
}

/* y += the sums of a block, h being the half of the chunk or 2 for all of it, and of the chunks before
 * it that are of its piece. */
INLINE void add_block(const block_factors *f, int h, int chunks, int v, int parts, int rows,
                      const rounded *x, vi sum[][FEW_ROWS], running y) {
    const block_values *values = x->values;
    /* Only now: AVX2 has no registers for sums that begin with this. */
    if (f->zero)
        for (int m = 0; m < rows; m++) {
            int32_t total = sum_of_codes(values + (size_t)m * x->chunks, h, chunks);
            for (int p = 0; p < parts; p++) {
                vi zero;
                memcpy(&zero, f->zero + (v + p) * LANES, sizeof zero);
                sum[p][m] += zero * total;
            }
        }
    for (int m = 0; m < rows; m++) {
        vf scale = vf_set(values[(size_t)m * x->chunks].scale);
        for (int p = 0; p < parts; p++) {
            vf factor = vf_load(f->scale + (v + p) * LANES) * scale;
            y[p][m] = vf_fma(__builtin_convertvector(sum[p][m], vf), factor, y[p][m]);
        }
    }
    if (f->offset)
        for (int m = 0; m < rows; m++) {
            const block_values *own = values + (size_t)m * x->chunks;
            vf total = vf_set(chunks > 1 ? (float)sum_of_codes(own, h, chunks)
                              : h == 2   ? own->scaled_sum
                                         : own->scaled_half[h]);
            for (int p = 0; p < parts; p++)
                y[p][m] = vf_fma(vf_load(f->offset + (v + p) * LANES), total, y[p][m]);
        }
}

/* Zero points that are the same everywhere, where codes have a center or are shifted. */
static inline void center_zeros(reader *r) {
    int center = r->w->center + byte_shift(r->w->codes);
    r->shift = byte_shift(r->w->codes);
    r->zeros = has_zeros(r->w) || center;
    for (int i = 0; i < TILE; i++) r->values.zero[0][i] = -center;
}

/* The values of the chunk that was read last. */
INLINE block_factors factors_at(const reader *r, int h) {
    int at = value_at(r, h);
    return (block_factors){r->values.scale[at], has_offsets(r->w) ? r->values.offset[at] : NULL,
                           r->zeros ? r->values.zero[has_zeros(r->w) ? at : 0] : NULL};
}

/* y [rows][TILE] of a tile straight from its codes. `joins`: a piece may have several chunks. */
INLINE void direct(const weight *w, int codes, int bits, int halves, int joins, int tile,
                   const rounded *rows_x, int rows, float y[][TILE]) {
    /* As many parts of a tile as leave registers for their sums share each load of x. */
    const int most = MICRO_ROWS * MICRO_PARTS / rows, parts = most > PARTS ? PARTS : most ? most : 1;
    byte_table table = shifted_table(w);
    rounded x = *rows_x;
    reader r;
    read_tile(w, tile, w->fetch == FETCH_SECOND ? 2 * AHEAD : AHEAD, &r);
    center_zeros(&r);
    memset(y, 0, (size_t)rows * sizeof *y);
    const int piece = piece_of(w, joins);
    int32_t kept[FEW_ROWS][TILE];
    for (int c = 0; c < w->chunks; c++, x.codes += CHUNK, x.values++) {
        int first = begins_piece(piece, c), last = ends_piece(piece, c, w->chunks);
        const char *chunk = next_chunk(&r, 1, codes, bits);
#pragma GCC unroll 2
        for (int h = 0; h <= halves; h++) {
            block_factors f = factors_at(&r, h);
            for (int v = 0; v < PARTS; v += parts) {
                vi sum[PARTS][FEW_ROWS];
                running now;
                block_sums(codes, bits, is_signed(codes), &table, chunk, 4 * h, halves ? 4 : 8, v,
                           parts, &x, rows, sum);
                if (joins) join_chunks(first, last, v, parts, rows, kept, sum);
                if (!last) continue;
                load_running(y, v, parts, rows, now);
                add_block(&f, halves ? h : 2, piece_chunks(piece, c), v, parts, rows, &x, sum, now);
                store_running(now, v, parts, rows, y);
            }
        }
    }
}

#define FEW_CASE(width)                                                                         \
    if (rows <= width) {                                                                        \
        direct(w, codes, bits, halves, joins, tile, x, width, y);                               \
        return;                                                                                 \
    }

INLINE void few(const weight *w, int codes, int bits, int halves, int joins, int tile,
                const rounded *x, int rows, float y[][TILE]) {
    FEW_CASE(1)
    FEW_CASE(2)
    FEW_CASE(4)
    FEW_CASE(8)
}

#define FEW(name, codes, bits)                                                                  \
    static void name(const weight *w, int tile, const rounded *x, int rows, float y[][TILE]) {  \
        if (w->halves) few(w, codes, bits, 1, 0, tile, x, rows, y);                             \
        else if (w->piece > 1) few(w, codes, bits, 0, 1, tile, x, rows, y);                     \
        else few(w, codes, bits, 0, 0, tile, x, rows, y);                                       \
    }
FEW(few_2, W_BITS2, 2)
FEW(few_3, W_BITS3, 3)
FEW(few_4, W_BITS4, 4)
FEW(few_5, W_BITS5, 5)
FEW(few_6, W_BITS6, 6)
FEW(few_8, W_BITS8, 8)
FEW(few_table, W_TABLE, 4)

typedef void few_rows(const weight *, int, const rounded *, int, float (*)[TILE]);
static few_rows *const FEW_OF[] = {[W_BITS2] = few_2, [W_BITS3] = few_3, [W_BITS4] = few_4,
                                   [W_BITS5] = few_5, [W_BITS6] = few_6, [W_BITS8] = few_8,
                                   [W_TABLE] = few_table};

/* Unpacked codes, in joined quads, and values of 512 columns of a tile, which stay in the first
 * cache. */
enum { PANEL = 16, MOST_PIECE = 4 }; /* a panel is whole pieces */
typedef struct {
    uint8_t codes[PANEL][QUADS * LINE];
    float scale[PANEL][2][TILE], offset[PANEL][2][TILE];
    int32_t zero[PANEL][2][TILE];
} panel;

INLINE void unpack(reader *r, int codes, int bits, const byte_table *table, int count, panel *to) {
    const weight *w = r->w;
    for (int c = 0; c < count; c++) {
        const char *chunk = next_chunk(r, 1, codes, bits);
#pragma GCC unroll 8
        for (int q = 0; q < QUADS; q += JOINED)
            for (int v = 0; v < PARTS; v++) {
                vu x[JOINED];
                for (int i = 0; i < JOINED; i++)
                    x[i] = shifted_quad(codes, bits, table, chunk, q + i, v);
                join_quads(JOINED, x);
                for (int i = 0; i < JOINED; i++)
                    memcpy(to->codes[c] + (q + i) * LINE + v * sizeof *x, &x[i], sizeof *x);
            }
        for (int h = 0; h <= w->halves; h++) {
            int at = value_at(r, h);
            memcpy(to->scale[c][h], r->values.scale[at], LINE);
            if (has_offsets(w)) memcpy(to->offset[c][h], r->values.offset[at], LINE);
            if (r->zeros) memcpy(to->zero[c][h], r->values.zero[has_zeros(w) ? at : 0], LINE);
        }
    }
}

static void unpack_any(reader *r, const byte_table *table, int count, panel *to) {
    switch (r->w->codes) {
        case W_BITS2: unpack(r, W_BITS2, 2, table, count, to); break;
        case W_BITS3: unpack(r, W_BITS3, 3, table, count, to); break;
        case W_BITS4: unpack(r, W_BITS4, 4, table, count, to); break;
        case W_BITS5: unpack(r, W_BITS5, 5, table, count, to); break;
        case W_BITS6: unpack(r, W_BITS6, 6, table, count, to); break;
        case W_BITS8: unpack(r, W_BITS8, 8, table, count, to); break;
        default: unpack(r, W_TABLE, 4, table, count, to);
    }
}

/* y [MICRO_ROWS][TILE] += a panel of `count` chunks by as many of x. */
INLINE void micro(const weight *w, int bits, int negative, int halves, int joins, int zeros,
                  const panel *from, int count, const rounded *rows_x, float y[][TILE]) {
    const int piece = piece_of(w, joins);
    int offsets = has_offsets(w);
    for (int v = 0; v < PARTS; v += MICRO_PARTS) {
        rounded x = *rows_x;
        running now;
        int32_t kept[MICRO_ROWS][TILE];
        load_running(y, v, MICRO_PARTS, MICRO_ROWS, now);
        for (int c = 0; c < count; c++, x.codes += CHUNK, x.values++) {
            int first = begins_piece(piece, c), last = ends_piece(piece, c, count);
#pragma GCC unroll 2
            for (int h = 0; h <= halves; h++) {
                vi sum[PARTS][FEW_ROWS];
                block_factors f = {from->scale[c][h], offsets ? from->offset[c][h] : NULL,
                                   zeros ? from->zero[c][h] : NULL};
                block_sums(-1, bits, negative, NULL, (const char *)from->codes[c], 4 * h,
                           halves ? 4 : 8, v, MICRO_PARTS, &x, MICRO_ROWS, sum);
                if (joins) join_chunks(first, last, v, MICRO_PARTS, MICRO_ROWS, kept, sum);
                if (!last) continue;
                add_block(&f, halves ? h : 2, piece_chunks(piece, c), v, MICRO_PARTS, MICRO_ROWS, &x,
                          sum, now);
            }
        }
        store_running(now, v, MICRO_PARTS, MICRO_ROWS, y);
    }
}

#define MICRO(name, bits, negative, halves)                                                     \
    static void name(const weight *w, int zeros, const panel *from, int count,                  \
                     const rounded *x, float y[][TILE]) {                                       \
        if (!halves && w->piece > 1)                                                            \
            micro(w, bits, negative, halves, 1, zeros, from, count, x, y);                      \
        else micro(w, bits, negative, halves, 0, zeros, from, count, x, y);                     \
    }
MICRO(micro_4, 4, 0, 0)
MICRO(micro_4_halves, 4, 0, 1)
MICRO(micro_8, 8, 0, 0)
MICRO(micro_8_halves, 8, 0, 1)
#if defined(DOT_PAIRS)
/* How often sums of 16 bits are widened depends on the codes. */
MICRO(micro_5, 5, 0, 0)
MICRO(micro_5_halves, 5, 0, 1)
MICRO(micro_6, 6, 0, 0)
MICRO(micro_6_halves, 6, 0, 1)
MICRO(micro_signed, 8, 1, 0)
MICRO(micro_signed_halves, 8, 1, 1)
#endif

typedef void micro_rows(const weight *, int, const panel *, int, const rounded *, float (*)[TILE]);

static micro_rows *micro_of(const weight *w) {
#if defined(DOT_PAIRS)
    if (is_signed(w->codes)) return w->halves ? micro_signed_halves : micro_signed;
    if (w->bits == 5) return w->halves ? micro_5_halves : micro_5;
    if (w->bits == 6) return w->halves ? micro_6_halves : micro_6;
#endif
    if (w->bits == 8) return w->halves ? micro_8_halves : micro_8;
    return w->halves ? micro_4_halves : micro_4;
}

#if defined(HAS_AMX) && defined(DOT_UNSIGNED)
enum { AMX_ROWS = 16, ROWS_STEP = 48 /* whole times both numbers of rows */ };

/* Whether products of `rows` rows are to use tiles, which are set up then: 0 and 1 have sums of the
 * two parts of AMX_ROWS rows, 2 a block of x, 3 and 4 one of each part. */
static inline int begin_tiles(const weight *w, int rows) {
    if (rows < AMX_ROWS || !hb_has_amx()) return 0;
    uint8_t words = w->halves ? 4 : 8;
    uint16_t bytes = (uint16_t)(4 * words);
    amx_begin((uint8_t[8]){AMX_ROWS, AMX_ROWS, AMX_ROWS, words, words},
              (uint16_t[8]){64, 64, bytes, 64, 64});
    return 1;
}

static inline void end_tiles(void) { _tile_release(); }

/* What micro() does, for AMX_ROWS rows with the sums of a block from a product of tiles. */
static void add_tiles(const weight *w, int zeros, const panel *from, int count,
                      const rounded *rows_x, float y[][TILE]) {
    _Static_assert(PARTS == 2 && LINE == 128 && AMX_ROWS % FEW_ROWS == 0, "shapes of tiles");
    int32_t sums[PARTS][AMX_ROWS][LANES] __attribute__((aligned(64)));
    rounded x = *rows_x;
    size_t stride = x.chunks * CHUNK;
    int offsets = has_offsets(w);
    for (int c = 0; c < count; c++, x.codes += CHUNK, x.values++)
        for (int h = 0; h <= w->halves; h++) {
            const uint8_t *codes = from->codes[c] + 4 * h * LINE;
            block_factors f = {from->scale[c][h], offsets ? from->offset[c][h] : NULL,
                               zeros ? from->zero[c][h] : NULL};
            if (begins_piece(w->piece, c)) {
                _tile_zero(0);
                _tile_zero(1);
            }
            _tile_loadd(2, x.codes + 16 * h, stride);
            _tile_loadd(3, codes, LINE);
            _tile_loadd(4, codes + 64, LINE);
            _tile_dpbsud(0, 2, 3);
            _tile_dpbsud(1, 2, 4);
            if (!ends_piece(w->piece, c, count)) continue;
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            for (int m = 0; m < AMX_ROWS; m += FEW_ROWS) {
                rounded part = rows_from(&x, m, 0);
                vi sum[PARTS][FEW_ROWS];
                running now;
                for (int p = 0; p < PARTS; p++) memcpy(sum[p], sums[p][m], sizeof sum[p]);
                load_running(y + m, 0, PARTS, FEW_ROWS, now);
                add_block(&f, w->halves ? h : 2, piece_chunks(w->piece, c), 0, PARTS, FEW_ROWS,
                          &part, sum, now);
                store_running(now, 0, PARTS, FEW_ROWS, y + m);
            }
        }
}
#else
enum { AMX_ROWS = 16, ROWS_STEP = MICRO_ROWS };

static inline int begin_tiles(const weight *w, int rows) { return (void)w, (void)rows, 0; }

static inline void end_tiles(void) {}

static inline void add_tiles(const weight *w, int zeros, const panel *from, int count,
                             const rounded *rows_x, float y[][TILE]) {
    (void)w, (void)zeros, (void)from, (void)count, (void)rows_x, (void)y;
}
#endif

enum {
    DIRECT_ROWS = LANES == 16 ? 32 : 16, /* fewer are faster straight from the codes */
    BLOCK = 480,                         /* rows of a block, whole times each ROWS_STEP */
    BLOCK_LEAST = 96,                    /* below, unpacking once more would show */
    EQUAL_SHARES = 8                     /* tiles and blocks of a thread */
};

/* A tile for many rows; y has room for those that micro() throws away. */
static void many(const weight *w, int tile, const rounded *x, int rows, int tiles, panel *room,
                 float y[][TILE]) {
    byte_table table = shifted_table(w);
    micro_rows *add = micro_of(w);
    reader r;
    read_tile(w, tile, PANEL * (int)w->chunk_bytes, &r);
    center_zeros(&r);
    memset(y, 0, (size_t)(rows + MICRO_ROWS) * sizeof *y);
    /* Panels of about the same depth: a short one would load and store y for little. */
    int panels = (w->chunks + PANEL - 1) / PANEL, depth = (w->chunks + panels - 1) / panels;
    if (w->piece > 1) depth = (depth + MOST_PIECE - 1) / MOST_PIECE * MOST_PIECE;
    for (int first = 0; first < w->chunks; first += depth) {
        int count = w->chunks - first < depth ? w->chunks - first : depth;
        unpack_any(&r, &table, count, room);
        int m = 0;
        for (; tiles && m + AMX_ROWS <= rows; m += AMX_ROWS) {
            rounded part = rows_from(x, m, first);
            add_tiles(w, r.zeros, room, count, &part, y + m);
        }
        for (; m < rows; m += MICRO_ROWS) {
            rounded part = rows_from(x, m, first);
            add(w, r.zeros, room, count, &part, y + m);
        }
    }
}

/* Rows of a block of many(), about as many in each. Every block unpacks the weight once more, so
 * there are no more than BLOCK asks for, or than give all threads about equal shares. */
static inline int block_rows(const weight *w, int total, int threads) {
    int blocks = (total + BLOCK - 1) / BLOCK, rows = 0;
    do rows = ((total + blocks - 1) / blocks + ROWS_STEP - 1) / ROWS_STEP * ROWS_STEP;
    while (w->tiles * blocks++ < EQUAL_SHARES * threads && rows > BLOCK_LEAST);
    return rows;
}

void hb_linear_rounded(const struct linear_rounded *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    w.piece = op->piece;
    rounded all = {op->codes, (const block_values *)op->values, (size_t)w.chunks};
    int total = op->tokens, begin, end;
    if (!total) return; /* the LM head of a step that draws no token */
    int tiles = begin_tiles(&w, total);
    int direct = !tiles && total <= DIRECT_ROWS;
    w.fetch = total <= FEW_ROWS ? op->fetch : FETCH_KEEP;
    int most = direct ? total : block_rows(&w, total, threads);
    int blocks = (total + most - 1) / most;
    size_t ldo = (size_t)op->out_stride;
    hb_share(w.tiles * blocks, tid, threads, &begin, &end);
    float(*y)[TILE] = (float(*)[TILE])hb_scratch((BLOCK + FEW_ROWS) * TILE + sizeof(panel) / 4);
    panel *room = (panel *)(y + BLOCK + FEW_ROWS);
    for (int unit = begin; unit < end; unit++) {
        int tile = unit % w.tiles, row = unit / w.tiles * most;
        int rows = total - row < most ? total - row : most;
        rounded x = rows_from(&all, row, 0);
        if (!direct) many(&w, tile, &x, rows, tiles, room, y);
        for (int m = 0; direct && m < rows; m += FEW_ROWS) {
            rounded part = rows_from(&x, m, 0);
            FEW_OF[w.codes](&w, tile, &part, rows - m < FEW_ROWS ? rows - m : FEW_ROWS, y + m);
        }
        if (op->factors) scale_rows(op->factors + row, y, rows);
        finish(&w, tile, rows, y, op->out + (size_t)row * ldo, ldo, op->add);
    }
    if (tiles) end_tiles();
}
