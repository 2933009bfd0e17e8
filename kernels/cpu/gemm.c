/* y [T, N] = x [T, K] W^T for many rows: bfloat16 inputs and float32 sums, or int8 and int32.
 *
 * Each thread takes 32 columns of y at a time, expands their weights into a panel that stays in
 * its cache (bfloat16, pairs of K side by side) and multiplies all rows of x by it in AMX tiles.
 * Machines without AMX use hb_linear at any T: there the AVX512-BF16 dot product was slower than
 * float32 (docs/performance.md).
 */
#include "weight.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define PANEL 32  /* columns of a panel */
#define DEPTH 256 /* K of a panel: 16 KiB, so that it stays in the first cache */
#define ROWS BLOCK_ROWS

/* Whether this machine has AMX and the kernel lets us use it. */
int hb_has_amx(void) {
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/* 16 columns of a panel, K from `begin`, as pairs of K: panel [depth / 2][32 columns][2]. The
 * group's scale is read once a group. */
INLINE void expand(const weight *w, int kind, int tile, int begin, int depth, uint32_t *panel) {
    const char *base = w->data + (size_t)tile * w->tile_bytes;
    int end = begin + depth < w->k ? begin + depth : w->k;
    vu even = {0};
    vf table = code_table(w);
    for (int k = begin; k < end;) {
        int g = k / w->group, start = g * w->group;
        int stop = start + w->group < end ? start + w->group : end;
        const char *record = base + (size_t)g * w->record_bytes, *values = record + w->code_bytes;
        vf scale = vf_set(1), offset = {0};
        if (w->has_scales) scale = group_scale(kind, w, values);
        if (w->has_offsets) offset = group_value(w, values + w->value_bytes);
        for (; k < stop; k++) {
            int inside = k - start;
            vf q;
            if (kind == W_Q4) {
                vu word;
                memcpy(&word, record + (size_t)(inside / 8) * sizeof word, sizeof word);
                q = nibble(kind, w, table, word, inside % 8);
            } else {
                q = element(kind, record, inside);
            }
            vu bits = vf_to_bf16(w->has_scales ? vf_fma(q, scale, offset) : q);
            if (k % 2) {
                even |= bits << 16;
                memcpy(panel + (size_t)(k - begin) / 2 * PANEL, &even, sizeof even);
            } else {
                even = bits;
            }
        }
    }
    int done = (end - begin) / 2;
    if (end % 2) memcpy(panel + (size_t)done++ * PANEL, &even, sizeof even);
    for (; done < depth / 2; done++) memset(panel + (size_t)done * PANEL, 0, 64);
}

static void expand_tile(const weight *w, int tile, int begin, int depth, uint32_t *panel) {
    if (tile >= w->tiles) {
        for (int pair = 0; pair < depth / 2; pair++) memset(panel + (size_t)pair * PANEL, 0, 64);
        return;
    }
    switch (w->kind) {
        case W_T4: /* both look codes up */
        case W_Q4: expand(w, W_Q4, tile, begin, depth, panel); break;
        case W_Q8: expand(w, W_Q8, tile, begin, depth, panel); break;
        case W_F16: expand(w, W_F16, tile, begin, depth, panel); break;
        case W_BF16: expand(w, W_BF16, tile, begin, depth, panel); break;
        case W_E4M3: expand(w, W_E4M3, tile, begin, depth, panel); break;
        default: expand(w, W_F32, tile, begin, depth, panel);
    }
}

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

/* 32 rows by 32 columns: c = a b, or c += a b, over `steps` times 64 bytes of K: 32 bfloat16 with
 * float sums, or 64 int8 with int32 sums. `width` bytes lie between rows of a, `ldc` elements
 * between rows of c. */
INLINE void amx_block(int int8, const char *a, size_t width, const uint32_t *panel, int steps,
                      float *c, size_t ldc, int add) {
    size_t to = ldc * 4;
    if (add) {
        _tile_loadd(0, c, to);
        _tile_loadd(1, c + LANES, to);
        _tile_loadd(2, c + 16 * ldc, to);
        _tile_loadd(3, c + 16 * ldc + LANES, to);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int step = 0; step < steps; step++) {
        const uint32_t *b = panel + (size_t)step * 16 * PANEL;
        _tile_loadd(4, a + step * 64, width);
        _tile_loadd(6, b, PANEL * 4);
        _tile_loadd(5, a + 16 * width + step * 64, width);
        _tile_loadd(7, b + LANES, PANEL * 4);
        if (int8) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, to);
    _tile_stored(1, c + LANES, to);
    _tile_stored(2, c + 16 * ldc, to);
    _tile_stored(3, c + 16 * ldc + LANES, to);
}

/* Write a block of sums to y, which it sets or adds to. `late`: the weights' scales, one for each
 * of their rows, are still to be applied. */
static void put(const weight *w, const float *c, int rows, int tile, float *y, size_t ldo, int add,
                int with_bias, int late) {
    for (int side = 0; side < 2 && tile + side < w->tiles; side++) {
        const char *codes = w->data + (size_t)(tile + side) * w->tile_bytes;
        int lanes = w->n - (tile + side) * LANES;
        vf bias = {0}, scale = vf_set(1);
        if (with_bias) bias = vf_load(w->bias + (size_t)(tile + side) * LANES);
        if (late) scale = group_scale(w->kind, w, codes + w->code_bytes);
        for (int m = 0; m < rows; m++) {
            float *to = y + m * ldo + (size_t)(tile + side) * LANES;
            vf factor = w->row_scales ? scale * w->row_scales[m] : scale;
            vf v = vf_fma(vf_load(c + m * PANEL + side * LANES), factor, bias);
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

/* Two tiles of columns, `panel` being room for their weights. The first panel of K sets y or adds
 * to it, later ones always add. */
static void unit_plain(const struct gemm *op, const weight *w, int unit, uint32_t *panel) {
    int total = op->tokens, width = op->x_stride;
    size_t ldo = (size_t)op->out_stride;
    float c[ROWS * PANEL] __attribute__((aligned(64)));
    for (int k = 0; k < width; k += DEPTH) {
        int depth = width - k < DEPTH ? width - k : DEPTH;
        int add = op->add || k, with_bias = w->bias && !k;
        int whole = (2 * unit + 2) * LANES <= w->n && !with_bias;
        expand_tile(w, 2 * unit, k, depth, panel);
        expand_tile(w, 2 * unit + 1, k, depth, panel + LANES);
        for (int row = 0; row < total; row += ROWS) {
            const char *a = (const char *)op->x + ((size_t)row * width + k) * 2;
            float *y = op->out + row * ldo;
            int rows = total - row < ROWS ? total - row : ROWS;
            if (whole && rows == ROWS) {
                amx_block(0, a, (size_t)width * 2, panel, depth / 32, y + 2 * unit * LANES, ldo,
                          add);
                continue;
            }
            amx_block(0, a, (size_t)width * 2, panel, depth / 32, c, PANEL, 0);
            put(w, c, rows, 2 * unit, y, ldo, add, with_bias, 0);
        }
    }
}

/* 16 columns of a panel from codes of 8 bits, K from `begin` in fours:
 * panel [depth / 4][32 columns][4]. */
static void expand_int8(const weight *w, int tile, int begin, int depth, uint32_t *panel) {
    const char *codes = w->data + (size_t)tile * w->tile_bytes;
    for (int k = begin; k < begin + depth; k += 4, panel += PANEL) {
        __m128i r[4], *to = (__m128i *)panel;
        for (int i = 0; i < 4; i++)
            r[i] = tile < w->tiles && k + i < w->k
                       ? _mm_loadu_si128((const __m128i *)(codes + (size_t)(k + i) * LANES))
                       : _mm_setzero_si128();
        __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpackhi_epi8(r[0], r[1]);
        __m128i c = _mm_unpacklo_epi8(r[2], r[3]), d = _mm_unpackhi_epi8(r[2], r[3]);
        _mm_storeu_si128(to, _mm_unpacklo_epi16(a, c));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, c));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(b, d));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(b, d));
    }
}

/* sums [ROWS][PANEL] over the next `depth` of K, all rows: float from bfloat16, int32 from int8. */
INLINE void add_panel(const struct gemm *op, int int8, int k, int depth, const uint32_t *panel,
                      float *sums) {
    size_t size = int8 ? 1 : 2, width = (size_t)op->x_stride * size;
    for (int row = 0; row < op->tokens; row += ROWS) {
        const char *a = (const char *)op->x + row * width + k * size;
        amx_block(int8, a, width, panel, depth * (int)size / 64, sums + (size_t)row * PANEL, PANEL,
                  k > 0);
    }
}

static void to_float(float *sums) {
    for (int i = 0; i < ROWS * PANEL; i += LANES) {
        vi whole;
        memcpy(&whole, sums + i, sizeof whole);
        vf_store(sums + i, __builtin_convertvector(whole, vf));
    }
}

/* The same for quantized inputs: sums over all of K come first, then the factor of each row. With
 * one scale for each row of weights they are sums of whole numbers, and that scale comes last, too:
 * exact from int8, and below 2**24 from bfloat16. `sums` is [T up to whole blocks][PANEL]. */
static void unit_quantized(const struct gemm *op, weight *w, int unit, uint32_t *panel, float *sums) {
    int total = op->tokens, width = op->x_stride, int8 = op->int8, most = int8 ? 2 * DEPTH : DEPTH;
    size_t ldo = (size_t)op->out_stride;
    int late = w->groups == 1 && w->has_scales && !w->has_offsets;
    weight bare = *w;
    if (late) bare.has_scales = 0;
    for (int k = 0; k < width; k += most) {
        int depth = width - k < most ? width - k : most;
        for (int side = 0; side < 2; side++) {
            if (int8) expand_int8(w, 2 * unit + side, k, depth, panel + side * LANES);
            else expand_tile(&bare, 2 * unit + side, k, depth, panel + side * LANES);
        }
        if (int8) add_panel(op, 1, k, depth, panel, sums);
        else add_panel(op, 0, k, depth, panel, sums);
    }
    for (int row = 0; row < total; row += ROWS) {
        int rows = total - row < ROWS ? total - row : ROWS;
        float *sum = sums + (size_t)row * PANEL;
        if (int8) to_float(sum);
        w->row_scales = op->factors + row;
        put(w, sum, rows, 2 * unit, op->out + row * ldo, ldo, op->add, w->bias != NULL,
            late);
    }
}

void hb_gemm(const struct gemm *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    int begin, end;
    size_t blocks = op->factors ? (size_t)(op->tokens + ROWS - 1) / ROWS : 0;
    hb_share((w.tiles + 1) / 2, tid, threads, &begin, &end);
    if (begin == end) return;
    float *sums = hb_scratch(blocks * ROWS * PANEL + (size_t)DEPTH / 2 * PANEL);
    uint32_t *panel = (uint32_t *)(sums + blocks * ROWS * PANEL);
    amx_begin();
    for (int unit = begin; unit < end; unit++) {
        if (op->factors) unit_quantized(op, &w, unit, panel, sums);
        else unit_plain(op, &w, unit, panel);
    }
    _tile_release();
}

#else

int hb_has_amx(void) { return 0; }

void hb_gemm(const struct gemm *op, int tid, int threads) {
    (void)op, (void)tid, (void)threads;
    abort(); /* never recorded where hb_has_amx() is 0 */
}

#endif
