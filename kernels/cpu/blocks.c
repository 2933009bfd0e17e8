/* GGUF blocks, as they lie in the file, straight to the tiles of weight.h.
 *
 * One pass: a row's block is read once and its codes are written to the record where they stay.
 * The same bits come out as from converting to canonical codes first (tests compare them).
 */
#include "weight.h"

typedef uint8_t v16 __attribute__((vector_size(16)));

static inline uint16_t load16(const uint8_t *p) {
    uint16_t x;
    memcpy(&x, p, 2);
    return x;
}

static inline uint64_t load64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

/* Infinite or NaN. */
static inline int odd_half(uint16_t h) { return (h & 0x7C00) == 0x7C00; }

static inline float from_half(uint16_t h) {
    uint16_t same[LANES] = {h};
    return vf_from_half(same)[0];
}

/* Low nibbles of eight bytes in the low half, high ones in the high half. */
static inline uint64_t split_nibbles(uint64_t x) {
#if defined(__BMI2__)
    return _pext_u64(x, 0x0F0F0F0F0F0F0F0F) | _pext_u64(x, 0xF0F0F0F0F0F0F0F0) << 32;
#else
    uint64_t t = (x ^ x >> 4) & 0x00F000F000F000F0;
    x ^= t ^ t << 4;
    t = (x ^ x >> 8) & 0x0000FF000000FF00;
    x ^= t ^ t << 8;
    t = (x ^ x >> 16) & 0x00000000FFFF0000;
    return x ^ t ^ t << 16;
#endif
}

/* `words` times eight bytes: low nibbles to words 0, 1, ... of a lane, high ones to `high` on. */
static inline void put_nibbles(const uint8_t *qs, int words, uint32_t *low, uint32_t *high) {
    for (int i = 0; i < words; i++) {
        uint64_t x = split_nibbles(load64(qs + 8 * i));
        low[i * LANES] = (uint32_t)x;
        high[i * LANES] = (uint32_t)(x >> 32);
    }
}

/* Bytes [lane][column] to [column][lane]; columns are a multiple of 16. */
static inline void turn_bytes(const uint8_t *const *rows, int columns, uint8_t *out) {
#if LANES == 16 && !defined(__clang__)
    static const v16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    static const v16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    for (int c = 0; c < columns; c += 16) {
        v16 a[16], b[16];
        for (int i = 0; i < 16; i++) memcpy(&a[i], rows[i] + c, 16);
#pragma GCC unroll 4
        for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                b[2 * i] = __builtin_shuffle(a[i], a[i + 8], low);
                b[2 * i + 1] = __builtin_shuffle(a[i], a[i + 8], high);
            }
            memcpy(a, b, sizeof a);
        }
        memcpy(out + (size_t)c * 16, a, sizeof a);
    }
#else
    for (int c = 0; c < columns; c++)
        for (int lane = 0; lane < LANES; lane++) out[c * LANES + lane] = rows[lane][c];
#endif
}

/* Eight 6-bit scales and minima of Q4_K and Q5_K, times d and -dmin. */
static inline int six_bits(const uint8_t *head, float *scales, float *offsets) {
    uint16_t d = load16(head), dmin = load16(head + 2);
    float scale = from_half(d), minimum = from_half(dmin);
    const uint8_t *low = head + 4, *mid = head + 8, *high = head + 12;
    for (int i = 0; i < 4; i++) {
        scales[i] = scale * (float)(low[i] & 63);
        offsets[i] = -(minimum * (float)(mid[i] & 63));
        scales[i + 4] = scale * (float)((high[i] & 15) | (low[i] >> 2 & 48));
        offsets[i + 4] = -(minimum * (float)(high[i] >> 4 | (mid[i] >> 2 & 48)));
    }
    return odd_half(d) | odd_half(dmin);
}

static inline void put_values(const weight *w, char *record, int lane, float scale, float offset) {
    float *values = (float *)(record + w->code_bytes);
    values[lane] = scale;
    if (w->has_offsets) values[LANES + lane] = offset;
}

/* Q4_0 and Q4_1: 32 elements; the latter has a minimum after the scale. */
static int block_q4(const weight *w, const uint8_t *at, char *record, int lane) {
    uint32_t *to = (uint32_t *)record + lane;
    uint16_t *values = (uint16_t *)(record + w->code_bytes);
    int bad = odd_half(values[lane] = load16(at));
    if (w->has_offsets) {
        at += 2;
        bad |= odd_half(values[LANES + lane] = load16(at));
    }
    put_nibbles(at + 2, 2, to, to + 2 * LANES);
    return bad;
}

static int block_q4_k(const weight *w, const uint8_t *at, char *record, int lane) {
    float scales[8], offsets[8];
    int bad = six_bits(at, scales, offsets);
    for (int g = 0; g < 8; g++)
        put_values(w, record + g * w->record_bytes, lane, scales[g], offsets[g]);
    for (int c = 0; c < 4; c++) {
        char *low = record + 2 * c * w->record_bytes, *high = low + w->record_bytes;
        put_nibbles(at + 16 + 32 * c, 4, (uint32_t *)low + lane, (uint32_t *)high + lane);
    }
    return bad;
}

/* Signed codes to `out` [256], values to the records. */
static int block_q5_k(const weight *w, const uint8_t *at, char *record, int lane, uint8_t *out) {
    float scales[8], offsets[8];
    int bad = six_bits(at, scales, offsets);
    for (int g = 0; g < 8; g++) {
        float *s = &scales[g];
        put_values(w, record + g * w->record_bytes, lane, *s, offsets[g] + *s * 16.0f);
    }
    const uint8_t *high = at + 16, *qs = at + 48;
    for (int c = 0; c < 4; c++, qs += 32, out += 64)
        for (int e = 0; e < 32; e++) {
            out[e] = (uint8_t)(((qs[e] & 15) | (high[e] >> (2 * c) & 1) << 4) - 16);
            out[e + 32] = (uint8_t)((qs[e] >> 4 | (high[e] >> (2 * c + 1) & 1) << 4) - 16);
        }
    return bad;
}

static int block_q6_k(const weight *w, const uint8_t *at, char *record, int lane, uint8_t *out) {
    uint16_t d = load16(at + 208);
    float scale = from_half(d);
    for (int g = 0; g < 16; g++)
        put_values(w, record + g * w->record_bytes, lane, scale * (float)(int8_t)at[192 + g], 0);
    const uint8_t *low = at, *high = at + 128;
    for (int c = 0; c < 2; c++, low += 64, high += 32, out += 128)
        for (int e = 0; e < 32; e++) {
            out[e] = (uint8_t)(((low[e] & 15) | (high[e] & 3) << 4) - 32);
            out[e + 32] = (uint8_t)(((low[e + 32] & 15) | (high[e] >> 2 & 3) << 4) - 32);
            out[e + 64] = (uint8_t)((low[e] >> 4 | (high[e] >> 4 & 3) << 4) - 32);
            out[e + 96] = (uint8_t)((low[e + 32] >> 4 | (high[e] >> 6) << 4) - 32);
        }
    return odd_half(d);
}

/* Blocks whose codes become bytes: all lanes of one block column. */
static int bytes_column(const weight *w, int form, const uint8_t *at, size_t row_bytes, int rows,
                        char *record) {
    static const uint8_t none[256];
    uint8_t codes[LANES][256];
    const uint8_t *lanes[LANES];
    int bad = 0;
    for (int lane = 0; lane < LANES; lane++, at += row_bytes) {
        lanes[lane] = lane < rows ? codes[lane] : none;
        if (lane >= rows) continue;
        if (form == S_Q8_0) {
            uint16_t d = load16(at);
            memcpy(record + w->code_bytes + 2 * lane, &d, 2);
            bad |= odd_half(d);
            lanes[lane] = at + 2;
        } else if (form == S_Q5_K) {
            bad |= block_q5_k(w, at, record, lane, codes[lane]);
        } else {
            bad |= block_q6_k(w, at, record, lane, codes[lane]);
        }
    }
    int groups = form == S_Q8_0 ? 1 : 256 / w->group;
    for (int g = 0; g < groups; g++) {
        turn_bytes(lanes, w->group, (uint8_t *)record + g * w->record_bytes);
        for (int lane = 0; lane < LANES; lane++)
            if (lane < rows) lanes[lane] += w->group;
    }
    return bad;
}

/* One tile from `rows` rows. Returns whether a scale or minimum is not finite. */
static int pack_tile(const weight *w, int form, const uint8_t *source, size_t row_bytes, int rows,
                     char *tile) {
    static const int sizes[] = {[S_Q4_0] = 18, [S_Q4_1] = 20, [S_Q8_0] = 34,
                                [S_Q4_K] = 144, [S_Q5_K] = 176, [S_Q6_K] = 210};
    int elements = form >= S_Q4_K ? 256 : 32, bad = 0;
    if (rows < LANES) memset(tile, 0, w->tile_bytes);
    for (int b = 0; b < w->k / elements; b++) {
        const uint8_t *at = source + (size_t)b * sizes[form];
        char *record = tile + (size_t)b * (elements / w->group) * w->record_bytes;
        if (form == S_Q4_0 || form == S_Q4_1)
            for (int lane = 0; lane < rows; lane++)
                bad |= block_q4(w, at + lane * row_bytes, record, lane);
        else if (form == S_Q4_K)
            for (int lane = 0; lane < rows; lane++)
                bad |= block_q4_k(w, at + lane * row_bytes, record, lane);
        else
            bad |= bytes_column(w, form, at, row_bytes, rows, record);
    }
    return bad;
}

void hb_pack_blocks(const struct pack_blocks *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    int begin, end, bad = 0;
    size_t row_bytes = (size_t)op->row_bytes;
    hb_share(w.tiles, tid, threads, &begin, &end);
    for (int tile = begin; tile < end; tile++) {
        int rows = w.n - tile * LANES < LANES ? w.n - tile * LANES : LANES;
        const uint8_t *source = (const uint8_t *)op->source + (size_t)tile * LANES * row_bytes;
        char *to = (char *)op->tiled.data + tile * w.tile_bytes;
        bad |= pack_tile(&w, op->type, source, row_bytes, rows, to);
    }
    if (bad) __atomic_store_n(op->bad, 1, __ATOMIC_RELAXED);
}
