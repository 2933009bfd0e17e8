/* A packed weight matrix [N, K] and how to read it.
 *
 * Layout: N is cut into tiles of LANES rows, one per vector lane, so no horizontal sums are needed.
 * A tile is a sequence of records, one for each group of K, so that a tile is one stream:
 *   codes    4 bits: uint32 [group / 8][lane], eight consecutive K in a word, first in the low bits
 *            8 bits: int8 or float8_e4m3fn [group][lane]
 *            dense:  float, half or bfloat16 [K][lane], the whole of K being one group
 *   scales   half or float [lane], absent when dense
 *   offsets  like scales, or absent
 * The codes of a short last group are padded to the full size.
 */
#ifndef HALFBYTE_WEIGHT_H
#define HALFBYTE_WEIGHT_H

#include "halfbyte.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int kind, tiles, n, k, group, groups, half_scales, has_scales, has_offsets;
    const char *data;
    const float *bias;
    float center; /* subtracted from every 4-bit integer code, else 0 */
    float table[16]; /* what 4-bit codes stand for */
    const float *row_scales; /* factors of the rows at hand (quantized inputs), or NULL */
    size_t code_bytes, value_bytes, record_bytes, tile_bytes;
    size_t ahead; /* how far ahead of its use a line is fetched */
} weight;

INLINE vf group_value(const weight *w, const char *at) {
    return w->half_scales ? vf_from_half((const uint16_t *)at) : vf_load((const float *)at);
}

/* Scales of a group, and what element() leaves out. */
INLINE vf group_scale(int kind, const weight *w, const char *at) {
    return kind == W_E4M3 ? group_value(w, at) * 256.0f : group_value(w, at);
}

INLINE size_t element_bytes(int kind) {
    return kind == W_Q8 || kind == W_E4M3 ? 1 : kind == W_F32 ? 4 : 2;
}

/* What nibble() needs to have in a register. */
INLINE vf code_table(const weight *w) {
#if defined(__AVX512F__)
    return vf_load(w->table);
#else
    return vf_set(-w->center);
#endif
}

/* The i-th of eight 4-bit codes as a float; kind is W_Q4 or W_T4. */
INLINE vf nibble(int kind, const weight *w, vf table, vu word, int i) {
#if defined(__AVX512F__)
    /* The code is the index of a 16-entry table: no masking, no conversion. */
    (void)kind, (void)w;
    return (vf)_mm512_permutexvar_ps((__m512i)(word >> (4 * i)), (__m512)table);
#else
    vi code = (vi)((word >> (4 * i)) & 15);
    if (kind == W_Q4) return __builtin_convertvector(code, vf) + table;
#if defined(__AVX2__)
    return (vf)_mm256_i32gather_ps(w->table, (__m256i)code, 4);
#else
    vf q;
    for (int lane = 0; lane < LANES; lane++) q[lane] = w->table[code[lane]];
    return q;
#endif
#endif
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

/* One element of a tile's rows, apart from its scale; see group_scale for float8. */
INLINE vf element(int kind, const char *codes, int k) {
    if (kind == W_Q8) {
#if defined(__AVX512F__)
        __m128i b = _mm_loadu_si128((const __m128i *)(codes + (size_t)k * LANES));
        return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
#else
        vb b;
        memcpy(&b, codes + (size_t)k * LANES, sizeof b);
        return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
    }
    if (kind == W_E4M3) return vf_from_e4m3(codes + (size_t)k * LANES);
    if (kind == W_F16) return vf_from_half((const uint16_t *)codes + (size_t)k * LANES);
    if (kind == W_BF16) return vf_from_bf16((const uint16_t *)codes + (size_t)k * LANES);
    return vf_load((const float *)codes + (size_t)k * LANES);
}

static inline void read_weight(const struct tiled *op, weight *w) {
    static const int bits[] = {[W_Q4] = 4, [W_Q8] = 8, [W_F32] = 32, [W_F16] = 16, [W_BF16] = 16,
                               [W_T4] = 4, [W_E4M3] = 8};
    *w = (weight){.kind = op->kind, .n = op->n, .k = op->k, .group = op->group,
                  .half_scales = op->half_scales, .has_scales = op->has_scales,
                  .has_offsets = op->has_offsets, .center = op->center, .data = op->data,
                  .bias = op->bias};
    for (int i = 0; i < 16; i++)
        w->table[i] = w->kind == W_T4 ? op->table[i] : (float)i - w->center;
    w->tiles = (w->n + LANES - 1) / LANES;
    w->groups = (w->k + w->group - 1) / w->group;
    w->code_bytes = (size_t)w->group * LANES * bits[w->kind] / 8;
    w->value_bytes = LANES * (w->half_scales ? 2 : 4);
    w->record_bytes = w->code_bytes + w->value_bytes * (w->has_scales + w->has_offsets);
    w->tile_bytes = w->record_bytes * w->groups;
    /* A block of four tiles ahead, unless that would push the present one out of the cache. */
    w->ahead = 4 * w->tile_bytes <= 65536 ? 4 * w->tile_bytes : 4096;
}

/* One element as a vector over the rows of a tile, scaled. */
INLINE vf weight_value(const weight *w, int tile, int k) {
    const char *record = w->data + tile * w->tile_bytes + k / w->group * w->record_bytes;
    const char *values = record + w->code_bytes;
    int inside = k % w->group;
    vf q;
    if (w->kind == W_Q4 || w->kind == W_T4) {
        vu word;
        memcpy(&word, record + (size_t)(inside / 8) * sizeof word, sizeof word);
        q = nibble(w->kind, w, code_table(w), word, inside % 8);
    } else {
        q = element(w->kind, record, inside);
    }
    if (!w->has_scales) return q;
    q *= group_scale(w->kind, w, values);
    if (w->has_offsets) q += group_value(w, values + w->value_bytes);
    return q;
}

#endif
