/* A packed weight matrix [N, K] and how to read it.
 *
 * Layout: N is cut into tiles of 16 rows, one per vector lane, so no horizontal sums are needed.
 *   4-bit codes: uint32 [tile][K / 8][lane], eight consecutive K in a word, first in the low bits
 *   8-bit codes: int8   [tile][K][lane]
 *   dense:       float, half or bfloat16 [tile][K][lane]
 *   scales, offsets: half or float [tile][group][lane]
 */
#ifndef HALFBYTE_WEIGHT_H
#define HALFBYTE_WEIGHT_H

#include "halfbyte.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int kind, tiles, n, k, group, groups, half_scales;
    const char *codes;
    const char *scales, *offsets;
    const float *bias;
    float center; /* subtracted from every code (4-bit symmetric), else 0 */
    size_t tile_bytes, ahead; /* how far ahead of its use a line is fetched */
} weight;

static inline vf group_value(const char *base, int half, size_t index) {
    if (half) return vf_from_half((const uint16_t *)base + index * LANES);
    return vf_load((const float *)base + index * LANES);
}

INLINE size_t element_bytes(int kind) { return kind == W_Q8 ? 1 : kind == W_F32 ? 4 : 2; }

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
    if (kind == W_F16) return vf_from_half((const uint16_t *)codes + (size_t)k * LANES);
    if (kind == W_BF16) return vf_from_bf16((const uint16_t *)codes + (size_t)k * LANES);
    return vf_load((const float *)codes + (size_t)k * LANES);
}

static inline void read_weight(const hb_op *op, weight *w) {
    *w = (weight){.kind = op->n[0], .n = op->n[2], .k = op->n[3], .group = op->n[4],
                  .half_scales = op->n[5], .center = op->f[0], .codes = op->p[0],
                  .scales = op->p[1], .offsets = op->p[2], .bias = op->p[3]};
    static const int bits[] = {4, 8, 32, 16, 16};
    w->tiles = (w->n + LANES - 1) / LANES;
    w->groups = (w->k + w->group - 1) / w->group;
    w->tile_bytes = (size_t)w->k * LANES * bits[w->kind] / 8;
    w->ahead = w->tile_bytes*4;
}

/* One element as a vector over the 16 rows of a tile, scaled. */
INLINE vf weight_value(const weight *w, int tile, int k) {
    const char *codes = w->codes + (size_t)tile * w->tile_bytes;
    vf q;
    if (w->kind == W_Q4) {
        vu word;
        memcpy(&word, codes + (size_t)(k / 8) * 64, 64);
        q = __builtin_convertvector((vi)((word >> (4 * (k % 8))) & 15), vf) - w->center;
    } else {
        q = element(w->kind, codes, k);
    }
    if (!w->scales) return q;
    size_t index = (size_t)tile * w->groups + k / w->group;
    q *= group_value(w->scales, w->half_scales, index);
    if (w->offsets) q += group_value(w->offsets, w->half_scales, index);
    return q;
}

#endif
