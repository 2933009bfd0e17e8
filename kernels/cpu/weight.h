/* A packed weight matrix [N, K] and how to read it.
 *
 * N is cut into tiles of 32 rows and K into chunks of 32 columns, the same on every machine. A tile
 * is one stream of spans: columns that share a head of scales, then their chunks. Where a head is
 * no whole lines of the cache, those of two or four spans come together, and then the chunks of
 * them all: a load of codes that begins inside of a line would take twice as long.
 *
 * Codes of b bits take b lines of a chunk, a line being a 32-bit word of each row. Four columns
 * that follow each other, a quad, are bytes of one word, as products of bytes want them. b is
 * split into planes: 8; 4; 4 + 2; 4 + 1; 2; 2 + 1 bits, the lowest bits first. A plane of p bits has p
 * lines, and line i has quads i, i + p, i + 2 p ... of the chunk's eight in bits 0, p, 2 p ... of
 * its bytes. So no code takes more bits than in its file, and a quad costs a shift and a mask.
 * Dense elements and float8 lie as [column][row].
 *
 * Heads, all of them [row] side by side (see `enum` V in ops.h; b is a block of 16 or 32 columns):
 *   GROUP   scale of the span; after it an offset or a zero point, both of the scales' type, or a
 *           zero point of a byte or of 4 bits. Twice each, one after the other, where groups have
 *           16 columns. Zero points of 4 bits: row r in the low (r < 16) or high bits of byte
 *           r % 16; both of a row in a byte, the first in the low bits, where there are two
 *   K2      d, dmin: halves; 4 words: byte b = scale | minimum << 4 of 16 columns
 *   K3      d: half; 3 words: the 12 bytes of 6-bit scales of 16 columns, as in the file
 *   K4      d, dmin: halves; 3 words: the 12 bytes of 6-bit scales and minima of 32 columns
 *   K6      d: half; 4 words: int8 scales of 16 columns
 *   XS      d: half, 2 bytes: high parts of the scales of 32 columns; a word: low parts
 * Nested scales are bytes that stand for floats; the factor and offset of each run of scales, which
 * goes on from row to row, lie outside of the tiles, as they would repeat in most of them.
 * A span of the last five has 256 columns. A short last span has a whole head and the chunks that
 * it needs; columns and rows beyond the matrix have codes 0.
 */
#ifndef HALFBYTE_WEIGHT_H
#define HALFBYTE_WEIGHT_H

#include "halfbyte.h"

#define INLINE static inline __attribute__((always_inline))

#define PARTS (TILE / LANES) /* vectors across the rows of a tile */
#define LINE (4 * TILE)      /* bytes of a line */
#define QUADS (CHUNK / 4)
#define CACHE_LINE 64
#define MOST_VALUES 16 /* blocks of a head */

typedef struct {
    int codes, bits, values, n, k, span, halves;
    int tiles, chunks, spans;         /* of the matrix, of a row, of a row */
    int number, added;                /* of GROUP: type of the scales, what follows them */
    int late;                         /* one scale a row and nothing else: applied at the end */
    int center;                       /* subtracted from every integer code */
    const char *data;
    const float *bias, *table;        /* table: what 4-bit codes stand for */
    const float *outer;               /* of nested scales: see ops.py */
    const int32_t *firsts;
    int run_shift;
    const float *factors;             /* of the scales of each row, or NULL */
    int divides;                      /* scales are divided by them */
    float step;                       /* of bytes that stand for entries of the table */
    int fetch;                        /* FETCH_: how it is fetched ahead of its use */
    const float *row_scales;          /* factors of the rows at hand (quantized inputs), or NULL */
    int piece;                        /* chunks with one sum, where inputs share a scale: 1, 2 or 4 */
    int plain;                        /* for read_plain() */
    int together;                     /* spans whose heads lie side by side: 1, 2 or 4 */
    size_t chunk_bytes, head_bytes, together_bytes, tile_bytes;
} weight;

/* The values of a head: scale [block][row], offset likewise. */
typedef struct {
    float scale[MOST_VALUES][TILE], offset[MOST_VALUES][TILE];
    int32_t zero[2][TILE]; /* less than 0: what is added to a sum of codes, by the sum of x */
} span_values;

INLINE int has_offsets(const weight *w) {
    int own = w->added == A_OFFSET || w->added == A_FLOAT_ZERO;
    return w->values == V_K2 || w->values == V_K4 || (w->values == V_GROUP && own);
}

INLINE int has_zeros(const weight *w) {
    return w->values == V_GROUP && (w->added == A_ZERO || w->added == A_ZERO4);
}

INLINE vu line_of(const char *at, int v) {
    vu x;
    memcpy(&x, at + v * sizeof(vu), sizeof x);
    return x;
}

/* Quad q of a plane of p bits, moved to bit `up` of its bytes. */
INLINE vu plane(const char *lines, int p, int q, int v, int up) {
    vu x = line_of(lines + q % p * LINE, v);
    int down = p * (q / p) - up;
    if (p == 8) return x;
    uint32_t mask = ((1u << p) - 1) * 0x01010101u << up;
    return (down > 0 ? x >> down : x << -down) & mask;
}

/* Quad q of part v of a chunk: four bytes a row. */
INLINE vu quad(int bits, const char *chunk, int q, int v) {
    int low = bits == 8 ? 8 : bits >= 4 ? 4 : 2;
    vu x = plane(chunk, low, q, v, 0);
    if (bits > low) x |= plane(chunk + low * LINE, bits - low, q, v, low);
    return x;
}

INLINE int number_bytes(int number) {
    return number == NUM_F32 ? 4 : number == NUM_F16 || number == NUM_BF16 ? 2 : 1;
}

/* LANES float8_e4m3fn numbers, 2**-8 of them: the same bits are a half-precision number whose
 * exponent is biased by 8 more, subnormals included. NaN is not expected. */
INLINE vf vf_from_e4m3(const char *p) {
#if defined(__AVX512F__)
    __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
    half = _mm256_and_si256(half, _mm256_set1_epi16((short)0xBFFF));
    return (vf)_mm512_cvtph_ps(half);
#else
    vb b;
    memcpy(&b, p, sizeof b);
    vs half = (__builtin_convertvector(b, vs) << 7) & (int16_t)0xBFFF;
    return vf_from_half((const uint16_t *)&half);
#endif
}

/* LANES exponents, 2**(x - 127): those of a float, of which 0 is subnormal. */
INLINE vf vf_from_e8m0(const char *p) {
    typedef uint8_t v1 __attribute__((vector_size(LANES)));
    v1 b;
    memcpy(&b, p, sizeof b);
    vu x = __builtin_convertvector(b, vu);
    return (vf)(x << 23 | ((vu)(x == 0) & 0x00400000u));
}

INLINE vf load_number(int number, const char *at, int v) {
    if (number == NUM_E8M0) return vf_from_e8m0(at + v * LANES);
    if (number == NUM_E4M3) return vf_from_e4m3(at + v * LANES) * 256.0f;
    if (number == NUM_F16) return vf_from_half((const uint16_t *)at + v * LANES);
    if (number == NUM_BF16) return vf_from_bf16((const uint16_t *)at + v * LANES);
    return vf_load((const float *)at + v * LANES);
}

INLINE vf vu_to_float(vu x) { return __builtin_convertvector((vi)x, vf); }

/* Whole zero points of part v of a tile, half h of a span. */
INLINE vi load_zeros(const weight *w, const char *at, int h, int v) {
    typedef uint8_t v1 __attribute__((vector_size(LANES)));
    v1 bytes;
    int row = v * LANES, four = w->added == A_ZERO4, packed = four && !w->halves;
    memcpy(&bytes, at + (packed ? row % 16 : four ? row : h * TILE + row), sizeof bytes);
    vi zero = __builtin_convertvector(bytes, vi);
    return four ? zero >> 4 * (packed ? row / 16 : h) & 15 : zero;
}

/* Scales, offsets and zero points of a head. For `integers` zero points stay such, `shift` added and
 * the sign changed, else they are part of the offsets. */
static void read_head(const weight *w, const char *head, int integers, int shift,
                      span_values *to) {
    const vu six = (vu){0} + 0x3F3F3F3Fu, four = (vu){0} + 0x0F0F0F0Fu;
    for (int v = 0; v < PARTS; v++) {
        int row = v * LANES;
        if (w->values == V_GROUP) {
            size_t size = (size_t)number_bytes(w->number) * TILE;
            const char *after = head + size * (1 + w->halves);
            for (int h = 0; h <= w->halves; h++) {
                vf scale = load_number(w->number, head + h * size, v);
                /* What vf_from_e4m3() leaves out. */
                if (w->codes == W_E4M3) scale *= 256.0f;
                if (w->codes == W_TABLE && integers) scale *= w->step;
                vf_store(&to->scale[h][row], scale);
                if (w->added == A_OFFSET) {
                    vf_store(&to->offset[h][row], load_number(w->number, after + h * size, v));
                } else if (w->added == A_FLOAT_ZERO) {
                    vf zero = load_number(w->number, after + h * size, v);
                    vf_store(&to->offset[h][row], -(scale * zero));
                } else if (w->added != A_NONE) {
                    vi zero = load_zeros(w, after, h, v);
                    if (integers) {
                        zero = -(zero + shift);
                        memcpy(&to->zero[h][row], &zero, sizeof zero);
                    } else vf_store(&to->offset[h][row], -(scale * __builtin_convertvector(zero, vf)));
                }
            }
            continue;
        }
        vf d = load_number(NUM_F16, head, v);
        head += 2 * TILE;
        if (w->values == V_K6) {
            for (int b = 0; b < 16; b++) {
                vi word = (vi)line_of(head + b / 4 * LINE, v);
                vi scale = word << (24 - b % 4 * 8) >> 24;
                vf_store(&to->scale[b][row], d * __builtin_convertvector(scale, vf));
            }
        } else if (w->values == V_K4) {
            vf less = -load_number(NUM_F16, head, v);
            const char *words = head + 2 * TILE;
            vu a = line_of(words, v), b = line_of(words + LINE, v), c = line_of(words + 2 * LINE, v);
            vu scale[2] = {a & six, (c & four) | (a >> 2 & (vu)(four ^ six))};
            vu minimum[2] = {b & six, (c >> 4 & four) | (b >> 2 & (vu)(four ^ six))};
            for (int i = 0; i < 8; i++) {
                int down = i % 4 * 8;
                vf_store(&to->scale[i][row], d * vu_to_float(scale[i / 4] >> down & 255));
                vf_store(&to->offset[i][row], less * vu_to_float(minimum[i / 4] >> down & 255));
            }
        } else if (w->values == V_K2) {
            vf less = -load_number(NUM_F16, head, v);
            for (int b = 0; b < 16; b++) {
                vu word = line_of(head + 2 * TILE + b / 4 * LINE, v) >> (b % 4 * 8);
                vf_store(&to->scale[b][row], d * vu_to_float(word & 15));
                vf_store(&to->offset[b][row], less * vu_to_float(word >> 4 & 15));
            }
        } else if (w->values == V_K3) {
            /* Bytes 0 to 7 have the low nibbles of scales 0 to 7 and of 8 to 15, bytes 8 to 11
             * the upper two bits of scales i, i + 4, i + 8 and i + 12. */
            vu low[2] = {line_of(head, v), line_of(head + LINE, v)};
            vu high = line_of(head + 2 * LINE, v);
            for (int b = 0; b < 16; b++) {
                int down = b % 4 * 8;
                vu nibble = low[b / 4 % 2] >> (down + b / 8 * 4) & 15;
                vu code = nibble | (high >> (down + b / 4 * 2) & 3) << 4;
                vf_store(&to->scale[b][row], d * (vu_to_float(code) - 32.0f));
            }
        } else { /* V_XS */
            vh upper;
            memcpy(&upper, head + 2 * row, sizeof upper);
            vu high = __builtin_convertvector(upper, vu), low = line_of(head + 2 * TILE, v);
            for (int i = 0; i < 8; i++) {
                vu code = (low >> 4 * i & 15) | (high >> 2 * i & 3) << 4;
                vf_store(&to->scale[i][row], d * (vu_to_float(code) - 32.0f));
            }
        }
        head -= 2 * TILE;
    }
}

/* What read_head() does for scales alone, with offsets and with zero points of their type, without a
 * call: such a head may come with every chunk. */
INLINE void read_plain(const weight *w, const char *head, int integers, span_values *to) {
    int size = number_bytes(w->number);
    for (int v = 0; v < PARTS; v++) {
        vf scale = load_number(w->number, head, v);
        vf_store(to->scale[0] + v * LANES, integers ? scale * w->step : scale);
        if (w->added == A_NONE) continue;
        vf beside = load_number(w->number, head + size * TILE, v);
        if (w->added == A_FLOAT_ZERO) beside = -(scale * beside);
        vf_store(to->offset[0] + v * LANES, beside);
    }
}

/* Bytes of the heads of each kind; those of GROUP depend on the weight. */
INLINE size_t head_size(const struct tiled *op) {
    switch (op->values) {
        case V_NONE: return 0;
        case V_GROUP: {
            size_t size = (size_t)number_bytes(op->number) * TILE, times = op->halves ? 2 : 1;
            switch (op->added) {
                case A_NONE: return size * times;
                case A_ZERO: return (size + TILE) * times;
                case A_ZERO4: return (size + TILE / 2) * times;
                default: return 2 * size * times;
            }
        }
        case V_K2: return 20 * TILE;
        case V_K3: return 14 * TILE;
        case V_K4: return 16 * TILE;
        case V_K6: return 18 * TILE;
        default: return 8 * TILE;
    }
}

/* Bytes of heads that lie together. */
INLINE size_t heads_size(const weight *w, int count) {
    return ((size_t)count * w->head_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

/* What the bytes count that stand for entries of a table in products of bytes. */
static inline float table_step(const float *table) {
    float most = 0;
    int halves = 1;
    for (int i = 0; i < 16; i++) {
        most = fabsf(table[i]) > most ? fabsf(table[i]) : most;
        halves &= 2 * table[i] == rintf(2 * table[i]);
    }
    if (halves && most < 64) return 0.5f; /* 4-bit floats: exact */
    return most > 0 ? most / 127.0f : 1.0f;
}

static inline void read_weight(const struct tiled *op, weight *w) {
    *w = (weight){.codes = op->codes, .values = op->values, .n = op->n, .k = op->k,
                  .span = op->span, .halves = op->halves, .number = op->number,
                  .added = op->added, .center = op->center, .data = op->data,
                  .bias = op->bias, .table = op->table, .outer = op->outer,
                  .firsts = op->firsts, .run_shift = op->run_shift,
                  .factors = op->factors, .divides = op->divides};
    static const int bits[] = {[W_BITS2] = 2, [W_BITS3] = 3, [W_BITS4] = 4, [W_BITS5] = 5,
                               [W_BITS6] = 6, [W_BITS8] = 8, [W_TABLE] = 4,
                               [W_E4M3] = 8, [W_F32] = 32, [W_F16] = 16, [W_BF16] = 16};
    w->bits = bits[w->codes];
    w->late = w->values == V_GROUP && w->span >= w->k && !w->halves &&
              w->added == A_NONE;
    w->step = w->codes == W_TABLE ? table_step(w->table) : 1.0f;
    w->tiles = (w->n + TILE - 1) / TILE;
    w->chunks = (w->k + CHUNK - 1) / CHUNK;
    w->spans = (w->k + w->span - 1) / w->span;
    w->chunk_bytes = (size_t)w->bits * LINE;
    w->head_bytes = head_size(op);
    w->plain = w->values == V_GROUP && !w->halves && w->added <= A_FLOAT_ZERO &&
               w->codes != W_E4M3 && w->number != NUM_NESTED;
    w->together = 1;
    while (w->together < 4 && (size_t)w->together * w->head_bytes % CACHE_LINE) w->together *= 2;
    int whole = w->spans / w->together;
    size_t heads = heads_size(w, w->together);
    w->together_bytes = heads + (size_t)(w->together * (w->span / CHUNK)) * w->chunk_bytes;
    w->tile_bytes = heads * (size_t)whole + heads_size(w, w->spans % w->together) +
                    w->chunk_bytes * (size_t)w->chunks;
}

/* A walk through a tile, chunk by chunk. */
typedef struct {
    span_values values __attribute__((aligned(CACHE_LINE)));
    const weight *w;
    const char *at, *head;
    int chunk, begin, stop; /* the next chunk, and the span of the last one */
    int zeros, shift;       /* of products of integers (integer.c): whether sums need them */
    int ahead;              /* bytes between what is read and what is fetched meanwhile */
    int span;               /* the next one */
    int first_row, renew;   /* of nested scales: the next span in which a row has another run */
    float factor[TILE], shift_by[TILE];
} reader;

static inline void read_tile(const weight *w, int tile, int ahead, reader *r) {
    r->w = w;
    r->at = r->head = w->data + (size_t)tile * w->tile_bytes;
    r->chunk = r->begin = r->stop = r->zeros = r->shift = 0;
    r->ahead = ahead;
    r->first_row = tile * TILE;
    r->span = r->renew = 0;
}

/* Factors and offsets of the runs in which the scales of a span lie. A row goes over to another run
 * wherever it is full, so rows do at different spans. */
static void renew_runs(reader *r) {
    const weight *w = r->w;
    const int32_t *firsts = w->firsts + r->first_row;
    int size = 1 << w->run_shift, least = size;
    for (int i = 0; i < TILE; i++) {
        int at = firsts[i] + r->span, left = size - (at & (size - 1));
        const float *run = w->outer + 256 + 2 * (at >> w->run_shift);
        r->factor[i] = run[0];
        r->shift_by[i] = run[1];
        least = left < least ? left : least;
    }
    r->renew = r->span + least;
}

/* What part v of the codes of scales stands for. */
INLINE vf look_up_scales(const float *table, const char *codes, int v) {
#if defined(__AVX512F__)
    __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + v * LANES)));
    __m512 x[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_permutex2var_ps(_mm512_loadu_ps(table + 32 * i), at,
                                      _mm512_loadu_ps(table + 32 * i + 16));
#pragma GCC unroll 3
    for (int bit = 32, count = 4; count; bit *= 2, count /= 2) {
        __mmask16 set = _mm512_test_epi32_mask(at, _mm512_set1_epi32(bit));
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) x[i] = _mm512_mask_blend_ps(set, x[2 * i], x[2 * i + 1]);
    }
    return (vf)x[0];
#else
    /* One by one: gathering loads are slow on many processors. */
    vf x;
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++) x[i] = table[(uint8_t)codes[v * LANES + i]];
    return x;
#endif
}

/* What read_head() does for nested scales: value of the code * factor + offset, rounded twice, as
 * the tool does. */
INLINE void read_nested(reader *r, const char *head, int integers) {
    const weight *w = r->w;
    if (r->span == r->renew) renew_runs(r);
    for (int v = 0; v < PARTS; v++) {
        vf x = look_up_scales(w->outer, head, v);
        x = x * vf_load(r->factor + v * LANES) + vf_load(r->shift_by + v * LANES);
        vf_store(r->values.scale[0] + v * LANES, integers ? x * w->step : x);
    }
}

/* The factors of the rows on the scales of a span that was just read, as the format rounds them. */
INLINE void apply_factors(reader *r) {
    const weight *w = r->w;
    for (int h = 0; h <= w->halves; h++)
        for (int v = 0; v < PARTS; v++) {
            float *to = r->values.scale[h] + v * LANES;
            vf factor = vf_load(w->factors + r->first_row + v * LANES);
            vf_store(to, w->divides ? vf_load(to) / factor : vf_load(to) * factor);
        }
}

INLINE void fetch(const reader *r, const char *at, int bytes) {
    at += r->ahead;
    if (r->w->fetch == FETCH_SECOND)
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
    else if (r->w->fetch == FETCH_ONCE)
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 0);
    else
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 3);
}

/* The head of the next span, where heads lie together. */
INLINE const char *next_of_heads(reader *r) {
    const weight *w = r->w;
    if (!(r->span & (w->together - 1))) {
        int left = w->spans - r->span;
        size_t heads = heads_size(w, left < w->together ? left : w->together);
        fetch(r, r->at, (int)heads);
        r->head = r->at;
        r->at += heads;
    }
    const char *head = r->head;
    r->head += w->head_bytes;
    return head;
}

/* Read the values of the next span. A line that is not fetched ahead, be it one of a head, costs as
 * much as the whole span. */
INLINE void next_span(reader *r, int integers, int codes) {
    const weight *w = r->w;
    const char *head = r->at;
    if (w->together > 1) {
        head = next_of_heads(r);
    } else {
        fetch(r, head, (int)w->head_bytes);
        r->at += w->head_bytes;
    }
    if (!w->head_bytes) return;
    if (w->plain) read_plain(w, head, integers, &r->values);
    else if (codes == W_TABLE && w->number == NUM_NESTED) read_nested(r, head, integers);
    else read_head(w, head, integers, r->shift, &r->values);
    if (w->factors) apply_factors(r);
    r->span++;
}

/* The next chunk of codes, which have `bits` bits; the values of its span are read with the first. */
INLINE const char *next_chunk(reader *r, int integers, int codes, int bits) {
    const weight *w = r->w;
    if (r->chunk == r->stop) {
        r->begin = r->stop;
        r->stop += w->span / CHUNK;
        next_span(r, integers, codes);
    }
    const char *chunk = r->at;
    fetch(r, chunk, bits * LINE);
    r->at += w->chunk_bytes;
    r->chunk++;
    return chunk;
}

/* Which values belong to block h of the chunk that was read last. */
INLINE int value_at(const reader *r, int h) {
    return r->w->values == V_GROUP ? h : (r->chunk - 1 - r->begin) * (1 + r->w->halves) + h;
}

/* The next chunk's codes as floats [CHUNK][TILE], apart from their scales (unpack.c). */
void hb_unpack_chunk(reader *r, float out[][TILE]);

#endif
