/* Codes in int32 words, as GPTQ and AWQ store them, to the tiles of weight.h.
 *
 * Both lie [words along K][rows], so a load takes a word of eight rows: codes move in vectors from
 * words to quads and from there to planes, and nothing in between is written to memory.
 */
#include "tile.h"

#if defined(__clang__)
#define BYTES(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define BYTES(x, ...) __builtin_shuffle(x, (v32){__VA_ARGS__})
#endif

enum { SIDE = 8 }; /* tiles filled together: whole lines and pages of the source are used */

/* Where words are: those of row n begin at source[n], `stride` apart. */
typedef struct {
    const uint32_t *source;
    size_t stride;
    int count;            /* words of a row */
    const int32_t *order; /* column c of the weight is code order[c], or NULL */
} words;

/* Words number i of rows [row, row + rows), rows at most 8; 0 behind the last. */
INLINE v8 words_at(const words *s, int i, int row, int rows) {
    v8 x = {0};
    if (i >= s->count) return x;
    const uint32_t *from = s->source + (size_t)i * s->stride + row;
    if (rows == 8) return v8_load(from);
    memcpy(&x, from, (size_t)rows * 4);
    return x;
}

/* `width` bits of a row of words from bit `at` of `low` on; `high` are the next words. */
INLINE v8 field(v8 low, v8 high, int at, int width) {
    v8 x = low >> at;
    if (at + width > 32) x |= high << (32 - at);
    return width == 32 ? x : x & ((1u << width) - 1);
}

/* Four codes that follow each other in the lowest bits, to bytes. */
INLINE v8 spread(int bits, v8 x) {
    if (bits == 8) return x;
    const uint32_t two = (1u << (2 * bits)) - 1, one = (1u << bits) - 1;
    x = (x | x << (16 - 2 * bits)) & (two * 0x00010001u);
    return (x | x << (8 - bits)) & (one * 0x01010101u);
}

/* A chunk's quads of eight rows from words along K. */
INLINE void quads_along(int bits, const words *s, int chunk, int row, int rows, v8 quads[8]) {
    v8 from[9]; /* 32 codes are as many words as a code has bits; what is behind is not used */
#pragma GCC unroll 8
    for (int i = 0; i < bits; i++) from[i] = words_at(s, chunk * bits + i, row, rows);
    from[bits] = (v8){0};
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; q++) {
        int at = 4 * bits * q;
        quads[q] = spread(bits, field(from[at / 32], from[at / 32 + 1], at % 32, 4 * bits));
    }
}

/* The same for columns in another order, `columns` of them. */
INLINE void quads_ordered(int bits, const words *s, int chunk, int columns, int row, int rows,
                          v8 quads[8]) {
    memset(quads, 0, QUADS * sizeof *quads);
    for (int j = 0; j < columns; j++) {
        int at = s->order[chunk * CHUNK + j] * bits, i = at / 32;
        v8 low = words_at(s, i, row, rows), high = {0};
        if (at % 32 + bits > 32) high = words_at(s, i + 1, row, rows);
        quads[j / 4] |= field(low, high, at % 32, bits) << (8 * (j % 4));
    }
}

/* The same from words of eight rows each, one for a column: AWQ. Rows 0, 2, 4, 6, 1, 3, 5, 7 are in
 * the nibbles from the lowest on. */
INLINE void quads_across(const words *s, int chunk, int columns, int row, v8 quads[8]) {
    typedef uint8_t v32 __attribute__((vector_size(32)));
    const v8 down = {0, 0, 0, 0, 4, 4, 4, 4};
    const uint32_t *from = s->source + (size_t)(chunk * CHUNK) * s->stride + row / 8;
    for (int q = 0; q < QUADS; q++) {
        uint32_t word[4];
        for (int j = 0; j < 4; j++)
            word[j] = 4 * q + j < columns ? from[(size_t)(4 * q + j) * s->stride] : 0;
        v8 x = {word[0], word[1], word[2], word[3], word[0], word[1], word[2], word[3]};
        v32 nibbles = (v32)(x >> down & 0x0F0F0F0F);
        quads[q] = (v8)BYTES(nibbles, 0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30,
                             1, 5, 9, 13, 3, 7, 11, 15, 17, 21, 25, 29, 19, 23, 27, 31);
    }
}

/* Codes behind the last column are 0, whatever the last word has there. */
INLINE void clear_behind(int columns, v8 quads[8]) {
    for (int q = columns / 4; q < QUADS; q++) {
        int left = columns - 4 * q;
        quads[q] &= left > 0 ? (1u << (8 * left)) - 1 : 0;
    }
}

INLINE void fill_chunk(int bits, int across, const words *s, int chunk, int columns, int tile,
                       int rows, char *to) {
    for (int g = 0; 8 * g < rows; g++) {
        int row = tile * TILE + 8 * g, left = rows - 8 * g < 8 ? rows - 8 * g : 8;
        v8 quads[8];
        if (across) quads_across(s, chunk, columns, row, quads);
        else if (s->order) quads_ordered(bits, s, chunk, columns, row, left, quads);
        else quads_along(bits, s, chunk, row, left, quads);
        if (columns < CHUNK) clear_behind(columns, quads);
        put_quads(bits, quads, g, to);
    }
}

INLINE void fill(const weight *w, int bits, int across, const words *s, char *data, int first,
                 int stop) {
    for (int c = 0; c < w->chunks; c++) {
        int columns = w->k - c * CHUNK < CHUNK ? w->k - c * CHUNK : CHUNK;
        for (int t = first; t < stop; t++) {
            char *chunk = chunk_at(w, data + (size_t)t * w->tile_bytes, c);
            fill_chunk(bits, across, s, c, columns, t, rows_in(w, t), chunk);
        }
    }
}

void hb_pack_words(const struct pack_words *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    words s = {op->source, (size_t)op->row_words, (w.k * w.bits + 31) / 32, op->order};
    int begin, end;
    size_t size = (size_t)number_bytes(w.number), small = has_zeros(&w) ? 1 : size;
    size_t groups = (size_t)group_count(&w);
    char *data = (char *)op->tiled.data;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int first = begin; first < end; first += SIDE) {
        int stop = first + SIDE < end ? first + SIDE : end;
        for (int t = first; t < stop; t++) {
            size_t at = (size_t)t * TILE * groups;
            int rows = rows_in(&w, t);
            char *tile = data + (size_t)t * w.tile_bytes;
            clear_tile(&w, rows, tile);
            put_groups(&w, (const char *)op->scales + at * size,
                       op->added ? (const char *)op->added + at * small : NULL, rows, tile);
        }
        if (op->across) fill(&w, 4, 1, &s, data, first, stop);
        else if (w.bits == 2) fill(&w, 2, 0, &s, data, first, stop);
        else if (w.bits == 3) fill(&w, 3, 0, &s, data, first, stop);
        else if (w.bits == 4) fill(&w, 4, 0, &s, data, first, stop);
        else fill(&w, 8, 0, &s, data, first, stop);
    }
}
