/* Writing tiles: codes and values of 32 rows to where weight.h says they lie. */
#ifndef HALFBYTE_TILE_H
#define HALFBYTE_TILE_H

#include "weight.h"

/* Eight words, the same on every machine: a row of a chunk of bytes, or eight rows of a line. */
typedef uint32_t v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

INLINE v8 v8_load(const void *p) {
    v8 x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void v8_store(void *p, v8 x) { memcpy(p, &x, sizeof x); }

#if defined(__clang__)
#define V8_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define V8_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define V8_LOW(a, b) __builtin_shuffle(a, b, (v8i){0, 8, 1, 9, 2, 10, 3, 11})
#define V8_HIGH(a, b) __builtin_shuffle(a, b, (v8i){4, 12, 5, 13, 6, 14, 7, 15})
#endif

/* Eight vectors turned: word j of vector i becomes word i of vector j. */
INLINE void turn8(v8 a[8]) {
#pragma GCC unroll 3
    for (int round = 0; round < 3; round++) {
        v8 b[8];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            b[2 * i] = V8_LOW(a[i], a[i + 4]);
            b[2 * i + 1] = V8_HIGH(a[i], a[i + 4]);
        }
        memcpy(a, b, sizeof b);
    }
}

/* Eight rows of a chunk from its quads, words [quad][row]: bits `from` and up of each code to a
 * plane of p bits. */
INLINE void put_plane(const v8 quads[8], int p, int from, char *lines) {
    const uint32_t mask = ((1u << p) - 1) * 0x01010101u;
#pragma GCC unroll 8
    for (int i = 0; i < p; i++) {
        v8 line = {0};
#pragma GCC unroll 8
        for (int t = 0; t < 8 / p; t++) line |= (quads[i + p * t] >> from & mask) << (p * t);
        v8_store(lines + i * LINE, line);
    }
}

/* Rows 8 g to 8 g + 7 of a chunk of b-bit codes from their quads. */
INLINE void put_quads(int bits, const v8 quads[8], int g, char *chunk) {
    int low = bits == 8 ? 8 : bits >= 4 ? 4 : 2;
    chunk += 32 * g;
    if (bits == 8) {
        for (int i = 0; i < 8; i++) v8_store(chunk + i * LINE, quads[i]);
        return;
    }
    put_plane(quads, low, 0, chunk);
    if (bits > low) put_plane(quads, bits - low, low, chunk + low * LINE);
}

/* A chunk of b-bit codes from bytes [row][32]. */
INLINE void put_bytes(int bits, const uint8_t codes[TILE][CHUNK], char *chunk) {
    for (int g = 0; g < TILE / 8; g++) {
        v8 quads[8];
        for (int i = 0; i < 8; i++) quads[i] = v8_load(codes[8 * g + i]);
        turn8(quads);
        put_quads(bits, quads, g, chunk);
    }
}

/* The same for a number of bits that is known only at run time. */
static inline void put_codes(int bits, const uint8_t codes[TILE][CHUNK], char *chunk) {
    switch (bits) {
        case 2: put_bytes(2, codes, chunk); break;
        case 3: put_bytes(3, codes, chunk); break;
        case 4: put_bytes(4, codes, chunk); break;
        case 5: put_bytes(5, codes, chunk); break;
        case 6: put_bytes(6, codes, chunk); break;
        default: put_bytes(8, codes, chunk);
    }
}

/* Where chunk c of a tile lies, and the head of a span. */
INLINE char *chunk_at(const weight *w, char *tile, int c) {
    int run = c / (w->span / CHUNK) / w->together, first = run * w->together;
    int heads = w->spans - first < w->together ? w->spans - first : w->together;
    char *chunks = tile + (size_t)run * w->together_bytes + heads_size(w, heads);
    return chunks + (size_t)(c - first * (w->span / CHUNK)) * w->chunk_bytes;
}

INLINE char *head_at(const weight *w, char *tile, int span) {
    char *heads = tile + (size_t)(span / w->together) * w->together_bytes;
    return heads + (size_t)(span % w->together) * w->head_bytes;
}

/* Zeros where nothing will be written. */
INLINE void clear_tile(const weight *w, int rows, char *tile) {
    if (rows < TILE || w->k % w->span || w->spans % w->together) memset(tile, 0, w->tile_bytes);
}

INLINE int rows_in(const weight *w, int tile) {
    int left = w->n - tile * TILE;
    return left < TILE ? left : TILE;
}

/* Groups of a row. */
INLINE int group_count(const weight *w) {
    int columns = w->span / (1 + w->halves);
    return (w->k + columns - 1) / columns;
}

/* Scales and what is added to them of groups [N, G], the tile's rows being at the start, to the heads of a
 * tile. Groups of 16 columns come in pairs. Whole zero points are bytes here. */
static inline void put_groups(const weight *w, const void *scales, const void *added, int rows,
                              char *tile) {
    size_t size = (size_t)number_bytes(w->number), small = has_zeros(w) ? 1 : size;
    int per = 1 + w->halves, groups = group_count(w);
    for (int row = 0; row < rows; row++)
        for (int g = 0; g < groups; g++) {
            char *head = head_at(w, tile, g / per);
            size_t at = (size_t)row * (size_t)groups + (size_t)g;
            memcpy(head + size * (size_t)(g % per * TILE + row), (const char *)scales + at * size, size);
            if (w->added == A_NONE) continue;
            head += size * (size_t)(per * TILE);
            if (w->added == A_ZERO4) {
                int zero = ((const uint8_t *)added)[at], second = per == 2 ? g % 2 : row / 16;
                char *to = head + (per == 2 ? row : row % 16);
                *to = (char)(second ? *to | zero << 4 : zero);
                continue;
            }
            memcpy(head + small * (size_t)(g % per * TILE + row), (const char *)added + at * small, small);
        }
}

#endif
