/* AVX-512, VNNI and AMX for compilers and processors that have AVX2: for tests alone.
 *
 * Included before a source of the C kernels (-include), with EMULATE_AVX512, EMULATE_VNNI, EMULATE_AMX
 * or EMULATE_AVXVNNI defined: it sets the macros of that form, and puts plain C in the place of the
 * instructions that the kernels use. What each does is taken from the operation sections of Intel's
 * Software Developer's Manual. A kernel that comes to use another one does not compile here
 * ("target specific option mismatch") until that is added. What is no more than a 256-bit instruction on
 * twice as many lanes is two of those. emulated_check.c has a test of each.
 *
 * Speed is meaningless, and so is alignment: nothing here faults on it.
 */
#ifndef HALFBYTE_EMULATED_H
#define HALFBYTE_EMULATED_H

/* What the kernels include comes first, while macros are what headers expect. */
#include <errno.h>
#include <immintrin.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(EMULATE_AMX)
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
#define __AVX512BF16__ 1
#define EMULATE_VNNI
#endif
#if defined(EMULATE_VNNI)
#define __AVX512VNNI__ 1
#define EMULATE_AVX512
#endif
#if defined(EMULATE_AVX512)
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512CD__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#endif
#if defined(EMULATE_AVXVNNI)
#define __AVXVNNI__ 1
#endif

#define EMU static inline __attribute__((always_inline, unused))

typedef float emu_f32 __attribute__((vector_size(64)));
typedef int32_t emu_i32 __attribute__((vector_size(64)));
typedef uint32_t emu_u32 __attribute__((vector_size(64)));
typedef int16_t emu_i16 __attribute__((vector_size(64)));
typedef int8_t emu_i8 __attribute__((vector_size(64)));

typedef union {
    __m512 f;
    __m512i i;
    __m256 half_f[2];
    __m256i half_i[2];
    __m128i half_h[4];
    float f32[16];
    int32_t i32[16];
    uint32_t u32[16];
    int16_t i16[32];
    int8_t i8[64];
    uint8_t u8[64];
} emu_512;

EMU __m512 emu_loadu_ps(const void *p) {
    emu_512 r;
    memcpy(&r, p, sizeof r);
    return r.f;
}

EMU __m512i emu_setzero(void) { return (__m512i){0}; }

EMU __m512i emu_set1_epi16(short x) { return (__m512i)((emu_i16){0} + x); }

EMU __m512i emu_broadcast_i32x4(__m128i x) {
    emu_512 r;
    for (int i = 0; i < 4; i++) r.half_h[i] = x;
    return r.i;
}

EMU __m512 emu_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    emu_512 x = {.f = a}, y = {.f = b}, z = {.f = c}, r;
    for (int i = 0; i < 2; i++) r.half_f[i] = _mm256_fmadd_ps(x.half_f[i], y.half_f[i], z.half_f[i]);
    return r.f;
}

/* No instruction: what GCC and Clang make of it, halves added until one is left. */
EMU float emu_reduce_add_ps(__m512 a) {
    emu_512 x = {.f = a};
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x.f32[i] += x.f32[i + width];
    return x.f32[0];
}

EMU __m512 emu_cvtph_ps(__m256i h) {
    emu_512 r;
    r.half_f[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
    r.half_f[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
    return r.f;
}

/* Rounding is said by the instruction; only to nearest is used. */
#define emu_cvtps_ph(a, rounding)                                                               \
    ((void)sizeof(char[(rounding) == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) ? 1 : -1]), \
     emu_cvtps_ph_nearest(a))

EMU __m256i emu_cvtps_ph_nearest(__m512 a) {
    emu_512 x = {.f = a};
    __m128i low = _mm256_cvtps_ph(x.half_f[0], _MM_FROUND_TO_NEAREST_INT);
    __m128i high = _mm256_cvtps_ph(x.half_f[1], _MM_FROUND_TO_NEAREST_INT);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

EMU __m512 emu_cvtepi32_ps(__m512i a) {
    return (__m512)__builtin_convertvector((emu_i32)a, emu_f32);
}

EMU __m512i emu_cvtepi8_epi32(__m128i a) {
    int8_t x[16];
    emu_512 r;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 16; i++) r.i32[i] = x[i];
    return r.i;
}

EMU __m512i emu_cvtepu16_epi32(__m256i a) {
    uint16_t x[16];
    emu_512 r;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 16; i++) r.u32[i] = x[i];
    return r.i;
}

EMU __m512i emu_slli_epi32(__m512i a, unsigned count) {
    return count > 31 ? emu_setzero() : (__m512i)((emu_u32)a << count);
}

/* The low four bits of each index count. */
EMU __m512 emu_permutexvar_ps(__m512i index, __m512 a) {
    emu_512 x = {.f = a}, at = {.i = index}, r;
    for (int i = 0; i < 16; i++) r.f32[i] = x.f32[at.u32[i] & 15];
    return r.f;
}

/* Within each 16 bytes; 0 where the index has its highest bit. */
EMU __m512i emu_shuffle_epi8(__m512i a, __m512i index) {
    emu_512 x = {.i = a}, at = {.i = index}, r;
    for (int i = 0; i < 64; i++) r.u8[i] = at.u8[i] & 128 ? 0 : x.u8[(i & 48) + (at.u8[i] & 15)];
    return r.i;
}

/* -128 becomes 128, unsigned. */
EMU __m512i emu_abs_epi8(__m512i a) {
    emu_512 x = {.i = a}, r;
    for (int i = 0; i < 64; i++) r.u8[i] = (uint8_t)(x.i8[i] < 0 ? -x.i8[i] : x.i8[i]);
    return r.i;
}

EMU __mmask64 emu_movepi8_mask(__m512i a) {
    emu_512 x = {.i = a};
    __mmask64 r = 0;
    for (int i = 0; i < 64; i++) r |= (__mmask64)(x.u8[i] >> 7) << i;
    return r;
}

EMU __m512i emu_mask_sub_epi8(__m512i source, __mmask64 mask, __m512i a, __m512i b) {
    emu_512 s = {.i = source}, x = {.i = a}, y = {.i = b}, r;
    for (int i = 0; i < 64; i++) r.u8[i] = mask >> i & 1 ? (uint8_t)(x.u8[i] - y.u8[i]) : s.u8[i];
    return r.i;
}

/* Unsigned by signed bytes: sums of two, which stop at the ends of 16 bits. */
EMU __m512i emu_maddubs_epi16(__m512i a, __m512i b) {
    emu_512 x = {.i = a}, y = {.i = b}, r;
    for (int i = 0; i < 32; i++) {
        int sum = x.u8[2 * i] * y.i8[2 * i] + x.u8[2 * i + 1] * y.i8[2 * i + 1];
        r.i16[i] = (int16_t)(sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum);
    }
    return r.i;
}

EMU __m512i emu_madd_epi16(__m512i a, __m512i b) {
    emu_512 x = {.i = a}, y = {.i = b}, r;
    for (int i = 0; i < 16; i++)
        r.u32[i] = (uint32_t)(x.i16[2 * i] * y.i16[2 * i]) +
                   (uint32_t)(x.i16[2 * i + 1] * y.i16[2 * i + 1]);
    return r.i;
}

/* Four products of unsigned bytes of a by signed ones of b are added; the sum wraps around
 * (VPDPBUSDS is the one that saturates). */
EMU uint32_t emu_dpbusd(uint32_t sum, const uint8_t *a, const int8_t *b) {
    for (int i = 0; i < 4; i++) sum += (uint32_t)(a[i] * b[i]);
    return sum;
}

EMU __m512i emu_dpbusd_512(__m512i sum, __m512i a, __m512i b) {
    emu_512 x = {.i = a}, y = {.i = b}, r = {.i = sum};
    for (int i = 0; i < 16; i++) r.u32[i] = emu_dpbusd(r.u32[i], x.u8 + 4 * i, y.i8 + 4 * i);
    return r.i;
}

EMU __m256i emu_dpbusd_256(__m256i sum, __m256i a, __m256i b) {
    uint32_t r[8];
    uint8_t x[32];
    int8_t y[32];
    memcpy(r, &sum, sizeof r), memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y);
    for (int i = 0; i < 8; i++) r[i] = emu_dpbusd(r[i], x + 4 * i, y + 4 * i);
    memcpy(&sum, r, sizeof r);
    return sum;
}

#if defined(EMULATE_AVX512)
#undef _mm512_cvtps_ph /* macros, where the compiler does not optimize */
#undef _mm512_slli_epi32
#define _mm512_abs_epi8 emu_abs_epi8
#define _mm512_broadcast_i32x4 emu_broadcast_i32x4
#define _mm512_cvtepi32_ps emu_cvtepi32_ps
#define _mm512_cvtepi8_epi32 emu_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emu_cvtepu16_epi32
#define _mm512_cvtph_ps emu_cvtph_ps
#define _mm512_cvtps_ph emu_cvtps_ph
#define _mm512_fmadd_ps emu_fmadd_ps
#define _mm512_loadu_ps emu_loadu_ps
#define _mm512_madd_epi16 emu_madd_epi16
#define _mm512_maddubs_epi16 emu_maddubs_epi16
#define _mm512_mask_sub_epi8 emu_mask_sub_epi8
#define _mm512_movepi8_mask emu_movepi8_mask
#define _mm512_permutexvar_ps emu_permutexvar_ps
#define _mm512_reduce_add_ps emu_reduce_add_ps
#define _mm512_set1_epi16 emu_set1_epi16
#define _mm512_setzero_si512 emu_setzero
#define _mm512_shuffle_epi8 emu_shuffle_epi8
#define _mm512_slli_epi32 emu_slli_epi32
#endif
#if defined(EMULATE_VNNI)
#define _mm512_dpbusd_epi32 emu_dpbusd_512
#endif
#if defined(EMULATE_AVXVNNI)
#define _mm256_dpbusd_avx_epi32 emu_dpbusd_256
#endif
#if defined(EMULATE_AMX)
#include "emulated_amx.h"
#endif
#if defined(EMULATE_AVX512)
/* The one of x86-64 asks for a whole vector to be in a register, for speed alone. */
#define __asm__(...) ((void)0)
#endif

#endif
