/* y [T, N] = x [T, K] W^T for many rows: bfloat16 inputs, float32 sums.
 *
 * Each thread takes 32 columns of y at a time, expands their weights into a panel that stays in
 * its cache (bfloat16, pairs of K side by side) and multiplies all rows of x by it, with AMX
 * tiles or the AVX512-BF16 dot product. Machines with neither use hb_linear at any T.
 */
#include "weight.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define PANEL 32  /* columns of a panel */
#define DEPTH 2048 /* K of a panel */
#define ROWS 32   /* rows of x are padded to a multiple of this */

static inline vu to_bf16(vf v) {
    vu bits = (vu)v; /* round to nearest, ties to even */
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

/* n: T, K, ldx, padded K; p: x, out bfloat16 [padded T, padded K], zero beyond T and K */
void hb_to_bf16(const hb_op *op, int tid, int threads) {
    int total = op->n[0], k = op->n[1], width = op->n[3], begin, end;
    hb_share((total + ROWS - 1) / ROWS * ROWS, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        const float *x = (const float *)op->p[0] + (size_t)t * op->n[2];
        uint16_t *out = (uint16_t *)op->p[1] + (size_t)t * width;
        int i = 0;
        if (t < total)
            for (; i + LANES <= k; i += LANES) {
                vh h = __builtin_convertvector(to_bf16(vf_load(x + i)), vh);
                memcpy(out + i, &h, sizeof h);
            }
        if (t < total && i < k) {
            float part[LANES] = {0};
            memcpy(part, x + i, (size_t)(k - i) * sizeof(float));
            vh h = __builtin_convertvector(to_bf16(vf_load(part)), vh);
            memcpy(out + i, &h, (size_t)(k - i) * 2);
            i = k;
        }
        memset(out + i, 0, (size_t)(width - i) * 2);
    }
}

/* 0: this machine has no bfloat16 products; 1: AVX512-BF16; 2: AMX, and the kernel lets us. */
int hb_gemm_kind(void) {
#if defined(__AMX_BF16__) && defined(__linux__)
    const long request_permission = 0x1023, tile_data = 18;
    if (syscall(SYS_arch_prctl, request_permission, tile_data) == 0) return 2;
#endif
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

#if defined(__AVX512BF16__)

/* Columns of tiles `tile` and `tile + 1`, K from `begin`: panel [depth / 2][32 columns][2]. */
INLINE void expand(const weight *w, int kind, int tile, int begin, int depth, uint32_t *panel) {
    weight copy = *w;
    copy.kind = kind; /* a constant, so that the branches on it fold away */
    for (int side = 0; side < 2; side++) {
        for (int pair = 0; pair < depth / 2; pair++) {
            int k = begin + 2 * pair;
            vu even = {0}, odd = {0};
            if (tile + side < w->tiles) {
                if (k < w->k) even = to_bf16(weight_value(&copy, tile + side, k));
                if (k + 1 < w->k) odd = to_bf16(weight_value(&copy, tile + side, k + 1));
            }
            vu both = even | (odd << 16);
            memcpy(panel + (size_t)pair * PANEL + side * LANES, &both, sizeof both);
        }
    }
}

static void expand_panel(const weight *w, int tile, int begin, int depth, uint32_t *panel) {
    switch (w->kind) {
        case W_Q4: expand(w, W_Q4, tile, begin, depth, panel); break;
        case W_Q8: expand(w, W_Q8, tile, begin, depth, panel); break;
        case W_F16: expand(w, W_F16, tile, begin, depth, panel); break;
        case W_BF16: expand(w, W_BF16, tile, begin, depth, panel); break;
        default: expand(w, W_F32, tile, begin, depth, panel);
    }
}

#if defined(__AMX_BF16__)
static void amx_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
}

/* 32 rows by 32 columns: c += a b */
static void amx_block(const uint16_t *a, size_t width, const uint32_t *panel, int depth, float *c) {
    size_t stride = width * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < depth; k += 32) {
        _tile_loadd(4, a + k, stride);
        _tile_loadd(6, panel + (size_t)(k / 2) * PANEL, PANEL * 4);
        _tile_loadd(5, a + 16 * width + k, stride);
        _tile_loadd(7, panel + (size_t)(k / 2) * PANEL + LANES, PANEL * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, PANEL * 4);
    _tile_stored(1, c + LANES, PANEL * 4);
    _tile_stored(2, c + 16 * PANEL, PANEL * 4);
    _tile_stored(3, c + 16 * PANEL + LANES, PANEL * 4);
}
#endif

/* 8 rows by 32 columns */
static void dot_block(const uint16_t *a, size_t width, const uint32_t *panel, int depth, float *c) {
    __m512 acc[8][2];
    for (int m = 0; m < 8; m++) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
    for (int pair = 0; pair < depth / 2; pair++) {
        __m512bh left = (__m512bh)_mm512_loadu_si512(panel + (size_t)pair * PANEL);
        __m512bh right = (__m512bh)_mm512_loadu_si512(panel + (size_t)pair * PANEL + LANES);
#pragma GCC unroll 8
        for (int m = 0; m < 8; m++) {
            int32_t two;
            memcpy(&two, a + m * width + 2 * pair, 4);
            __m512bh x = (__m512bh)_mm512_set1_epi32(two);
            acc[m][0] = _mm512_dpbf16_ps(acc[m][0], x, left);
            acc[m][1] = _mm512_dpbf16_ps(acc[m][1], x, right);
        }
    }
    for (int m = 0; m < 8; m++) {
        _mm512_storeu_ps(c + m * PANEL, acc[m][0]);
        _mm512_storeu_ps(c + m * PANEL + LANES, acc[m][1]);
    }
}

/* Write a block of sums to y; the first panel of K sets or adds, later ones always add. */
static void put(const weight *w, const float *c, int rows, int tile, float *y, size_t ldo, int add,
                int with_bias) {
    for (int side = 0; side < 2 && tile + side < w->tiles; side++) {
        int lanes = w->n - (tile + side) * LANES;
        vf bias = {0};
        if (with_bias) bias = vf_load(w->bias + (size_t)(tile + side) * LANES);
        for (int m = 0; m < rows; m++) {
            float *to = y + m * ldo + (size_t)(tile + side) * LANES;
            vf v = vf_load(c + m * PANEL + side * LANES) + bias;
            if (lanes >= LANES) {
                vf_store(to, add ? vf_load(to) + v : v);
            } else {
                float part[LANES];
                vf_store(part, v);
                for (int i = 0; i < lanes; i++) to[i] = add ? to[i] + part[i] : part[i];
            }
        }
    }
}

/* n: as hb_linear with the padded K for ldx, then n[11], whether to use AMX; p: data, bias,
 * x as bfloat16 from hb_to_bf16, y */
void hb_gemm(const hb_op *op, int tid, int threads) {
    weight w;
    read_weight(op, &w);
    int total = op->n[1], begin, end, amx = op->n[11];
    size_t ldo = (size_t)op->n[7], width = (size_t)op->n[6];
    float c[ROWS * PANEL] __attribute__((aligned(64)));
    hb_share((w.tiles + 1) / 2, tid, threads, &begin, &end);
    if (begin == end) return;
    uint32_t *panel = (uint32_t *)hb_scratch((size_t)DEPTH / 2 * PANEL);
#if defined(__AMX_BF16__)
    if (amx) amx_begin();
#endif
    for (int unit = begin; unit < end; unit++)
        for (int k = 0; k < (int)width; k += DEPTH) {
            int depth = (int)width - k < DEPTH ? (int)width - k : DEPTH, step = 8;
            expand_panel(&w, 2 * unit, k, depth, panel);
#if defined(__AMX_BF16__)
            if (amx) step = ROWS;
#endif
            for (int row = 0; row < total; row += step) {
                const uint16_t *a = (const uint16_t *)op->p[2] + row * width + k;
#if defined(__AMX_BF16__)
                if (amx) amx_block(a, width, panel, depth, c);
                else
#endif
                    dot_block(a, width, panel, depth, c);
                put(&w, c, total - row < step ? total - row : step, 2 * unit,
                    (float *)op->p[3] + row * ldo, ldo, op->n[8] || k, w.bias && !k);
            }
        }
#if defined(__AMX_BF16__)
    if (amx) _tile_release();
#endif
}

#else

void hb_gemm(const hb_op *op, int tid, int threads) {
    (void)op, (void)tid, (void)threads;
    abort(); /* never recorded where hb_gemm_kind() is 0 */
}

#endif
