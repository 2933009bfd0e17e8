/* Products of bytes: codes of a weight by rounded activations, summed in integers.
 *
 * Integer sums are exact, so their order and the instructions that make them never show: every
 * form of the library that fuses multiply-adds, every number of rows and both the direct and the
 * blocked product give the same bits. How codes are to be handed over is the form's own choice, see
 * `byte_shift`.
 */
#ifndef HALFBYTE_DOT_H
#define HALFBYTE_DOT_H

#include "weight.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define DOT_UNSIGNED 1 /* unsigned codes by signed activations, four products a step */
#elif defined(__AVX2__)
#define DOT_PAIRS 1 /* unsigned by signed, two products in 16 bits that must not overflow */
#endif

/* What is added to codes before they are multiplied: codes of 8 bits must be signed for one
 * instruction, and signed values of a table unsigned for another. Activations' sums undo it. */
INLINE int byte_shift(int codes) {
#if defined(DOT_UNSIGNED)
    return codes == W_TABLE ? 128 : 0;
#else
    return codes == W_BITS8 ? -128 : 0;
#endif
}

/* Whether shifted codes may be negative. */
INLINE int is_signed(int codes) {
#if defined(DOT_UNSIGNED)
    return (void)codes, 0;
#else
    return codes == W_BITS8 || codes == W_TABLE;
#endif
}

/* What indices of a table stand for, as shifted bytes. */
typedef struct {
    int8_t byte[16];
} byte_table;

/* Entries in steps of the table, rounded; those of tables of bytes and of halves stay as they are.
 * Scales are multiplied by the step in read_head(). */
static inline byte_table shifted_table(const weight *w) {
    byte_table t = {{0}};
    for (int i = 0; w->codes == W_TABLE && i < 16; i++)
        t.byte[i] = (int8_t)((int)rintf(w->table[i] / w->step) + byte_shift(W_TABLE));
    return t;
}

INLINE vu look_up_bytes(const byte_table *table, vu code) {
#if defined(__AVX512BW__)
    __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table->byte));
    return (vu)_mm512_shuffle_epi8(t, (__m512i)code);
#elif defined(__AVX2__)
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table->byte));
    return (vu)_mm256_shuffle_epi8(t, (__m256i)code);
#elif defined(__aarch64__)
    return (vu)vqtbl1q_s8(vld1q_s8(table->byte), (uint8x16_t)code);
#else
    uint8_t c[sizeof code];
    memcpy(c, &code, sizeof c);
    for (size_t i = 0; i < sizeof c; i++) c[i] = (uint8_t)table->byte[c[i]];
    memcpy(&code, c, sizeof c);
    return code;
#endif
}

/* Quad q of part v of a chunk as the products want it. */
INLINE vu shifted_quad(int codes, int bits, const byte_table *table, const char *chunk, int q,
                       int v) {
    vu x = quad(bits, chunk, q, v);
    if (codes == W_TABLE) return look_up_bytes(table, x);
    return codes == W_BITS8 && byte_shift(codes) ? x ^ 0x80808080u : x;
}

/* Four bytes of activations in every lane. */
INLINE vu word_of(const int8_t *x) {
    uint32_t word;
    memcpy(&word, x, 4);
    return (vu){0} + word;
}

#if defined(DOT_PAIRS)
typedef int16_t vp __attribute__((vector_size(LANES * 4)));

/* Sums of two products each. Signed codes give up their sign to the activations. */
INLINE vp dot_pairs(int negative, vu w, vu x) {
#if LANES == 16
    __m512i a = (__m512i)w, b = (__m512i)x;
    if (negative) {
        b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
        a = _mm512_abs_epi8(a);
    }
    return (vp)_mm512_maddubs_epi16(a, b);
#else
    __m256i a = (__m256i)w, b = (__m256i)x;
    if (negative) b = _mm256_sign_epi8(b, a), a = _mm256_abs_epi8(a);
    return (vp)_mm256_maddubs_epi16(a, b);
#endif
}

INLINE vi widen_pairs(vp pairs) {
#if LANES == 16
    return (vi)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1));
#else
    return (vi)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
#endif
}

/* How many sums of two products of a code of `bits` fit 16 bits. */
INLINE int most_pairs(int bits, int negative) {
    return negative ? 1 : bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
}
#else
/* sum + four products. */
INLINE vi dot_four(vi sum, vu w, vu x) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
#else
    for (int j = 0; j < 32; j += 8) sum += ((vi)w << (24 - j) >> 24) * ((vi)x << (24 - j) >> 24);
    return sum;
#endif
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* An instruction multiplies two rows of two quads by two rows of activations. */
enum { JOINED = 2 };

/* How many quads are joined for `rows` rows of activations straight from codes. For two of them
 * joining takes as many instructions as it saves, and a single one would fill half of each. */
INLINE int joined_quads(int rows) { return rows < 4 ? 1 : JOINED; }

/* Words [quad][row] of four rows become [pair of rows][row][quad]. */
INLINE void join_quads(int joined, vu w[]) {
    if (joined == 1) return;
    uint32x4_t first = (uint32x4_t)w[0], second = (uint32x4_t)w[1];
    w[0] = (vu)vzip1q_u32(first, second);
    w[1] = (vu)vzip2q_u32(first, second);
}

/* The activations by which joined quads are multiplied, of as many rows, `stride` bytes apart. */
INLINE vu words_of(int joined, const int8_t *x, size_t stride) {
    if (joined == 1) return word_of(x);
    return (vu)vcombine_s8(vld1_s8(x), vld1_s8(x + stride));
}

/* sum + products; of two rows by two they lie as [row of the weight][row of activations]. */
INLINE vi dot_joined(int joined, vi sum, vu w, vu x) {
    if (joined == 1) return dot_four(sum, w, x);
    return (vi)vmmlaq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}

/* Sums of two pairs of a weight's rows become those of all four, by each row of activations. */
INLINE void part_rows(int joined, vi sum[]) {
    if (joined == 1) return;
    int32x4_t first = (int32x4_t)sum[0], second = (int32x4_t)sum[1];
    sum[0] = (vi)vuzp1q_s32(first, second);
    sum[1] = (vi)vuzp2q_s32(first, second);
}
#else
enum { JOINED = 1 };

INLINE void join_quads(int joined, vu w[]) { (void)joined, (void)w; }
#if !defined(DOT_PAIRS)
INLINE int joined_quads(int rows) { return (void)rows, 1; }

INLINE vu words_of(int joined, const int8_t *x, size_t stride) {
    return (void)joined, (void)stride, word_of(x);
}

INLINE vi dot_joined(int joined, vi sum, vu w, vu x) { return (void)joined, dot_four(sum, w, x); }

INLINE void part_rows(int joined, vi sum[]) { (void)joined, (void)sum; }
#endif
#endif

/* Each lane gets the value of the lane whose number differs in the bit `distance`. */
INLINE vi lanes_apart(vi x, int distance) {
#if defined(__clang__)
    vi apart;
    for (int i = 0; i < LANES; i++) apart[i] = x[i ^ distance];
    return apart;
#else
#if LANES == 16
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
    const vi lane = {0, 1, 2, 3};
#endif
    return __builtin_shuffle(x, lane ^ distance);
#endif
}

/* Every lane gets the sum, or the largest, of all lanes. */
INLINE vi sum_lanes(vi x) {
#pragma GCC unroll 4
    for (int d = LANES / 2; d; d /= 2) x += lanes_apart(x, d);
    return x;
}

INLINE vi most_lanes(vi x) {
#pragma GCC unroll 4
    for (int d = LANES / 2; d; d /= 2) {
        vi other = lanes_apart(x, d);
        x = (vi)vf_pick(other > x, (vf)other, (vf)x);
    }
    return x;
}

#endif
