/* What a product's input goes through first: bfloat16, the columns' order, quantization. */
#include "dot.h"
#include "rounded.h"
#include "rows.h"

void hb_to_bf16(const struct to_bf16 *op, int tid, int threads) {
    int begin, end;
    hb_share(op->tokens, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++)
        put_row(op->x + (size_t)t * op->x_stride, op->out, (size_t)t, op->width, op->out_stride, 1);
    if (tid == 0) pad_rows(op->out, op->tokens, op->out_stride);
}

void hb_gather(const struct gather *op, int tid, int threads) {
    int width = op->width, stride = op->out_stride, begin, end;
    const int32_t *order = op->order;
    hb_share(width, tid, threads, &begin, &end);
    for (int t = 0; t < op->tokens; t++) {
        if (!op->half) {
            const float *x = (const float *)op->x + (size_t)t * op->x_stride;
            float *out = (float *)op->out + (size_t)t * stride;
            for (int k = begin; k < end; k++) out[k] = x[order[k]];
            continue;
        }
        const uint16_t *x = (const uint16_t *)op->x + (size_t)t * op->x_stride;
        uint16_t *out = (uint16_t *)op->out + (size_t)t * stride;
        for (int k = begin; k < end; k++) out[k] = x[order[k]];
        if (tid == 0) memset(out + width, 0, (size_t)(stride - width) * 2);
    }
    if (op->half && tid == 0) pad_rows(op->out, op->tokens, stride);
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

float hb_row_to_int8(const float *x, int width, float top, float *work, int8_t *out) {
    quantizer how = {1, 0, -128, 127, 0};
    fit(x, width, 1, top, &how);
    int bad = quantize_row(x, width, &how, work);
    for (int i = 0; i < width; i++) out[i] = (int8_t)(int)work[i];
    return bad ? NAN : how.scale;
}

void hb_quantize(const struct quantize *op, int tid, int threads) {
    int rows = op->tokens, width = op->width, stride = op->out_stride, e4m3 = op->e4m3, begin, end;
    quantizer how = {op->dynamic ? 1 : op->factor, (float)op->zero, e4m3 ? -448 : -128,
                     e4m3 ? 448 : 127, e4m3};
    float *row = hb_scratch((size_t)width);
    hb_share(rows, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        const float *x = op->x + (size_t)t * op->x_stride;
        if (op->dynamic) fit(x, width, op->symmetric, op->factor, &how);
        int bad = quantize_row(x, width, &how, row);
        op->scales[t] = bad ? NAN : how.scale;
        if (op->type != CODES_INT8) {
            put_row(row, op->out, (size_t)t, width, stride, op->type == CODES_BF16);
            continue;
        }
        int8_t *out = (int8_t *)op->out + (size_t)t * stride;
        for (int i = 0; i < width; i++) out[i] = (int8_t)(int)row[i];
        memset(out + width, 0, (size_t)(stride - width));
    }
    if (op->type == CODES_BF16 && tid == 0) pad_rows(op->out, rows, stride);
    if (op->type == CODES_INT8 && tid == 0)
        memset((int8_t *)op->out + (size_t)rows * stride, 0,
               (size_t)(-rows & (BLOCK_ROWS - 1)) * (size_t)stride);
}

/* The larger sizes, as bits, which are ordered as the numbers are. */
INLINE vi larger(vi most, vf x) {
    vi size = (vi)x & 0x7FFFFFFF;
    return (vi)vf_pick(size > most, (vf)size, (vf)most);
}

/* The largest size in a row, as bits, in all lanes. */
static vi most_of_row(const float *x, int width) {
    vi most = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) most = larger(most, vf_load(x + i));
    if (i < width) {
        float part[LANES] = {0};
        memcpy(part, x + i, (size_t)(width - i) * sizeof(float));
        most = larger(most, vf_load(part));
    }
    return most_lanes(most);
}

/* What the largest size, as bits, makes the scale of those that share it; 1 for zeros. */
INLINE vf scale_from(vi most) {
    vf scale = (vf)most / 127.0f;
    return vf_pick(scale == 0.0f, vf_set(1), scale);
}

INLINE int all_finite(vi most) { return most[0] < 0x7F800000; }

/* One chunk of activations as codes q and what they add. `most`: the largest size among those that
 * share a scale; `late`: that is applied to sums of all chunks. */
INLINE void round_chunk(const float *x, vi most, int late, int8_t *q, block_values *to) {
    enum { VECTORS = CHUNK / LANES };
    const vf whole = vf_set(12582912.0f); /* 1.5 * 2**23, whose last bit is worth 1 */
    vi half[2] = {{0}, {0}};
    int finite = all_finite(most);
    vf scale = scale_from(most);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; j++) {
        vf y = vf_load(x + j * LANES) / scale;
        y = vf_pick(y < -127.0f, vf_set(-127), y);
        y = vf_pick(y > 127.0f, vf_set(127), y);
        vi code = (vi)(y + whole) - (vi)whole;
        if (!finite) code = (vi){0};
        vb b = __builtin_convertvector(code, vb);
        memcpy(q + j * LANES, &b, sizeof b);
        half[j / (VECTORS / 2)] += code;
    }
    /* Field by field: a copy of the whole would wait for its parts to leave the store queue. */
    int32_t low = sum_lanes(half[0])[0], high = sum_lanes(half[1])[0];
    float size = !finite ? NAN : late ? 1 : scale[0];
    to->scale = size;
    to->scaled_sum = size * (float)(low + high);
    to->scaled_half[0] = size * (float)low;
    to->scaled_half[1] = size * (float)high;
    to->sum = low + high;
    to->half[0] = low;
    to->half[1] = high;
    to->none = 0;
}

void hb_round_blocks(const struct round_blocks *op, int tid, int threads) {
    int chunks = (op->width + CHUNK - 1) / CHUNK, begin, end;
    vi most = {0};
    hb_share(op->tokens * chunks, tid, threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        int row = i / chunks, c = i % chunks, left = op->width - c * CHUNK;
        const float *x = op->x + (size_t)row * op->x_stride;
        float padded[CHUNK];
        if (op->scales && (i == begin || c == 0)) {
            /* Threads that share a row each look through all of it: cheaper than to wait. */
            most = most_of_row(x, op->width);
            if (c == 0) op->scales[row] = all_finite(most) ? scale_from(most)[0] : NAN;
        }
        x += c * CHUNK;
        if (left < CHUNK) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, x, (size_t)left * sizeof(float));
            x = padded;
        }
        size_t at = (size_t)row * chunks + c;
        if (!op->scales) most = most_of_row(x, CHUNK);
        round_chunk(x, most, op->scales != NULL, op->codes + at * CHUNK,
                    (block_values *)op->values + at);
    }
}
