/* Canonical codes, and words packed along K, to the tiles of weight.h. */
#include "tile.h"

/* 32 codes of b bits, a stream with the first code in the lowest bits, to bytes. `left` bytes of the
 * stream are there. */
INLINE void split_codes(int bits, const uint8_t *source, size_t left, uint8_t out[CHUNK]) {
    uint64_t mask = ((1u << bits) - 1) * 0x0101010101010101ull;
    for (int i = 0; i < CHUNK; i += 8, source += bits, out += 8) {
        uint64_t x = 0;
        if (left >= 8) memcpy(&x, source, 8);
        else memcpy(&x, source, left < (size_t)bits ? left : (size_t)bits);
        left -= left < (size_t)bits ? left : (size_t)bits;
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

INLINE void rows_of_codes(const weight *w, int bits, const uint8_t *source, size_t row_bytes, int rows,
                          char *tile) {
    size_t used = ((size_t)w->k * (size_t)bits + 7) / 8;
    for (int c = 0; c < w->chunks; c++) {
        uint8_t codes[TILE][CHUNK];
        if (rows < TILE) memset(codes, 0, sizeof codes);
        size_t at = (size_t)c * (size_t)(4 * bits);
        for (int r = 0; r < rows; r++)
            split_codes(bits, source + (size_t)r * row_bytes + at, used - at, codes[r]);
        if (w->k - c * CHUNK < CHUNK) /* bits of the last byte beyond K may be anything */
            for (int r = 0; r < rows; r++)
                memset(codes[r] + (w->k - c * CHUNK), 0, (size_t)((c + 1) * CHUNK - w->k));
        put_codes(w->bits, codes, chunk_at(w, tile, c));
    }
}

/* A tile of elements of one, two or four bytes from rows [rows, row_bytes]: [column][row]. */
static void rows_of_elements(const weight *w, const uint8_t *source, size_t row_bytes, int rows,
                             char *tile) {
    size_t size = (size_t)w->bits / 8;
    for (int c = 0; c < w->chunks; c++) {
        char *chunk = chunk_at(w, tile, c);
        int columns = w->k - c * CHUNK < CHUNK ? w->k - c * CHUNK : CHUNK;
        for (int r = 0; r < rows; r++) {
            const uint8_t *from = source + (size_t)r * row_bytes + (size_t)c * CHUNK * size;
            for (int j = 0; j < columns; j++)
                memcpy(chunk + ((size_t)j * TILE + (size_t)r) * size, from + (size_t)j * size, size);
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
        size_t first = (size_t)t * TILE * (size_t)groups, size = (size_t)number_bytes(w.number);
        size_t small = w.added == A_ZERO ? 1 : size;
        if (rows < TILE || w.k % w.span) memset(tile, 0, w.tile_bytes);
        if (w.values == V_NONE || w.codes == W_E4M3) {
            rows_of_elements(&w, source, row_bytes, rows, tile);
        } else {
            switch (op->bits) {
                case 2: rows_of_codes(&w, 2, source, row_bytes, rows, tile); break;
                case 3: rows_of_codes(&w, 3, source, row_bytes, rows, tile); break;
                case 4: rows_of_codes(&w, 4, source, row_bytes, rows, tile); break;
                case 5: rows_of_codes(&w, 5, source, row_bytes, rows, tile); break;
                case 6: rows_of_codes(&w, 6, source, row_bytes, rows, tile); break;
                case 7: rows_of_codes(&w, 7, source, row_bytes, rows, tile); break;
                default: rows_of_codes(&w, 8, source, row_bytes, rows, tile);
            }
        }
        if (w.values == V_NONE) continue;
        const char *added = op->added ? (const char *)op->added + first * small : NULL;
        put_groups(&w, (const char *)op->scales + first * size, added, rows, tile);
    }
}

/* The low or high four nibbles of each word as bytes: a quad of eight rows. */
INLINE v8 spread(v8 words, int high) {
    v8 x = high ? words >> 16 : words & 0xFFFF;
    x = (x | x << 8) & 0x00FF00FF;
    return (x | x << 4) & 0x0F0F0F0F;
}

void hb_pack_words(const struct pack_words *op, int tid, int threads) {
    enum { SIDE = 4 }; /* tiles filled together: whole lines and pages of the source are used */
    weight w;
    read_weight(&op->tiled, &w);
    int begin, end;
    size_t stride = (size_t)op->row_words, size = (size_t)number_bytes(w.number);
    size_t small = w.added == A_ZERO ? 1 : size;
    size_t groups = (size_t)group_count(&w);
    const uint32_t *source = op->source;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int first = begin; first < end; first += SIDE) {
        int stop = first + SIDE < end ? first + SIDE : end;
        for (int t = first; t < stop; t++) {
            char *tile = (char *)op->tiled.data + (size_t)t * w.tile_bytes;
            size_t at = (size_t)t * TILE * groups;
            int rows = rows_in(&w, t);
            if (rows < TILE || w.k % w.span) memset(tile, 0, w.tile_bytes);
            put_groups(&w, (const char *)op->scales + at * size,
                       op->added ? (const char *)op->added + at * small : NULL, rows, tile);
        }
        for (int c = 0; c < w.chunks; c++)
            for (int t = first; t < stop; t++) {
                char *chunk = chunk_at(&w, (char *)op->tiled.data + (size_t)t * w.tile_bytes, c);
                int rows = rows_in(&w, t);
                for (int g = 0; g < (rows + 7) / 8; g++) {
                    v8 quads[8];
                    for (int i = 0; i < 4; i++) {
                        v8 words = {0};
                        size_t left = (size_t)(rows - 8 * g < 8 ? rows - 8 * g : 8) * 4;
                        if (4 * c + i < w.k / 8)
                            memcpy(&words, source + (size_t)(4 * c + i) * stride + (size_t)(t * TILE + 8 * g),
                                   left);
                        quads[2 * i] = spread(words, 0);
                        quads[2 * i + 1] = spread(words, 1);
                    }
                    put_quads(4, quads, g, chunk);
                }
            }
    }
}
