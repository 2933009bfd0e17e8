/* What a product's input goes through first: bfloat16, the columns' order, quantization. */
#include "rows.h"

/* n: T, K, ldx, stride of out; p: x, out bfloat16, zero beyond T and K */
void hb_to_bf16(const hb_op *op, int tid, int threads) {
    int begin, end;
    hb_share(op->n[0], tid, threads, &begin, &end);
    for (int t = begin; t < end; t++)
        put_row((const float *)op->p[0] + (size_t)t * op->n[2], op->p[1], (size_t)t, op->n[1],
                op->n[3], 1);
    if (tid == 0) pad_rows(op->p[1], op->n[0], op->n[3]);
}

/* out[t][k] = x[t][order[k]], for weights whose columns were reordered (act-order).
 * n: T, K, ldx, stride of out, whether both are bfloat16; p: x, order int32 [K], out, if bfloat16
 * zero beyond T and K */
void hb_gather(const hb_op *op, int tid, int threads) {
    int width = op->n[1], stride = op->n[3], begin, end;
    const int32_t *order = op->p[1];
    hb_share(width, tid, threads, &begin, &end);
    for (int t = 0; t < op->n[0]; t++) {
        if (!op->n[4]) {
            const float *x = (const float *)op->p[0] + (size_t)t * op->n[2];
            float *out = (float *)op->p[2] + (size_t)t * stride;
            for (int k = begin; k < end; k++) out[k] = x[order[k]];
            continue;
        }
        const uint16_t *x = (const uint16_t *)op->p[0] + (size_t)t * op->n[2];
        uint16_t *out = (uint16_t *)op->p[2] + (size_t)t * stride;
        for (int k = begin; k < end; k++) out[k] = x[order[k]];
        if (tid == 0) memset(out + width, 0, (size_t)(stride - width) * 2);
    }
    if (op->n[4] && tid == 0) pad_rows(op->p[2], op->n[0], stride);
}

/* How a row is quantized: q = round(clamp(x / scale + zero, low, high)), ties to even. */
typedef struct {
    float scale, zero, low, high;
    int e4m3;
} quantizer;

/* To the nearest float8_e4m3fn for |v| <= 448: three bits below the leading one, but none below
 * 2**-9. */
static inline vf round_e4m3(vf v) {
    const vf ulp = vf_set(24576.0f); /* 1.5 * 2**14, whose last bit is worth 2**-9 */
    vu bits = (vu)v;
    vf normal = (vf)((bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000u);
    vf subnormal = v + ulp - ulp;
    return vf_pick((vf)(bits & 0x7FFFFFFFu) < 0x1p-6f, subnormal, normal);
}

/* q - zero of LANES elements. */
static inline vf quantize(vf x, const quantizer *how) {
    const vf whole = vf_set(12582912.0f); /* 1.5 * 2**23, whose last bit is worth 1 */
    vf v = x / how->scale + how->zero;
    v = vf_pick(v < how->low, vf_set(how->low), v);
    v = vf_pick(v > how->high, vf_set(how->high), v);
    if (how->e4m3) return round_e4m3(v);
    return v + whole - whole - how->zero;
}

/* Smallest and largest element of a row and 0. */
static void range(const float *x, int width, float *least, float *most) {
    vf low = {0}, high = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        vf v = vf_load(x + i);
        low = vf_pick(v < low, v, low);
        high = vf_pick(v > high, v, high);
    }
    *least = -vf_max(-low);
    *most = vf_max(high);
    for (; i < width; i++) {
        *least = x[i] < *least ? x[i] : *least;
        *most = x[i] > *most ? x[i] : *most;
    }
}

/* Scale and zero point from the row itself. A scale of 0 (a row of zeros) becomes 1. */
static void fit(const float *x, int width, int symmetric, float top, quantizer *how) {
    float least, most;
    range(x, width, &least, &most);
    if (symmetric) how->scale = (most > -least ? most : -least) / top;
    else how->scale = (most - least) / 255.0f;
    if (how->scale == 0) how->scale = 1;
    if (symmetric) return;
    float zero = rintf(-128.0f - least / how->scale);
    how->zero = zero < -128 ? -128 : zero > 127 ? 127 : zero;
}

/* One quantized row; 1 when any of it is NaN, which int8 could not say. */
static int quantize_row(const float *x, int width, const quantizer *how, float *out) {
    vi bad = {0};
    int i = 0, any = 0;
    for (; i + LANES <= width; i += LANES) {
        vf q = quantize(vf_load(x + i), how);
        bad |= q != q;
        vf_store(out + i, q);
    }
    if (i < width) {
        float part[LANES] = {0};
        memcpy(part, x + i, (size_t)(width - i) * sizeof(float));
        vf q = quantize(vf_load(part), how);
        bad |= q != q;
        vf_store(part, q);
        memcpy(out + i, part, (size_t)(width - i) * sizeof(float));
    }
    for (i = 0; i < LANES; i++) any |= bad[i];
    return any != 0;
}

/* n: T, K, ldx, stride of out, type of out (0 float, 1 bfloat16, 2 int8), whether e4m3, whether
 * symmetric, whether the scale is dynamic, static zero point; f: top of a dynamic scale, or the
 * static scale; p: x, out (q - zero), scales float [T] */
void hb_quantize(const hb_op *op, int tid, int threads) {
    int rows = op->n[0], width = op->n[1], stride = op->n[3], type = op->n[4], e4m3 = op->n[5];
    int dynamic = op->n[7], begin, end;
    quantizer how = {dynamic ? 1 : op->f[0], (float)op->n[8], e4m3 ? -448 : -128, e4m3 ? 448 : 127,
                     e4m3};
    float *row = hb_scratch((size_t)width);
    hb_share(rows, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        const float *x = (const float *)op->p[0] + (size_t)t * op->n[2];
        if (dynamic) fit(x, width, op->n[6], op->f[0], &how);
        int bad = quantize_row(x, width, &how, row);
        ((float *)op->p[2])[t] = bad ? NAN : how.scale;
        if (type != 2) {
            put_row(row, op->p[1], (size_t)t, width, stride, type);
            continue;
        }
        int8_t *out = (int8_t *)op->p[1] + (size_t)t * stride;
        for (int i = 0; i < width; i++) out[i] = (int8_t)(int)row[i];
        memset(out + width, 0, (size_t)(stride - width));
    }
    if (type == 1 && tid == 0) pad_rows(op->p[1], rows, stride);
    if (type == 2 && tid == 0)
        memset((int8_t *)op->p[1] + (size_t)rows * stride, 0,
               (size_t)(-rows & (BLOCK_ROWS - 1)) * (size_t)stride);
}
