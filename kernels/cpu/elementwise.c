/* RMSNorm, RoPE with KV write, the gated activation, addition and the greedy choice. */
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

/* n: T, D, stride of out, whether out is bfloat16; f: eps;
 * p: x, weight, out, rows of x to take int64 [T] or NULL for all */
void hb_rms_norm(const hb_op *op, int tid, int threads) {
    int d = op->n[1], begin, end;
    const int64_t *rows = op->p[3];
    float *normed = hb_scratch((size_t)d);
    hb_share(op->n[0], tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        norm_row((const float *)op->p[0] + (size_t)(rows ? rows[t] : t) * d, op->p[1], normed, d,
                 op->f[0]);
        put_row(normed, op->p[2], (size_t)t, d, op->n[2], op->n[3]);
    }
    if (op->n[3] && tid == 0) pad_rows(op->p[2], op->n[0], op->n[2]);
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

/* n: T, H, J, E, half, block_size, elements between blocks; f: eps; p: qkv [T, (H + 2 J) E], angles [T, 2 half],
 * slots int64 [T], k cache, v cache [block, J, block_size, E], q norm or NULL, k norm or NULL,
 * q out [T, H, E] */
void hb_rope_kv(const hb_op *op, int tid, int threads) {
    int heads = op->n[1], kv_heads = op->n[2], dim = op->n[3], half = op->n[4];
    int size = op->n[5], all = heads + 2 * kv_heads;
    const int64_t *slots = op->p[2];
    float *normed = hb_scratch((size_t)dim);
    for (int unit = tid; unit < op->n[0] * all; unit += threads) {
        int t = unit / all, h = unit % all;
        const float *x = (const float *)op->p[0] + (size_t)unit * dim;
        const float *angles = (const float *)op->p[1] + (size_t)t * 2 * half;
        const float *gain = h < heads ? op->p[5] : h < heads + kv_heads ? op->p[6] : NULL;
        if (gain) {
            norm_row(x, gain, normed, dim, op->f[0]);
            x = normed;
        }
        if (h < heads) {
            rotate(x, angles, (float *)op->p[7] + ((size_t)t * heads + h) * dim, dim, half);
            continue;
        }
        int head = (h - heads) % kv_heads;
        size_t block = (size_t)(slots[t] / size), offset = (size_t)(slots[t] % size);
        size_t at = block * (size_t)op->n[6] + ((size_t)head * size + offset) * dim;
        if (h < heads + kv_heads) rotate(x, angles, (float *)op->p[3] + at, dim, half);
        else memcpy((float *)op->p[4] + at, x, (size_t)dim * sizeof(float));
    }
}

/* g * sigmoid(s), 0 for s below -88, where vf_exp(-s) ends and the sigmoid is under 1e-38. */
static inline vf gate_by(vf g, vf s) {
    vi under = s < -88.0f;
    return (vf)((vi)(g / (1.0f + vf_exp(-s))) & ~under);
}

/* GELU's tanh form is a sigmoid, too: (1 + tanh(u)) / 2 = sigmoid(2 u). */
static inline vf activate(vf g, int kind) {
    if (kind == GATE_SILU) return gate_by(g, g);
    return gate_by(g, g * vf_fma(g * 0.0713548163f, g, vf_set(1.59576912f)));
}

static void gate_range(const float *gate, const float *up, float *out, int begin, int end,
                       int kind) {
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

/* n: T, I, stride of out, whether out is bfloat16, GATE_*; p: gate and up [T, 2 I], out */
void hb_gated_mul(const hb_op *op, int tid, int threads) {
    int width = op->n[1], begin, end, total = op->n[0], kind = op->n[4];
    if (!op->n[3]) { /* few rows: share the columns */
        hb_share((width + LANES - 1) / LANES, tid, threads, &begin, &end);
        end = end * LANES < width ? end * LANES : width;
        for (int t = 0; t < total; t++) {
            const float *gate = (const float *)op->p[0] + (size_t)t * 2 * width;
            gate_range(gate, gate + width, (float *)op->p[1] + (size_t)t * op->n[2],
                       begin * LANES, end, kind);
        }
        return;
    }
    float *row = hb_scratch((size_t)width);
    hb_share(total, tid, threads, &begin, &end);
    for (int t = begin; t < end; t++) {
        const float *gate = (const float *)op->p[0] + (size_t)t * 2 * width;
        gate_range(gate, gate + width, row, 0, width, kind);
        put_row(row, op->p[1], (size_t)t, width, op->n[2], 1);
    }
    if (tid == 0) pad_rows(op->p[1], total, op->n[2]);
}

/* y += x. n: T, D, elements between rows of x and of y, whether x is bfloat16; p: x, y */
void hb_add(const hb_op *op, int tid, int threads) {
    int width = op->n[1], begin, end;
    hb_share(width, tid, threads, &begin, &end);
    for (int t = 0; t < op->n[0]; t++) {
        const float *x = (const float *)op->p[0] + (size_t)t * op->n[2];
        const uint16_t *half = (const uint16_t *)op->p[0] + (size_t)t * op->n[2];
        float *y = (float *)op->p[1] + (size_t)t * op->n[3];
        if (op->n[4])
            for (int i = begin; i < end; i++) y[i] += from_bf16(half[i]);
        else
            for (int i = begin; i < end; i++) y[i] += x[i];
    }
}

/* First index of the largest of V logits, -1 when any is NaN or the largest is infinite.
 * n: T, V, elements between rows; p: logits, out int64 [T] */
void hb_argmax(const hb_op *op, int tid, int threads) {
    int width = op->n[1];
    for (int t = tid; t < op->n[0]; t += threads) {
        const float *x = (const float *)op->p[0] + (size_t)t * op->n[2];
        vf top = vf_set(-INFINITY);
        float best = -INFINITY;
        vi nan = {0};
        int i = 0, bad = 0;
        for (; i + LANES <= width; i += LANES) {
            vf v = vf_load(x + i);
            vi more = v > top;
            nan |= v != v;
            top = (vf)(((vi)v & more) | ((vi)top & ~more));
        }
        for (; i < width; i++) {
            bad |= x[i] != x[i];
            best = x[i] > best ? x[i] : best;
        }
        for (i = 0; i < LANES; i++) bad |= nan[i];
        float peak = vf_max(top);
        best = peak > best ? peak : best;
        if (bad || best == INFINITY || best == -INFINITY) {
            ((int64_t *)op->p[1])[t] = -1;
            continue;
        }
        for (i = 0; i < width - 1 && x[i] != best; i++) {}
        ((int64_t *)op->p[1])[t] = i;
    }
}
