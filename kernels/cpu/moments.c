/* Second moments, sums += x^T x, from inputs rounded to int8.
 *
 * MOMENT_TOKENS tokens at a time, a panel, share a scale for each column, so sums over a panel are
 * those of whole numbers, exact. In a column of a panel the squares of rounding errors sum to at
 * most MOMENT_TOKENS / (4 * 127^2) = 0.4 % of the column's, when one token has nearly all of those, and
 * to 0.005 % where inputs are normally distributed; what is summed is still a matrix times its transpose. Float
 * products take three times as long on processors that multiply bytes.
 *
 * Codes lie as [panel][block of columns][quad of tokens][column][4]: a vector has four tokens of
 * LANES columns, a word of it those of one.
 */
#include "dot.h"

#if defined(DOT_UNSIGNED) || defined(__ARM_FEATURE_DOTPROD)

/* A block of columns, and how many of them are multiplied at once by all of another block, so that
 * sums stay in registers. */
#if LANES == 16
enum { VECTORS = 3, AT_ONCE = 8 };
#elif LANES == 8
enum { VECTORS = 2, AT_ONCE = 4 };
#else
enum { VECTORS = 2, AT_ONCE = 8 };
#endif
enum { BLOCK = VECTORS * LANES, BLOCKS = MOMENT_COLUMNS / BLOCK };
_Static_assert(MOMENT_COLUMNS % BLOCK == 0 && BLOCK % AT_ONCE == 0, "whole blocks");

int hb_has_moments(void) { return 1; }

static int padded_columns(const struct moments *op) {
    return (op->k + MOMENT_COLUMNS - 1) / MOMENT_COLUMNS * MOMENT_COLUMNS;
}

static int rows_of_panel(const struct moments *op, int panel) {
    int left = op->tokens - panel * MOMENT_TOKENS;
    return left < MOMENT_TOKENS ? left : MOMENT_TOKENS;
}

static int8_t *block_of(const struct moments *op, int panel, int column) {
    size_t width = (size_t)padded_columns(op);
    return op->codes + (panel * width + (size_t)column) * MOMENT_TOKENS;
}

/* LANES columns of a row; those beyond the last are 0. */
INLINE vf load_columns(const float *row, int column, int k) {
    vf v = {0};
    if (column + LANES <= k) return vf_load(row + column);
    if (column < k) memcpy(&v, row + column, (size_t)(k - column) * sizeof(float));
    return v;
}

static void pack_panel(const struct moments *op, int panel) {
    int width = padded_columns(op), rows = rows_of_panel(op, panel);
    const float *x = op->x + (size_t)panel * MOMENT_TOKENS * (size_t)op->x_stride;
    float *scales = op->scales + (size_t)panel * width, *inverses = hb_scratch((size_t)width);
    int32_t *totals = op->totals + (size_t)panel * width;
    memset(inverses, 0, (size_t)width * sizeof(float));
    memset(totals, 0, (size_t)width * sizeof(int32_t));
    /* The largest magnitudes, as bits: so infinity and what is no number are the largest. */
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < op->k; c += LANES) {
            vi size = (vi)load_columns(x + (size_t)t * op->x_stride, c, op->k) & INT32_MAX;
            vi most = (vi)vf_load(inverses + c);
            vf_store(inverses + c, vf_pick(size > most, (vf)size, (vf)most));
        }
    for (int c = 0; c < width; c += LANES) {
        /* Squares of smaller numbers are nothing in float32. */
        vf most = vf_load(inverses + c);
        vi none = most < 1e-30f;
        vf_store(scales + c, (vf)((vi)(most / 127.0f) & ~none));
        vf_store(inverses + c, (vf)((vi)(127.0f / most) & ~none));
    }
    for (int q = 0; 4 * q < rows; q++)
        for (int c = 0; c < width; c += LANES) {
            vf inverse = vf_load(inverses + c);
            vi total;
            vu word = {0};
            memcpy(&total, totals + c, sizeof total);
            for (int j = 0; j < 4 && 4 * q + j < rows; j++) {
                const float *row = x + (size_t)(4 * q + j) * op->x_stride;
                const vf magic = vf_set(12582912.0f); /* adding it rounds */
                vi code = (vi)vf_fma(load_columns(row, c, op->k), inverse, magic) - (vi)magic;
                total += code;
                word |= ((vu)code & 255) << 8 * j;
            }
            memcpy(totals + c, &total, sizeof total);
            int8_t *to = block_of(op, panel, c / BLOCK * BLOCK) + (q * BLOCK + c % BLOCK) * 4;
            memcpy(to, &word, sizeof word);
        }
}

void hb_moments_pack(const struct moments_pack *op, int tid, int threads) {
    int begin, end;
    hb_share((op->moments.tokens + MOMENT_TOKENS - 1) / MOMENT_TOKENS, tid, threads, &begin, &end);
    for (int panel = begin; panel < end; panel++) pack_panel(&op->moments, panel);
}

/* sums [AT_ONCE][MOMENT_COLUMNS] += products of some columns `a` with a block `b`, of one panel. */
INLINE void add_products(const int8_t *a, const int8_t *b, int quads, const float *scale_a,
                         const float *scale_b, const int32_t *total_a, float *sums) {
    vi sum[AT_ONCE][VECTORS] = {{{0}}};
    for (int q = 0; q < quads; q++, a += 4 * BLOCK, b += 4 * BLOCK) {
        vu part[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            memcpy(&part[v], b + v * LANES * 4, sizeof part[v]);
#if defined(DOT_UNSIGNED)
            part[v] ^= 0x80808080u; /* 128 more, which `total_a` undoes */
#endif
        }
#pragma GCC unroll 8
        for (int i = 0; i < AT_ONCE; i++) {
            vu word = word_of(a + 4 * i);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sum[i][v] = dot_four(sum[i][v], part[v], word);
        }
    }
    (void)total_a;
#pragma GCC unroll 8
    for (int i = 0; i < AT_ONCE; i++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            float *to = sums + i * MOMENT_COLUMNS + v * LANES;
#if defined(DOT_UNSIGNED)
            sum[i][v] -= total_a[i] * 128;
#endif
            vf product = __builtin_convertvector(sum[i][v], vf) * scale_a[i];
            vf_store(to, vf_fma(product, vf_load(scale_b + v * LANES), vf_load(to)));
        }
}

/* A square of sums: columns from `row` on by columns from `column` on, not before `row`. */
static void add_square(const struct moments *op, int row, int column, float *sums) {
    int width = padded_columns(op), panels = (op->tokens + MOMENT_TOKENS - 1) / MOMENT_TOKENS;
    memset(sums, 0, (size_t)MOMENT_COLUMNS * MOMENT_COLUMNS * sizeof(float));
    for (int panel = 0; panel < panels; panel++) {
        int quads = (rows_of_panel(op, panel) + 3) / 4;
        const float *scales = op->scales + (size_t)panel * width;
        const int32_t *totals = op->totals + (size_t)panel * width;
        for (int i = 0; i < MOMENT_COLUMNS; i += AT_ONCE)
            for (int j = row == column ? i / BLOCK * BLOCK : 0; j < MOMENT_COLUMNS; j += BLOCK) {
                int from = row + i, to = column + j;
                const int8_t *a = block_of(op, panel, from / BLOCK * BLOCK) + from % BLOCK * 4;
                add_products(a, block_of(op, panel, to), quads, scales + from, scales + to,
                             totals + from, sums + i * MOMENT_COLUMNS + j);
            }
    }
    int rows = op->k - row < MOMENT_COLUMNS ? op->k - row : MOMENT_COLUMNS;
    int columns = op->k - column < MOMENT_COLUMNS ? op->k - column : MOMENT_COLUMNS;
    size_t k = (size_t)op->k;
    for (int i = 0; i < rows; i++)
        for (int j = row == column ? i : 0; j < columns; j++)
            op->sums[(row + i) * k + column + j] += sums[i * MOMENT_COLUMNS + j];
    for (int j = 0; j < columns; j++) /* its mirror image */
        for (int i = 0; i < (row == column ? j : rows); i++)
            op->sums[(column + j) * k + row + i] += sums[i * MOMENT_COLUMNS + j];
}

void hb_moments_add(const struct moments_add *op, int tid, int threads) {
    int squares = padded_columns(&op->moments) / MOMENT_COLUMNS, begin, end, unit = 0;
    float *sums = hb_scratch((size_t)MOMENT_COLUMNS * MOMENT_COLUMNS);
    hb_share(squares * (squares + 1) / 2, tid, threads, &begin, &end);
    for (int row = 0; row < squares; row++)
        for (int column = row; column < squares; column++, unit++)
            if (unit >= begin && unit < end)
                add_square(&op->moments, row * MOMENT_COLUMNS, column * MOMENT_COLUMNS, sums);
}

#else

int hb_has_moments(void) { return 0; }

void hb_moments_pack(const struct moments_pack *op, int tid, int threads) {
    (void)op, (void)tid, (void)threads;
    abort(); /* never asked for where hb_has_moments() is 0 */
}

void hb_moments_add(const struct moments_add *op, int tid, int threads) {
    (void)op, (void)tid, (void)threads;
    abort();
}

#endif
