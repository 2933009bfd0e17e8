/* GGUF blocks, as they lie in the file, straight to the tiles of weight.h.
 *
 * One pass: the blocks of 32 rows are spread to codes of a byte, which stay in the first cache, and
 * from there to planes. Scales stay the file's own bytes. Source of the block layouts: the GGUF
 * format; loaders/gguf/blocks.py has their meaning.
 */
#include "tile.h"

static inline uint16_t load16(const uint8_t *p) {
    uint16_t x;
    memcpy(&x, p, 2);
    return x;
}

/* A half of one row to the line of halves at `to`. Returns whether it is infinite or NaN. */
static inline int put_half(const uint8_t *from, char *to, int row) {
    memcpy(to + 2 * row, from, 2);
    return (load16(from) & 0x7C00) == 0x7C00;
}

/* Words of one row to lines of words. */
static inline void put_words(const uint8_t *from, int words, char *to, int row) {
    for (int i = 0; i < words; i++) memcpy(to + i * LINE + 4 * row, from + 4 * i, 4);
}

enum { HALVES = 2 * TILE }; /* bytes of a line of halves */

/* `count` bytes: low nibbles to `out`, high ones `count` after. */
INLINE void split(const uint8_t *from, int count, uint8_t *out) {
    for (int i = 0; i < count; i++) {
        out[i] = from[i] & 15;
        out[count + i] = from[i] >> 4;
    }
}

/* Bit j of four bytes read as one number is bit 4 of code j. */
INLINE void add_fifth(const uint8_t *from, uint8_t *out) {
    uint32_t bits;
    memcpy(&bits, from, 4);
    for (int i = 0; i < 32; i++) out[i] |= (uint8_t)((bits >> i & 1) << 4);
}

INLINE int block_32(int form, const uint8_t *at, int row, char *head, uint8_t *out) {
    if (form == S_MXFP4) {
        head[row] = (char)*at;
        split(at + 1, 16, out);
        return *at > 252; /* NaN, or 6 times it is infinite */
    }
    int bad = put_half(at, head, row);
    at += 2;
    if (form == S_Q4_1 || form == S_Q5_1) {
        bad |= put_half(at, head + HALVES, row);
        at += 2;
    }
    if (form == S_Q8_0) {
        for (int i = 0; i < 32; i++) out[i] = at[i] ^ 0x80;
        return bad;
    }
    int five = form == S_Q5_0 || form == S_Q5_1;
    split(at + (five ? 4 : 0), 16, out);
    if (five) add_fifth(at, out);
    return bad;
}

/* 64 bytes of 2-bit codes: byte e of each 32 has elements e, e + 32, e + 64 and e + 96. */
INLINE void split_pairs(const uint8_t *from, uint8_t *out) {
    for (int half = 0; half < 2; half++, from += 32, out += 128)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < 32; e++) out[32 * j + e] = from[e] >> (2 * j) & 3;
}

static int block_q2_k(const uint8_t *at, int row, char *head, uint8_t *out) {
    int bad = put_half(at + 80, head, row) | put_half(at + 82, head + HALVES, row);
    put_words(at, 4, head + 2 * HALVES, row);
    split_pairs(at + 16, out);
    return bad;
}

static int block_q3_k(const uint8_t *at, int row, char *head, uint8_t *out) {
    put_words(at + 96, 3, head + HALVES, row);
    split_pairs(at + 32, out);
    for (int j = 0; j < 8; j++)
        for (int e = 0; e < 32; e++) out[32 * j + e] |= (uint8_t)((at[e] >> j & 1) << 2);
    return put_half(at + 108, head, row);
}

/* Q4_K, or Q5_K with its fifth bits. */
INLINE int block_q45_k(int five, const uint8_t *at, int row, char *head, uint8_t *out) {
    int bad = put_half(at, head, row) | put_half(at + 2, head + HALVES, row);
    put_words(at + 4, 3, head + 2 * HALVES, row);
    const uint8_t *qs = at + (five ? 48 : 16);
    for (int c = 0; c < 4; c++) split(qs + 32 * c, 32, out + 64 * c);
    for (int j = 0; five && j < 8; j++)
        for (int e = 0; e < 32; e++) out[32 * j + e] |= (uint8_t)((at[16 + e] >> j & 1) << 4);
    return bad;
}

static int block_q6_k(const uint8_t *at, int row, char *head, uint8_t *out) {
    const uint8_t *low = at, *high = at + 128;
    for (int c = 0; c < 2; c++, low += 64, high += 32, out += 128)
        for (int e = 0; e < 32; e++) {
            out[e] = (uint8_t)((low[e] & 15) | (high[e] & 3) << 4);
            out[e + 32] = (uint8_t)((low[e + 32] & 15) | (high[e] >> 2 & 3) << 4);
            out[e + 64] = (uint8_t)(low[e] >> 4 | (high[e] >> 4 & 3) << 4);
            out[e + 96] = (uint8_t)(low[e + 32] >> 4 | (high[e] >> 6) << 4);
        }
    put_words(at + 192, 4, head + HALVES, row);
    return put_half(at + 208, head, row);
}

static int block_iq4_xs(const uint8_t *at, int row, char *head, uint8_t *out) {
    memcpy(head + HALVES + 2 * row, at + 2, 2);
    put_words(at + 4, 1, head + 2 * HALVES, row);
    for (int c = 0; c < 8; c++) split(at + 8 + 16 * c, 16, out + 32 * c);
    return put_half(at, head, row);
}

/* One tile from `rows` rows. Returns whether a scale or minimum is not finite. */
INLINE int pack_tile(const weight *w, int form, int elements, int bytes, const uint8_t *source,
                     size_t row_bytes, int rows, char *tile) {
    uint8_t codes[256 / CHUNK][TILE][CHUNK];
    int bad = 0;
    clear_tile(w, rows, tile);
    if (rows < TILE) memset(codes, 0, sizeof codes);
    for (int s = 0; s < w->spans; s++) {
        char *head = head_at(w, tile, s);
        for (int row = 0; row < rows; row++) {
            const uint8_t *at = source + (size_t)row * row_bytes + (size_t)s * (size_t)bytes;
            uint8_t out[256];
            switch (form) {
                case S_Q2_K: bad |= block_q2_k(at, row, head, out); break;
                case S_Q3_K: bad |= block_q3_k(at, row, head, out); break;
                case S_Q4_K: bad |= block_q45_k(0, at, row, head, out); break;
                case S_Q5_K: bad |= block_q45_k(1, at, row, head, out); break;
                case S_Q6_K: bad |= block_q6_k(at, row, head, out); break;
                case S_IQ4_XS: bad |= block_iq4_xs(at, row, head, out); break;
                default: bad |= block_32(form, at, row, head, out);
            }
            for (int c = 0; c < elements / CHUNK; c++) memcpy(codes[c][row], out + CHUNK * c, CHUNK);
        }
        for (int c = 0; c < elements / CHUNK; c++)
            put_codes(w->bits, codes[c], chunk_at(w, tile, s * (elements / CHUNK) + c));
    }
    return bad;
}

#define FORM(type, elements, bytes)                                                             \
    case S_##type:                                                                              \
        bad |= pack_tile(&w, S_##type, elements, bytes, source, row_bytes, rows, to);           \
        break;

void hb_pack_blocks(const struct pack_blocks *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    int begin, end, bad = 0;
    size_t row_bytes = (size_t)op->row_bytes;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int tile = begin; tile < end; tile++) {
        int rows = rows_in(&w, tile);
        const uint8_t *source = (const uint8_t *)op->source + (size_t)tile * TILE * row_bytes;
        char *to = (char *)op->tiled.data + (size_t)tile * w.tile_bytes;
        switch (op->type) {
            FORM(Q4_0, 32, 18)
            FORM(Q4_1, 32, 20)
            FORM(Q5_0, 32, 22)
            FORM(Q5_1, 32, 24)
            FORM(Q8_0, 32, 34)
            FORM(IQ4_NL, 32, 18)
            FORM(Q2_K, 256, 84)
            FORM(Q3_K, 256, 110)
            FORM(Q4_K, 256, 144)
            FORM(Q5_K, 256, 176)
            FORM(Q6_K, 256, 210)
            FORM(IQ4_XS, 256, 136)
            FORM(MXFP4, 32, 17)
        }
    }
    if (bad) __atomic_store_n(op->bad, 1, __ATOMIC_RELAXED);
}
