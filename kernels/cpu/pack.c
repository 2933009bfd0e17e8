/* Canonical codes, or dense elements, in rows to the tiles of weight.h. */
#include "tile.h"

/* 32 codes of b bits, a stream with the first code in the lowest bits, to bytes. `left` bytes of the
 * stream are there. With `high_first` the first of two 4-bit codes is in the high bits of its byte. */
INLINE void split_codes(int bits, int high_first, const uint8_t *source, size_t left,
                        uint8_t out[CHUNK]) {
    uint64_t mask = ((1u << bits) - 1) * 0x0101010101010101ull;
    for (int i = 0; i < CHUNK; i += 8, source += bits, out += 8) {
        uint64_t x = 0;
        if (left >= 8) memcpy(&x, source, 8);
        else memcpy(&x, source, left < (size_t)bits ? left : (size_t)bits);
        left -= left < (size_t)bits ? left : (size_t)bits;
        if (high_first) x = (x & 0x0F0F0F0F0F0F0F0Full) << 4 | (x >> 4 & 0x0F0F0F0F0F0F0F0Full);
#if defined(__BMI2__)
        x = _pdep_u64(x, mask);
#else
        uint64_t y = 0;
        for (int j = 0; j < 8; j++) y |= (x >> (bits * j) & (mask & 255)) << (8 * j);
        x = y;
#endif
        memcpy(out, &x, 8);
    }
}

/* Rows of a stream. */
typedef struct {
    const uint8_t *source;
    size_t row_bytes;
    int rows, high_first;
    const int32_t *order; /* column c of the weight is code order[c], or NULL */
} stream;

INLINE void codes_of_row(const weight *w, int bits, const stream *s, int row, int chunk,
                         uint8_t out[CHUNK]) {
    size_t used = ((size_t)w->k * (size_t)bits + 7) / 8, at = (size_t)chunk * (size_t)(4 * bits);
    split_codes(bits, s->high_first, s->source + (size_t)row * s->row_bytes + at, used - at, out);
}

INLINE void rows_of_codes(const weight *w, int bits, const stream *s, char *tile) {
    size_t width = (size_t)w->chunks * CHUNK;
    /* Columns in another order come from whole rows of bytes. */
    uint8_t *whole = s->order ? (uint8_t *)hb_scratch(width * TILE / 4) : NULL;
    for (int r = 0; whole && r < s->rows; r++)
        for (int c = 0; c < w->chunks; c++)
            codes_of_row(w, bits, s, r, c, whole + (size_t)r * width + (size_t)c * CHUNK);
    for (int c = 0; c < w->chunks; c++) {
        uint8_t codes[TILE][CHUNK];
        int columns = w->k - c * CHUNK < CHUNK ? w->k - c * CHUNK : CHUNK;
        if (s->rows < TILE) memset(codes, 0, sizeof codes);
        for (int r = 0; r < s->rows; r++) {
            if (!whole) codes_of_row(w, bits, s, r, c, codes[r]);
            else
                for (int j = 0; j < columns; j++)
                    codes[r][j] = whole[(size_t)r * width + (size_t)s->order[c * CHUNK + j]];
            /* Bits of the last byte beyond K may be anything. */
            if (columns < CHUNK) memset(codes[r] + columns, 0, (size_t)(CHUNK - columns));
        }
        put_codes(w->bits, codes, chunk_at(w, tile, c));
    }
}

/* The lowest one, two or four bytes of eight words. */
INLINE void put_low(v8 x, size_t size, char *to) {
    typedef uint16_t v8_16 __attribute__((vector_size(16)));
    typedef uint8_t v8_8 __attribute__((vector_size(8)));
    if (size == 4) {
        v8_store(to, x);
    } else if (size == 2) {
        v8_16 y = __builtin_convertvector(x, v8_16);
        memcpy(to, &y, sizeof y);
    } else {
        v8_8 y = __builtin_convertvector(x, v8_8);
        memcpy(to, &y, sizeof y);
    }
}

/* A tile of elements of one, two or four bytes: [column][row]. */
INLINE void rows_of_elements(const weight *w, size_t size, const stream *s, char *tile) {
    const int word = (int)(4 / size); /* elements of a word */
    for (int c = 0; c < w->chunks; c++) {
        char *chunk = chunk_at(w, tile, c);
        int columns = w->k - c * CHUNK < CHUNK ? w->k - c * CHUNK : CHUNK;
        const uint8_t *from = s->source + (size_t)c * CHUNK * size;
        if (s->rows < TILE || columns < CHUNK) {
            for (int r = 0; r < s->rows; r++)
                for (int j = 0; j < columns; j++)
                    memcpy(chunk + ((size_t)j * TILE + (size_t)r) * size,
                           from + (size_t)r * s->row_bytes + (size_t)j * size, size);
            continue;
        }
        for (int g = 0; g < TILE / 8; g++)
            for (int at = 0; at < CHUNK; at += 8 * word) {
                v8 x[8];
                for (int i = 0; i < 8; i++)
                    x[i] = v8_load(from + (size_t)(8 * g + i) * s->row_bytes + (size_t)at * size);
                turn8(x);
                for (int i = 0; i < 8; i++)
                    for (int j = 0; j < word; j++) {
                        size_t column = (size_t)(at + i * word + j);
                        put_low(x[i] >> (8 * size * (size_t)j), size,
                                chunk + (column * TILE + (size_t)(8 * g)) * size);
                    }
            }
    }
}

void hb_pack_rows(const struct pack_rows *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    int begin, end, groups = group_count(&w);
    size_t row_bytes = (size_t)op->row_bytes;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        int rows = rows_in(&w, t);
        char *tile = (char *)op->tiled.data + (size_t)t * w.tile_bytes;
        const uint8_t *source = (const uint8_t *)op->source + (size_t)t * TILE * row_bytes;
        stream s = {source, row_bytes, rows, op->high_first, op->order};
        size_t first = (size_t)t * TILE * (size_t)groups, size = (size_t)number_bytes(w.number);
        size_t small = has_zeros(&w) ? 1 : size;
        clear_tile(&w, rows, tile);
        if (w.values == V_NONE || w.codes == W_E4M3) {
            if (w.bits == 32) rows_of_elements(&w, 4, &s, tile);
            else if (w.bits == 16) rows_of_elements(&w, 2, &s, tile);
            else rows_of_elements(&w, 1, &s, tile);
        } else {
            switch (op->bits) {
                case 2: rows_of_codes(&w, 2, &s, tile); break;
                case 3: rows_of_codes(&w, 3, &s, tile); break;
                case 4: rows_of_codes(&w, 4, &s, tile); break;
                case 5: rows_of_codes(&w, 5, &s, tile); break;
                case 6: rows_of_codes(&w, 6, &s, tile); break;
                case 7: rows_of_codes(&w, 7, &s, tile); break;
                default: rows_of_codes(&w, 8, &s, tile);
            }
        }
        if (w.values == V_NONE) continue;
        const char *added = op->added ? (const char *)op->added + first * small : NULL;
        put_groups(&w, (const char *)op->scales + first * size, added, rows, tile);
    }
}
