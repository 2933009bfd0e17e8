/* RMSNorm, RoPE with KV write, gates and addition. */
#include "rows.h"

static void norm_row(const float *x, const float *gain, float *out, int d, float eps) {
    vf part = {0};
    float sum = 0;
    int i = 0;
    for (; i + LANES <= d; i += LANES) {
        vf v = vf_load(x + i);
        part = vf_fma(v, v, part);
    }
    for (; i < d; i++) sum = f_fma(x[i], x[i], sum);
    float scale = 1.0f / sqrtf((vf_sum(part) + sum) / (float)d + eps);
    for (i = 0; i + LANES <= d; i += LANES)
        vf_store(out + i, vf_load(x + i) * scale * vf_load(gain + i));
    for (; i < d; i++) out[i] = x[i] * scale * gain[i];
}

void hb_rms_norm(const struct rms_norm *op, int tid, int threads) {
    int d = op->width, begin, end;
    float *normed = hb_scratch((size_t)d);
    hb_share(op->tokens, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        size_t row = (size_t)(op->rows ? op->rows[t] : t);
        norm_row(op->x + row * (size_t)op->x_stride, op->weight, normed, d, op->eps);
        put_row(normed, op->out, (size_t)t, d, op->out_stride, op->half);
    }
    if (op->half && tid == 0) pad_rows(op->out, op->tokens, op->out_stride);
}

static void rotate_neighbours(const float *x, const float *angles, float *out, int dim, int half) {
    const float *cosine = angles, *sine = angles + half;
    for (int i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        out[2 * i] = a * cosine[i] - b * sine[i];
        out[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
    for (int i = 2 * half; i < dim; i++) out[i] = x[i];
}

static void rotate(const float *x, const float *angles, float *out, int dim, int half) {
    const float *cosine = angles, *sine = angles + half;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        out[i] = a * cosine[i] - b * sine[i];
        out[i + half] = b * cosine[i] + a * sine[i];
    }
    for (int i = 2 * half; i < dim; i++) out[i] = x[i];
}

/* A head's key or value of a token to the cache, in its type. */
static void put_kv(const struct rope_kv *op, const float *x, int value, size_t block, size_t row,
                   float *work) {
    int dim = op->head_dim;
    size_t at = block * (size_t)op->block_stride + row * dim;
    void *side = value ? op->v : op->k;
    float *scales = value ? op->v_scales : op->k_scales;
    switch (op->kv) {
    case KV_FLOAT32: memcpy((float *)side + at, x, (size_t)dim * sizeof(float)); break;
    case KV_FLOAT16: row_to_half(x, dim, (uint16_t *)side + at); break;
    case KV_BFLOAT16: row_to_bf16(x, dim, (uint16_t *)side + at, dim); break;
    case KV_INT8:
        scales[block * (size_t)op->scale_stride + row] =
            hb_row_to_int8(x, dim, op->top, work, (int8_t *)side + at);
        break;
    }
}

void hb_rope_kv(const struct rope_kv *op, int tid, int threads) {
    int heads = op->heads, kv_heads = op->kv_heads, dim = op->head_dim, half = op->half;
    int size = op->block_size, all = heads + 2 * kv_heads;
    void (*turn)(const float *, const float *, float *, int, int) =
        op->interleaved ? rotate_neighbours : rotate;
    float *normed = hb_scratch((size_t)dim * 3), *rotated = normed + dim, *work = rotated + dim;
    for (int unit = tid; unit < op->tokens * all; unit += threads) {
        int t = unit / all, h = unit % all;
        const float *x = op->qkv + (size_t)unit * dim;
        const float *angles = op->angles + (size_t)t * 2 * half;
        const float *gain = h < heads ? op->q_norm : h < heads + kv_heads ? op->k_norm : NULL;
        if (gain) {
            norm_row(x, gain, normed, dim, op->eps);
            x = normed;
        }
        if (h < heads) {
            float *q = op->q + ((size_t)t * heads + h) * dim;
            turn(x, angles, q, dim, half);
            if (op->factors)
                for (int i = 0; i < dim; i++) q[i] *= op->factors[t];
            continue;
        }
        int head = (h - heads) % kv_heads;
        size_t block = (size_t)(op->slots[t] / size), offset = (size_t)(op->slots[t] % size);
        int value = h >= heads + kv_heads;
        if (!value) {
            turn(x, angles, rotated, dim, half);
            x = rotated;
        }
        put_kv(op, x, value, block, (size_t)head * size + offset, work);
    }
}

/* GELU's tanh form is a sigmoid, too: (1 + tanh(u)) / 2 = sigmoid(2 u). */
static inline vf activate(vf g, int kind) {
    if (kind == GATE_SILU) return vf_sigmoid_mul(g, g);
    return vf_sigmoid_mul(g, g * vf_fma(g * 0.0713548163f, g, vf_set(1.59576912f)));
}

/* Gates up to 7, ups within -7 to 7; numbers that are none stay so. */
static inline vf clipped(vf g, vf u) {
    const vf limit = vf_set(7.0f);
    g = vf_pick(g > limit, limit, g);
    u = vf_pick(u > limit, limit, vf_pick(u < -limit, -limit, u));
    return vf_sigmoid_mul(g, g * 1.702f) * (u + 1.0f);
}

static void clip_range(const float *gate, const float *up, float *out, int begin, int end) {
    int i = begin;
    for (; i + LANES <= end; i += LANES)
        vf_store(out + i, clipped(vf_load(gate + i), vf_load(up + i)));
    if (i < end) {
        float g[LANES] = {0}, u[LANES] = {0};
        size_t size = (size_t)(end - i) * sizeof(float);
        memcpy(g, gate + i, size);
        memcpy(u, up + i, size);
        vf_store(g, clipped(vf_load(g), vf_load(u)));
        memcpy(out + i, g, size);
    }
}

static void gate_range(const float *gate, const float *up, float *out, int begin, int end,
                       int kind) {
    if (kind == GATE_CLIPPED_SWIGLU) {
        clip_range(gate, up, out, begin, end);
        return;
    }
    int i = begin;
    for (; i + LANES <= end; i += LANES)
        vf_store(out + i, activate(vf_load(gate + i), kind) * vf_load(up + i));
    if (i < end) {
        float part[LANES] = {0};
        memcpy(part, gate + i, (size_t)(end - i) * sizeof(float));
        vf_store(part, activate(vf_load(part), kind));
        for (int j = i; j < end; j++) out[j] = part[j - i] * up[j];
    }
}

void hb_gated_mul(const struct gated_mul *op, int tid, int threads) {
    int width = op->width, begin, end, total = op->tokens, kind = op->gate;
    if (!op->half) { /* few rows: share the columns */
        hb_share((width + LANES - 1) / LANES, tid, threads, &begin, &end);
        end = end * LANES < width ? end * LANES : width;
        for (int t = 0; t < total; t++) {
            const float *gate = op->gate_up + (size_t)t * 2 * width;
            gate_range(gate, gate + width, (float *)op->out + (size_t)t * op->out_stride,
                       begin * LANES, end, kind);
        }
        return;
    }
    float *row = hb_scratch((size_t)width);
    hb_share(total, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        const float *gate = op->gate_up + (size_t)t * 2 * width;
        gate_range(gate, gate + width, row, 0, width, kind);
        put_row(row, op->out, (size_t)t, width, op->out_stride, 1);
    }
    if (tid == 0) pad_rows(op->out, total, op->out_stride);
}

void hb_center(const struct center *op, int tid, int threads) {
    int d = op->width, begin, end;
    hb_share(op->tokens, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        float *x = op->x + (size_t)t * op->stride, sum = 0;
        vf part = {0};
        int i = 0;
        for (; i + LANES <= d; i += LANES) part += vf_load(x + i);
        for (; i < d; i++) sum += x[i];
        float mean = (vf_sum(part) + sum) / (float)d;
        for (i = 0; i < d; i++) x[i] -= mean;
    }
}

void hb_add(const struct add *op, int tid, int threads) {
    int width = op->width, begin, end;
    hb_share(width, tid, threads, &begin, &end);
    for (int t = 0; t < op->tokens; t++) {
        const float *x = (const float *)op->x + (size_t)t * op->x_stride;
        const uint16_t *half = (const uint16_t *)op->x + (size_t)t * op->x_stride;
        float *y = op->y + (size_t)t * op->y_stride;
        if (op->half)
            for (int i = begin; i < end; i++) y[i] += from_bf16(half[i]);
        else
            for (int i = begin; i < end; i++) y[i] += x[i];
    }
}

/* One head of GatedNorm. */
static void gated_head(const struct gated_norm *op, int t, int head, float *out) {
    int dim = op->dim;
    const float *x = op->x + ((size_t)t * op->heads + head) * dim;
    const float *z = op->z + (size_t)t * op->z_stride + op->z_begin + (size_t)head * dim;
    norm_row(x, op->weight, out, dim, op->eps);
    gate_range(z, out, out, 0, dim, GATE_SILU);
}

void hb_gated_norm(const struct gated_norm *op, int tid, int threads) {
    int width = op->heads * op->dim, heads = op->heads;
    if (!op->half) {
        for (int unit = tid; unit < op->tokens * heads; unit += threads) {
            int t = unit / heads, head = unit % heads;
            gated_head(op, t, head,
                       (float *)op->out + (size_t)t * op->out_stride + (size_t)head * op->dim);
        }
        return;
    }
    float *row = hb_scratch((size_t)width);
    for (int t = tid; t < op->tokens; t += threads) {
        for (int head = 0; head < heads; head++) gated_head(op, t, head, row + head * op->dim);
        put_row(row, op->out, (size_t)t, width, op->out_stride, 1);
    }
    if (tid == 0) pad_rows(op->out, op->tokens, op->out_stride);
}

void hb_sigmoid_mul(const struct sigmoid_mul *op, int tid, int threads) {
    int width = op->width, begin, end;
    hb_share((width + LANES - 1) / LANES, tid, threads, &begin, &end);
    begin *= LANES;
    end = end * LANES < width ? end * LANES : width;
    for (int t = 0; t < op->tokens; t++) {
        float *x = op->x + (size_t)t * op->x_stride;
        const float *gate = op->gate + (size_t)t * op->gate_stride;
        for (int i = begin; i < end; i += LANES) {
            size_t bytes = (size_t)(end - i < LANES ? end - i : LANES) * sizeof(float);
            vf a = {0}, g = {0};
            memcpy(&a, x + i, bytes);
            if (op->single) g = vf_set(gate[0]);
            else memcpy(&g, gate + i, bytes);
            a = vf_sigmoid_mul(a, g);
            memcpy(x + i, &a, bytes);
        }
    }
}
