/* Each instruction of emulated.h against the processor's own of 256 bits, or, where there is none,
 * against its meaning worked out in another way. Prints what is wrong and exits with 1.
 *
 *     emulated_check SEED */
#define EMULATE_AMX
#define EMULATE_AVXVNNI
#include "emulated.h"

#include <signal.h>
#include <sys/wait.h>

enum { DRAWS = 2000 };

static uint64_t state;
static int failures;

static uint32_t draw(void) { /* Marsaglia's xorshift64, and a product */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (uint32_t)(state * 2685821657736338717u >> 32);
}

/* Bytes of which many are at the ends of their range. */
static emu_512 bytes(void) {
    static const uint8_t ends[] = {0, 1, 127, 128, 129, 255};
    emu_512 x;
    for (int i = 0; i < 64; i++) x.u8[i] = draw() % 2 ? (uint8_t)draw() : ends[draw() % 6];
    return x;
}

static emu_512 floats(void) {
    emu_512 x;
    for (int i = 0; i < 16; i++) x.f32[i] = ldexpf((float)draw() - 2147483648.0f, (int)(draw() % 40) - 50);
    return x;
}

static void expect(int right, const char *what) {
    if (right) return;
    failures++;
    printf("%s is not what it should be\n", what);
}

static void same(const void *got, const void *want, size_t size, const char *what) {
    expect(!memcmp(got, want, size), what);
}

#define HALVES(name, call, real)                                                                \
    do {                                                                                        \
        emu_512 got = {.i = (__m512i)(call)}, want;                                             \
        for (int h = 0; h < 2; h++) want.half_i[h] = (__m256i)(real);                           \
        same(&got, &want, sizeof got, name);                                                    \
    } while (0)

static void check_bytes(void) {
    for (int turn = 0; turn < DRAWS; turn++) {
        emu_512 a = bytes(), b = bytes(), c = bytes();
        HALVES("shuffle_epi8", _mm512_shuffle_epi8(a.i, b.i), _mm256_shuffle_epi8(a.half_i[h], b.half_i[h]));
        HALVES("abs_epi8", _mm512_abs_epi8(a.i), _mm256_abs_epi8(a.half_i[h]));
        HALVES("maddubs_epi16", _mm512_maddubs_epi16(a.i, b.i),
               _mm256_maddubs_epi16(a.half_i[h], b.half_i[h]));
        HALVES("madd_epi16", _mm512_madd_epi16(a.i, b.i), _mm256_madd_epi16(a.half_i[h], b.half_i[h]));
        HALVES("slli_epi32", _mm512_slli_epi32(a.i, turn % 40), _mm256_slli_epi32(a.half_i[h], turn % 40));
        HALVES("cvtepi8_epi32", _mm512_cvtepi8_epi32(a.half_h[0]),
               _mm256_cvtepi8_epi32(h ? _mm_srli_si128(a.half_h[0], 8) : a.half_h[0]));
        HALVES("cvtepu16_epi32", _mm512_cvtepu16_epi32(a.half_i[0]), _mm256_cvtepu16_epi32(a.half_h[h]));
        HALVES("cvtepi32_ps", _mm512_cvtepi32_ps(a.i), _mm256_cvtepi32_ps(a.half_i[h]));
        HALVES("broadcast_i32x4", _mm512_broadcast_i32x4(a.half_h[1]),
               _mm256_broadcastsi128_si256(a.half_h[1]));
        HALVES("set1_epi16", _mm512_set1_epi16(a.i16[0]), _mm256_set1_epi16(a.i16[0]));
        HALVES("setzero", _mm512_setzero_si512(), _mm256_setzero_si256());
        HALVES("loadu_ps", _mm512_loadu_ps(a.f32), _mm256_loadu_ps(a.f32 + 8 * h));
        /* The lower eight floats are looked up where bit 3 is clear, as the kernels do with AVX2. */
        HALVES("permutexvar_ps", _mm512_permutexvar_ps(b.i, a.f),
               _mm256_blendv_ps(_mm256_permutevar8x32_ps(a.half_f[0], b.half_i[h]),
                                _mm256_permutevar8x32_ps(a.half_f[1], b.half_i[h]),
                                (__m256)_mm256_slli_epi32(b.half_i[h], 28)));
        /* With the signs of c as the mask. */
        HALVES("mask_sub_epi8", _mm512_mask_sub_epi8(a.i, _mm512_movepi8_mask(c.i), b.i, a.i),
               _mm256_blendv_epi8(a.half_i[h], _mm256_sub_epi8(b.half_i[h], a.half_i[h]), c.half_i[h]));
        uint64_t mask = (uint32_t)_mm256_movemask_epi8(a.half_i[0]);
        mask |= (uint64_t)(uint32_t)_mm256_movemask_epi8(a.half_i[1]) << 32;
        expect(_mm512_movepi8_mask(a.i) == mask, "movepi8_mask");
        /* Four products in 16 bits each way, which does not saturate when halves of a byte are
         * multiplied: a = high * 16 + low. */
        for (int h = 0; h < 2; h++) {
            __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1), x = a.half_i[h];
            __m256i low = _mm256_and_si256(x, nibble);
            __m256i high = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble), sum = c.half_i[h];
            low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, b.half_i[h]), one);
            high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, b.half_i[h]), one);
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(low, _mm256_slli_epi32(high, 4)));
            emu_512 got = {.i = _mm512_dpbusd_epi32(c.i, a.i, b.i)};
            same(&got.half_i[h], &sum, sizeof sum, "dpbusd of 512 bits");
            got.half_i[h] = _mm256_dpbusd_avx_epi32(c.half_i[h], x, b.half_i[h]);
            same(&got.half_i[h], &sum, sizeof sum, "dpbusd of 256 bits");
        }
    }
}

/* A half-precision number by its definition. */
static float half_value(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    float size = exponent == 31 ? fraction ? NAN : INFINITY
                                : ldexpf((float)(exponent ? 1024 + fraction : fraction),
                                         (exponent ? exponent : 1) - 25);
    return h & 0x8000 ? -size : size;
}

static uint16_t to_half(float x) {
    emu_512 a = {.f = {0}};
    uint16_t h[16];
    a.f32[11] = x;
    __m256i got = _mm512_cvtps_ph(a.f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    memcpy(h, &got, sizeof h);
    return h[11];
}

static void check_floats(void) {
    for (int h = 0; h < 0x7C00; h++) {
        uint16_t x[16] = {0};
        __m256i in;
        emu_512 got;
        x[13] = (uint16_t)h, x[2] = (uint16_t)(h | 0x8000);
        memcpy(&in, x, sizeof in);
        got.f = _mm512_cvtph_ps(in);
        float own = half_value((uint16_t)h), next = half_value((uint16_t)(h + 1));
        expect(got.f32[13] == own && got.f32[2] == -own && got.f32[0] == 0, "cvtph_ps");
        if (h == 0x7BFF) next = 65536; /* where infinity would be */
        float middle = (own + next) / 2;
        expect(to_half(own) == h && to_half(-own) == (h | 0x8000), "cvtps_ph");
        expect(to_half(middle) == h + h % 2, "cvtps_ph between two numbers");
        expect(to_half(nextafterf(middle, 0)) == h, "cvtps_ph below the middle");
        expect(to_half(nextafterf(middle, INFINITY)) == h + 1, "cvtps_ph above the middle");
    }
    expect(isnan(half_value(to_half(NAN))), "cvtps_ph of no number");
    for (int turn = 0; turn < DRAWS; turn++) {
        emu_512 a = floats(), b = floats(), c = floats(), got = {.f = _mm512_fmadd_ps(a.f, b.f, c.f)};
        for (int i = 0; i < 16; i++) expect(got.f32[i] == fmaf(a.f32[i], b.f32[i], c.f32[i]), "fmadd_ps");
        float tree[4];
        for (int i = 0; i < 4; i++)
            tree[i] = (a.f32[i] + a.f32[i + 8]) + (a.f32[i + 4] + a.f32[i + 12]);
        expect(_mm512_reduce_add_ps(a.f) == (tree[0] + tree[2]) + (tree[1] + tree[3]), "reduce_add_ps");
    }
}

typedef struct {
    uint8_t palette, zero[15];
    uint16_t bytes[16];
    uint8_t rows[16];
} configuration;

/* Tiles 0 [m, n], 1 [m, k], 2 [k, n], of words. */
static configuration shapes(int m, int k, int n) {
    configuration c = {.palette = 1};
    c.rows[0] = c.rows[1] = (uint8_t)m, c.rows[2] = (uint8_t)k;
    c.bytes[0] = c.bytes[2] = (uint16_t)(4 * n), c.bytes[1] = (uint16_t)(4 * k);
    return c;
}

static uint16_t bf16(float x) {
    uint16_t h;
    memcpy(&h, (char *)&x + 2, 2);
    return h;
}

/* Bytes, or bfloat16 numbers from -255 to 255. */
static void put(void *to, size_t size, int way) {
    for (size_t i = 0; i < size; i += 2) {
        uint16_t h = way == 2 ? bf16((float)(draw() % 511) - 255) : (uint16_t)draw();
        memcpy((char *)to + i, &h, 2);
    }
}

/* Products of whole numbers: sums in any order are the same. */
static void check_tiles(void) {
    static uint8_t a[16][96], b[16][80];
    static uint32_t start[16][20], got[16][20];
    for (int turn = 0; turn < 300; turn++) {
        int m = 1 + (int)(draw() % 16), k = 1 + (int)(draw() % 16), n = 1 + (int)(draw() % 16);
        int way = turn % 3; /* signed by signed, signed by unsigned, bfloat16 */
        put(a, sizeof a, way), put(b, sizeof b, way);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 20; j++) {
                float whole = (float)(draw() % 65536);
                start[i][j] = draw();
                if (way == 2) memcpy(&start[i][j], &whole, 4);
            }
        configuration c = shapes(m, k, n);
        memset(got, 0xEE, sizeof got);
        _tile_loadconfig(&c);
        _tile_loadd(0, start, sizeof start[0]);
        _tile_loadd(1, a, sizeof a[0]);
        _tile_loadd(2, b, sizeof b[0]);
        if (way == 0) _tile_dpbssd(0, 1, 2);
        else if (way == 1) _tile_dpbsud(0, 1, 2);
        else _tile_dpbf16ps(0, 1, 2);
        _tile_stored(0, got, sizeof got[0]);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 20; j++) {
                uint32_t want = 0xEEEEEEEE;
                if (i < m && j < n && way < 2) {
                    int64_t sum = start[i][j];
                    for (int q = 0; q < 4 * k; q++) {
                        uint8_t y = b[q / 4][4 * j + q % 4];
                        sum += (int8_t)a[i][q] * (way ? (int)y : (int)(int8_t)y);
                    }
                    want = (uint32_t)sum;
                } else if (i < m && j < n) {
                    float sum;
                    memcpy(&sum, &start[i][j], 4);
                    for (int q = 0; q < 2 * k; q++) {
                        float x = 0, y = 0;
                        memcpy((char *)&x + 2, a[i] + 2 * q, 2);
                        memcpy((char *)&y + 2, b[q / 2] + 4 * j + q % 2 * 2, 2);
                        sum += x * y;
                    }
                    memcpy(&want, &sum, 4);
                }
                expect(got[i][j] == want, way == 0 ? "dpbssd" : way == 1 ? "dpbsud" : "dpbf16ps");
            }
        _tile_zero(0);
        _tile_stored(0, got, sizeof got[0]);
        expect(got[0][0] == 0 && got[m - 1][n - 1] == 0, "tile_zero");
        _tile_release();
    }
}

/* One element of a bfloat16 product of two steps of k. */
static float element(float start, const float x[4], const float y[4]) {
    configuration c = shapes(1, 2, 1);
    uint16_t a[4], b[4];
    for (int i = 0; i < 4; i++) a[i] = bf16(x[i]), b[i] = bf16(y[i]);
    _tile_loadconfig(&c);
    _tile_loadd(0, &start, 4);
    _tile_loadd(1, a, 8);
    _tile_loadd(2, b, 4);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, &start, 4);
    _tile_release();
    return start;
}

static void check_rounding(void) {
    const float big = 0x1p24f, one[4] = {1, 1, 1, 1}, tiny[4] = {0x1p-127f, 0, 0x1p-63f, 0};
    /* Even ones: 2**24 + 1 is 2**24; odd ones: 0 + 1; their sum 2**24 + 1, too, is 2**24. */
    expect(element(0, (float[]){big, 0, 1, 1}, one) == big, "dpbf16ps, sums of even and odd ones");
    /* Odd ones: 1 + 1; 2**24 + 2 is a number, which one sum in the order of k would miss. */
    expect(element(0, (float[]){big, 1, 0, 1}, one) == big + 2, "dpbf16ps, even and odd ones apart");
    expect(element(1, (float[]){big, 0, -big, 0}, one) == 1, "dpbf16ps, what is there comes last");
    expect(element(0, tiny, (float[]){0x1p100f, 0, 0x1p-66f, 0}) == 0, "dpbf16ps of denormals");
    expect(signbit(element(-0x1p-140f, (float[]){0, 0, 0, 0}, one)) == 0, "dpbf16ps, zeros");
}

/* What a fault is on a processor must end a process. */
static void refused(const char *what, configuration c, int product) {
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        fclose(stderr);
        _tile_loadconfig(&c);
        if (product == 1) _tile_dpbssd(0, 1, 2);
        if (product == 2) _tile_zero(3);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, what);
}

static void check_faults(void) {
    configuration c = shapes(16, 8, 16);
    refused("leave of the system", c, 0);
    expect(syscall(SYS_arch_prctl, 0x1023, 17) == -1, "leave for another feature");
    expect(syscall(SYS_arch_prctl, 0x1023, 18) == 0, "leave for tile data");
    refused("a tile without a shape", c, 2);
    c.rows[2] = 7;
    refused("a product of tiles that do not fit", c, 1);
    c = shapes(16, 8, 16), c.rows[0] = 17;
    refused("17 rows", c, 0);
    c = shapes(16, 8, 16), c.zero[3] = 1;
    refused("a reserved byte", c, 0);
    c = shapes(16, 8, 16), c.rows[9] = 1, c.bytes[9] = 4;
    refused("a ninth tile", c, 0);
    c = shapes(16, 8, 16), c.palette = 0;
    refused("tiles without a palette", c, 1);
}

int main(int argc, char **argv) {
    state = strtoull(argc > 1 ? argv[1] : "1", NULL, 10) * 2 + 1;
    check_bytes();
    check_floats();
    check_faults();
    check_tiles();
    check_rounding();
    return failures > 0;
}
