/* Canonical codes, and words packed along K, to the tiles of weight.h. */
#include "weight.h"

/* LANES vectors of 32-bit words, turned: word j of vector i becomes word i of vector j. */
static inline void turn_words(vf a[LANES]) {
    for (int width = 1; width < LANES; width *= 2) {
        vf b[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = vf_low(a[i], a[i + LANES / 2]);
            b[2 * i + 1] = vf_high(a[i], a[i + LANES / 2]);
        }
        memcpy(a, b, sizeof b);
    }
}

/* The layout of a packed weight; a table of codes plays no part in packing. */
static void read_codes(const struct tiled *op, weight *w) {
    struct tiled head = *op;
    if (head.kind == W_T4) head.kind = W_Q4;
    read_weight(&head, w);
}

/* Scales or offsets [N, G] of `size` bytes each to a tile's records. */
static void put_values(const weight *w, const char *values, int rows, char *tile, size_t at) {
    size_t size = w->half_scales ? 2 : 4;
    for (int g = 0; g < w->groups; g++) {
        char *to = tile + g * w->record_bytes + at;
        for (int lane = 0; lane < rows; lane++)
            memcpy(to + lane * size, values + ((size_t)lane * w->groups + g) * size, size);
    }
}

/* Where 32-bit vector `i` of a tile lies: eight nibbles, or four bytes of the codes, a lane. */
static inline char *word_at(const weight *w, char *tile, int i) {
    int per_group = w->group / 8;
    return tile + i / per_group * w->record_bytes + (size_t)(i % per_group) * sizeof(vf);
}

/* A tile of nibbles from rows [rows, row_bytes] of the canonical stream. */
static void rows_of_words(const weight *w, const uint8_t *source, size_t row_bytes, int rows,
                          char *tile) {
    int words = w->k / 8;
    for (int i = 0; i < words; i += LANES) {
        vf part[LANES];
        size_t size = (size_t)(words - i < LANES ? words - i : LANES) * 4;
        memset(part, 0, sizeof part);
        for (int lane = 0; lane < rows; lane++)
            memcpy(&part[lane], source + lane * row_bytes + (size_t)i * 4, size);
        turn_words(part);
        for (int j = 0; j < (int)size / 4; j++) memcpy(word_at(w, tile, i + j), &part[j], sizeof(vf));
    }
}

/* A tile of bytes from rows [rows, row_bytes]; `center` is subtracted. */
static void rows_of_bytes(const weight *w, const uint8_t *source, size_t row_bytes, int rows,
                          uint8_t center, char *tile) {
    for (int g = 0; g < w->groups; g++) {
        uint8_t *to = (uint8_t *)tile + g * w->record_bytes;
        int begin = g * w->group, depth = w->k - begin < w->group ? w->k - begin : w->group;
        int k = 0;
        for (; rows == LANES && k + 4 * LANES <= depth; k += 4 * LANES) {
            vf part[LANES];
            for (int lane = 0; lane < LANES; lane++)
                memcpy(&part[lane], source + lane * row_bytes + begin + k, sizeof(vf));
            turn_words(part);
            /* Each vector is [lane][4] now: four bytes of every lane to go apart. */
            for (int j = 0; j < LANES; j++)
                for (int c = 0; c < 4; c++) {
                    vb b = __builtin_convertvector((vu)part[j] >> (8 * c), vb);
                    b -= (int8_t)center;
                    memcpy(to + (size_t)(k + 4 * j + c) * LANES, &b, sizeof b);
                }
        }
        for (; k < depth; k++)
            for (int lane = 0; lane < rows; lane++)
                to[k * LANES + lane] = (uint8_t)(source[lane * row_bytes + begin + k] - center);
    }
}

/* A tile of dense elements of two or four bytes from rows [rows, row_bytes]. */
static void rows_of_dense(const weight *w, const uint8_t *source, size_t row_bytes, int rows,
                          char *tile) {
    size_t size = element_bytes(w->kind);
    int step = (int)(4 / size), k = 0;
    for (; rows == LANES && k + step * LANES <= w->k; k += step * LANES) {
        vf part[LANES];
        for (int lane = 0; lane < LANES; lane++)
            memcpy(&part[lane], source + lane * row_bytes + k * size, sizeof(vf));
        turn_words(part);
        for (int j = 0; j < LANES; j++) {
            char *to = tile + (size_t)(k + j * step) * LANES * size;
            if (size == 4) {
                memcpy(to, &part[j], sizeof(vf));
                continue;
            }
            vh first = __builtin_convertvector((vu)part[j] & 0xFFFF, vh);
            vh second = __builtin_convertvector((vu)part[j] >> 16, vh);
            memcpy(to, &first, sizeof first);
            memcpy(to + sizeof first, &second, sizeof second);
        }
    }
    for (; k < w->k; k++)
        for (int lane = 0; lane < rows; lane++)
            memcpy(tile + ((size_t)k * LANES + lane) * size,
                   source + lane * row_bytes + k * size, size);
}

void hb_pack_rows(const struct pack_rows *op, int tid, int threads) {
    weight w;
    read_codes(&op->tiled, &w);
    int begin, end;
    size_t row_bytes = (size_t)op->row_bytes;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        int rows = w.n - t * LANES < LANES ? w.n - t * LANES : LANES;
        char *tile = (char *)op->tiled.data + t * w.tile_bytes;
        const uint8_t *source = (const uint8_t *)op->source + (size_t)t * LANES * row_bytes;
        size_t first = (size_t)t * LANES * w.groups * (w.half_scales ? 2 : 4);
        if (rows < LANES || w.k % w.group) memset(tile, 0, w.tile_bytes);
        if (w.kind == W_Q4) rows_of_words(&w, source, row_bytes, rows, tile);
        else if (w.has_scales) rows_of_bytes(&w, source, row_bytes, rows, (uint8_t)op->middle, tile);
        else rows_of_dense(&w, source, row_bytes, rows, tile);
        if (!w.has_scales) continue;
        put_values(&w, (const char *)op->scales + first, rows, tile, w.code_bytes);
        if (w.has_offsets)
            put_values(&w, (const char *)op->offsets + first, rows, tile, w.code_bytes + w.value_bytes);
    }
}

void hb_pack_words(const struct pack_words *op, int tid, int threads) {
    enum { SIDE = 8 }; /* tiles filled together: whole lines and pages of the source are used */
    weight w;
    read_codes(&op->tiled, &w);
    int begin, end;
    size_t stride = (size_t)op->row_words, size = w.half_scales ? 2 : 4;
    const uint32_t *words = op->source;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int first = begin; first < end; first += SIDE) {
        int stop = first + SIDE < end ? first + SIDE : end;
        for (int t = first; t < stop; t++) {
            int rows = w.n - t * LANES < LANES ? w.n - t * LANES : LANES;
            char *tile = (char *)op->tiled.data + t * w.tile_bytes;
            size_t values = (size_t)t * LANES * w.groups * size;
            if (rows < LANES || w.k % w.group) memset(tile, 0, w.tile_bytes);
            put_values(&w, (const char *)op->scales + values, rows, tile, w.code_bytes);
            if (w.has_offsets)
                put_values(&w, (const char *)op->offsets + values, rows, tile,
                           w.code_bytes + w.value_bytes);
        }
        for (int i = 0; i < w.k / 8; i++)
            for (int t = first; t < stop; t++) {
                int rows = w.n - t * LANES < LANES ? w.n - t * LANES : LANES;
                char *to = word_at(&w, (char *)op->tiled.data + t * w.tile_bytes, i);
                memcpy(to, words + i * stride + (size_t)t * LANES, (size_t)rows * 4);
            }
    }
}
