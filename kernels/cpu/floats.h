/* Codes of a weight as floats, apart from their scales. */
#ifndef HALFBYTE_FLOATS_H
#define HALFBYTE_FLOATS_H

#include "weight.h"

/* What 4-bit codes stand for, where that is looked up. */
typedef struct {
    float value[16];
} float_table;

static inline float_table table_of(const weight *w) {
    float_table t;
    for (int i = 0; i < 16; i++) t.value[i] = w->table ? w->table[i] : (float)(i - w->center);
    return t;
}

#if defined(__AVX512F__)
#define LOOKED_UP(codes) ((codes) == W_TABLE || (codes) == W_BITS4)
#else
#define LOOKED_UP(codes) ((codes) == W_TABLE)
#endif

/* The entry of the lowest four bits of each lane; those above do not count. */
INLINE vf look_up(const float_table *table, vu code) {
#if defined(__AVX512F__)
    return (vf)_mm512_permutexvar_ps((__m512i)code, _mm512_loadu_ps(table->value));
#elif defined(__AVX2__)
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table->value), (__m256i)code);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table->value + 8), (__m256i)code);
    return (vf)_mm256_blendv_ps(low, high, (__m256)(code << 28));
#else
    vf q;
    for (int i = 0; i < LANES; i++) q[i] = table->value[code[i] & 15];
    return q;
#endif
}

/* Columns 4 q to 4 q + 3 of part v of a chunk; for float8 see read_head(), too. */
INLINE void four_values(const weight *w, int codes, int bits, const float_table *table,
                        const char *chunk, int q, int v, vf out[4]) {
    if (bits == 32 || bits == 16 || codes == W_E4M3) {
        for (int j = 0; j < 4; j++) {
            size_t at = (size_t)(4 * q + j) * TILE + v * LANES;
            if (codes == W_E4M3) out[j] = vf_from_e4m3(chunk + at);
            else if (codes == W_F16) out[j] = vf_from_half((const uint16_t *)chunk + at);
            else if (codes == W_BF16) out[j] = vf_from_bf16((const uint16_t *)chunk + at);
            else out[j] = vf_load((const float *)chunk + at);
        }
    } else if (LOOKED_UP(codes)) {
        vu line = line_of(chunk + q % 4 * LINE, v);
        for (int j = 0; j < 4; j++) out[j] = look_up(table, line >> (8 * j + q / 4 * 4));
    } else {
        vu x = quad(bits, chunk, q, v);
        for (int j = 0; j < 4; j++) {
            vi code = (vi)(j == 3 ? x >> 24 : (x >> 8 * j) & 255);
            out[j] = __builtin_convertvector(code, vf) - (float)w->center;
        }
    }
}

#endif
