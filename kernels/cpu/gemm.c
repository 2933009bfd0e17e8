/* y [T, N] = x [T, K] W^T for many rows: bfloat16 inputs and float32 sums, or int8 and int32.
 *
 * Each thread takes 32 columns of y at a time, expands their weights into a panel that stays in
 * its cache (bfloat16, pairs of K side by side) and multiplies all rows of x by it in AMX tiles.
 * Machines without AMX use hb_linear at any T: there the AVX512-BF16 dot product was slower than
 * float32 (docs/performance.md).
 */
#include "amx.h"
#include "product.h"

#if defined(HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>

#define PANEL TILE /* columns of a panel: the rows of a tile of weights */
#define DEPTH 256  /* K of a panel: 16 KiB, so that it stays in the first cache */
#define ROWS BLOCK_ROWS

int hb_has_amx(void) {
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/* The next `depth` columns of K as pairs: panel [depth / 2][32 columns][2], zero beyond K. Scaled
 * weights, or (`bare`) codes without their scales. */
static void expand(reader *r, int depth, int bare, uint32_t *panel) {
    const weight *w = r->w;
    float codes[CHUNK][TILE] __attribute__((aligned(64)));
    for (int done = 0; done < depth; done += CHUNK, panel += CHUNK / 2 * PANEL) {
        if (r->chunk == w->chunks) {
            memset(panel, 0, CHUNK / 2 * PANEL * sizeof *panel);
            continue;
        }
        hb_unpack_chunk(r, codes);
        int scaled = w->head_bytes && !bare, offsets = has_offsets(w) || has_zeros(w);
        for (int v = 0; v < PARTS; v++)
            for (int k = 0; k < CHUNK; k += 2) {
                vu bits[2];
                for (int i = 0; i < 2; i++) {
                    vf q = vf_load(codes[k + i] + v * LANES), offset = {0};
                    int at = value_at(r, w->halves ? k / 16 : 0), row = v * LANES;
                    if (scaled && offsets) offset = vf_load(r->values.offset[at] + row);
                    if (scaled) q = vf_fma(q, vf_load(r->values.scale[at] + row), offset);
                    bits[i] = vf_to_bf16(q);
                }
                vu pair = bits[0] | bits[1] << 16;
                memcpy(panel + k / 2 * PANEL + v * LANES, &pair, sizeof pair);
            }
    }
}

/* 32 rows by 32 columns: c = a b, or c += a b, over `steps` times 64 bytes of K: 32 bfloat16 with
 * float sums, or 64 int8 with int32 sums. `width` bytes lie between rows of a, `ldc` elements
 * between rows of c. */
INLINE void amx_block(int int8, const char *a, size_t width, const uint32_t *panel, int steps,
                      float *c, size_t ldc, int add) {
    size_t to = ldc * 4;
    if (add) {
        _tile_loadd(0, c, to);
        _tile_loadd(1, c + 16, to);
        _tile_loadd(2, c + 16 * ldc, to);
        _tile_loadd(3, c + 16 * ldc + 16, to);
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
        _tile_loadd(7, b + 16, PANEL * 4);
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
    _tile_stored(1, c + 16, to);
    _tile_stored(2, c + 16 * ldc, to);
    _tile_stored(3, c + 16 * ldc + 16, to);
}

/* Two tiles of AMX, all columns of a tile of weights, `panel` being room for them. The first panel of
 * K sets y or adds to it, later ones always add. */
static void unit_plain(const struct gemm *op, const weight *w, int tile, uint32_t *panel) {
    int total = op->tokens, width = op->x_stride;
    size_t ldo = (size_t)op->out_stride;
    float c[ROWS][TILE] __attribute__((aligned(64)));
    weight bare = *w;
    bare.bias = NULL;
    reader r;
    read_tile(w, tile, DEPTH / CHUNK * (int)w->chunk_bytes, &r);
    for (int k = 0; k < width; k += DEPTH) {
        int depth = width - k < DEPTH ? width - k : DEPTH;
        int add = op->add || k, with_bias = w->bias && !k;
        int whole = (tile + 1) * TILE <= w->n && !with_bias;
        expand(&r, depth, 0, panel);
        for (int row = 0; row < total; row += ROWS) {
            const char *a = (const char *)op->x + ((size_t)row * width + k) * 2;
            float *y = op->out + row * ldo;
            int rows = total - row < ROWS ? total - row : ROWS;
            if (whole && rows == ROWS) {
                amx_block(0, a, (size_t)width * 2, panel, depth / 32, y + tile * TILE, ldo, add);
                continue;
            }
            amx_block(0, a, (size_t)width * 2, panel, depth / 32, c[0], PANEL, 0);
            finish(with_bias ? w : &bare, tile, rows, c, y, ldo, add);
        }
    }
}

/* The next `depth` columns of K from codes of 8 bits, in fours: panel [depth / 4][32 columns][4]. */
static void expand_int8(reader *r, int depth, uint32_t *panel) {
    for (int done = 0; done < depth; done += CHUNK, panel += QUADS * PANEL) {
        if (r->chunk == r->w->chunks) {
            memset(panel, 0, QUADS * LINE);
            continue;
        }
        const char *chunk = next_chunk(r, 0, W_BITS8, 8);
        for (int i = 0; i < QUADS * PARTS; i++) {
            vu x = line_of(chunk, i) ^ 0x80808080u; /* less their center */
            memcpy(panel + i * LANES, &x, sizeof x);
        }
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
static void unit_quantized(const struct gemm *op, weight *w, int tile, uint32_t *panel, float *sums) {
    int total = op->tokens, width = op->x_stride, int8 = op->int8, most = int8 ? 2 * DEPTH : DEPTH;
    size_t ldo = (size_t)op->out_stride;
    reader r;
    read_tile(w, tile, DEPTH / CHUNK * (int)w->chunk_bytes, &r);
    for (int k = 0; k < width; k += most) {
        int depth = width - k < most ? width - k : most;
        if (int8) {
            expand_int8(&r, depth, panel);
            add_panel(op, 1, k, depth, panel, sums);
        } else {
            expand(&r, depth, w->late, panel);
            add_panel(op, 0, k, depth, panel, sums);
        }
    }
    for (int row = 0; row < total; row += ROWS) {
        int rows = total - row < ROWS ? total - row : ROWS;
        float(*sum)[TILE] = (float(*)[TILE])(sums + (size_t)row * PANEL);
        if (int8) to_float(sum[0]);
        if (w->late) scale_late(w, tile, sum, rows);
        w->row_scales = op->factors + row;
        finish(w, tile, rows, sum, op->out + (size_t)row * ldo, ldo, op->add);
    }
}

void hb_gemm(const struct gemm *op, int tid, int threads) {
    weight w;
    read_weight(&op->tiled, &w);
    int begin, end;
    size_t blocks = op->factors ? (size_t)(op->tokens + ROWS - 1) / ROWS : 0;
    hb_share(w.tiles, tid, threads, &begin, &end);
    if (begin == end) return;
    float *sums = hb_scratch(blocks * ROWS * PANEL + (size_t)DEPTH / 2 * PANEL);
    uint32_t *panel = (uint32_t *)(sums + blocks * ROWS * PANEL);
    amx_begin((uint8_t[8]){16, 16, 16, 16, 16, 16, 16, 16},
              (uint16_t[8]){64, 64, 64, 64, 64, 64, 64, 64});
    for (int tile = begin; tile < end; tile++) {
        if (op->factors) unit_quantized(op, &w, tile, panel, sums);
        else unit_plain(op, &w, tile, panel);
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
