/* Halfbyte CPU kernels: shared types and vector helpers.
 *
 * A step is an array of `hb_op`, run by all threads of a pool in lockstep with a barrier after
 * each op: one parallel region for a whole step, because a fork and join per op costs more than
 * the arithmetic. All activations are float32.
 *
 * Exactness: every output element is computed by one thread in one fixed order of K (and of
 * keys), whatever the number of rows, threads or neighbours. Nothing here may reassociate.
 *
 * Vectors are GCC/Clang vector extensions as wide as the machine's registers: wider ones would
 * live in memory. AVX-512 forms are given where they are better.
 */
#ifndef HALFBYTE_H
#define HALFBYTE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "ops.h" /* made from ops.py: the ops and their fields */

/* Floats in a vector, and rows in a tile of a packed weight. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int8_t vb __attribute__((vector_size(LANES)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
typedef int16_t vs __attribute__((vector_size(LANES * 2)));

/* Memory of the calling thread for the duration of an op; grown, never shrunk. */
float *hb_scratch(size_t floats);

/* Whether an op is a product that waits for its weight, and what thread `tid` is to read of it. */
int hb_reads_weight(const hb_op *op, int tid, int threads, const char **data, size_t *bytes);

/* [begin, end) of `count` items for thread `tid`. */
static inline void hb_share(int count, int tid, int threads, int *begin, int *end) {
    *begin = (int)((int64_t)count * tid / threads);
    *end = (int)((int64_t)count * (tid + 1) / threads);
}

static inline vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* All lanes x: 0 + x would not be -0, x - 0 is, so this needs no addition. */
static inline vf vf_set(float x) { return x - (vf){0}; }

/* a * b + c, fused wherever the machine can. Multiply-adds are always written so: left to itself
 * (-ffp-contract) the compiler fuses in one copy of a function and not in another, as tuning for
 * some processors advises, and then a row's bits depend on how many rows stand beside it. */
static inline vf vf_fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && LANES == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (vf)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* The same of single numbers. */
static inline float f_fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Lane by lane: a where the mask is set, else b. */
static inline vf vf_pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

static inline float vf_sum(vf v) {
    /* A fixed tree, so that the result does not depend on the instruction set. */
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#endif
    float s[LANES];
    memcpy(s, &v, sizeof v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}

static inline float vf_max(vf v) {
    float s[LANES], m;
    memcpy(s, &v, sizeof v);
    m = s[0];
    for (int i = 1; i < LANES; i++) m = s[i] > m ? s[i] : m;
    return m;
}

/* LANES half-precision numbers to float. */
static inline vf vf_from_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__aarch64__)
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    /* Bits moved to where a float has them, then the exponent's bias put right by an exact
     * product, which makes the subnormal ones normal; what it must not touch has all ones there. */
    vh h;
    memcpy(&h, p, sizeof h);
    vu bits = __builtin_convertvector(h, vu), size = (bits & 0x7FFF) << 13;
    vu odd = (vu)(size >= 0x7C00u << 13) & 0x7F800000u;
    return (vf)((vu)((vf)size * 0x1p112f) | odd | (bits & 0x8000) << 16);
#endif
}

/* LANES bfloat16 numbers to float: the upper half of the bits. */
static inline vf vf_from_bf16(const uint16_t *p) {
#if defined(__AVX512F__)
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (vf)_mm512_slli_epi32(wide, 16);
#else
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

/* Floats to half-precision numbers, rounded to nearest, ties to even. */
static inline vh vf_to_half(vf v) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    return (vh)vcvt_f16_f32((float32x4_t)v);
#else
    vu bits = (vu)v, size = bits & 0x7FFFFFFF;
    /* The last bit of 0.5 is worth a half's smallest step: a sum with it rounds what is below
     * 2**-14. All else rounds by an integer addition, which may carry into the exponent. */
    vu small = (vu)((vf)size + 0.5f) - 0x3F000000u;
    vu normal = (size + 0xFFF + ((size >> 13) & 1) - (112u << 23)) >> 13;
    vu half = (vu)vf_pick((vi)(size < 0x38800000u), (vf)small, (vf)normal);
    half = (vu)vf_pick((vi)(size >= 0x477FF000u), (vf)((vu){0} + 0x7C00u), (vf)half);
    half = (vu)vf_pick((vi)(size > 0x7F800000u), (vf)((vu){0} + 0x7E00u), (vf)half);
    return __builtin_convertvector(half | (bits >> 16 & 0x8000), vh);
#endif
}

/* Floats to the bits of bfloat16, rounded to nearest, ties to even. */
static inline vu vf_to_bf16(vf v) {
    vu bits = (vu)v;
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

/* Interleave the lower, or the upper, halves of two vectors. */
#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
static inline vf vf_low(vf a, vf b) { return __builtin_shufflevector(a, b, LOW); }
static inline vf vf_high(vf a, vf b) { return __builtin_shufflevector(a, b, HIGH); }
#else
static inline vf vf_low(vf a, vf b) { return __builtin_shuffle(a, b, (vi){LOW}); }
static inline vf vf_high(vf a, vf b) { return __builtin_shuffle(a, b, (vi){HIGH}); }
#endif

/* e**x for x <= 88, relative error below 2e-7; 0 below -87. Cody-Waite reduction by ln 2 and a
 * degree-6 polynomial. */
static inline vf vf_exp(vf x) {
    const vf low = vf_set(-87.0f), round = vf_set(12582912.0f);
    vi under = x < low;
    x = (vf)(((vi)low & under) | ((vi)x & ~under));
    vf n = vf_fma(x, vf_set(1.44269504f), round);
    vi power = (vi)n - (vi)round;
    n -= round;
    vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf y = vf_fma(r, vf_set(1.9875691500e-4f), vf_set(1.3981999507e-3f));
    y = vf_fma(y, r, vf_set(8.3334519073e-3f));
    y = vf_fma(y, r, vf_set(4.1665795894e-2f));
    y = vf_fma(y, r, vf_set(1.6666665459e-1f));
    y = vf_fma(y, r, vf_set(5.0000001201e-1f));
    y = vf_fma(y * r, r, r) + 1.0f;
    vf scale = (vf)((power + 127) << 23);
    return (vf)((vi)(y * scale) & ~under);
}

/* g * sigmoid(s), 0 for s below -88, where vf_exp(-s) ends and the sigmoid is under 1e-38. */
static inline vf vf_sigmoid_mul(vf g, vf s) {
    vi under = s < -88.0f;
    return (vf)((vi)(g / (1.0f + vf_exp(-s))) & ~under);
}

/* tanh, relative error below 3e-7: a polynomial near 0 (Moshier's Cephes, tanhf), else by the
 * exponential. */
static inline vf vf_tanh(vf x) {
    vf z = x * x, size = (vf)((vi)x & 0x7FFFFFFF);
    vf p = vf_fma(z, vf_set(-5.70498872745e-3f), vf_set(2.06390887954e-2f));
    p = vf_fma(p, z, vf_set(-5.37397155531e-2f));
    p = vf_fma(p, z, vf_set(1.33314422036e-1f));
    p = vf_fma(p, z, vf_set(-3.33332819422e-1f));
    vf small = vf_fma(p * z, x, x);
    vf e = vf_exp(size * -2.0f);
    vf large = (1.0f - e) / (1.0f + e);
    large = (vf)((vi)large | ((vi)x & INT32_MIN));
    return vf_pick(size < 0.625f, small, large);
}

#endif
