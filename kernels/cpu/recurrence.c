/* Layers that keep a state once per sequence: a short convolution, and the gated delta rule.
 *
 * Both go through the tokens of a span one by one, in one order of sums, and read what came before
 * from the span's slot: bits do not depend on where a text was cut into steps. */
#include "halfbyte.h"

#define MOST_TAPS 64 /* MAX_CONVOLUTION of loaders/model/checks.py */
#define INLINE static inline __attribute__((always_inline))

/* `n` floats, the other lanes 0. */
INLINE vf load_part(const float *p, int n) {
    if (n == LANES) return vf_load(p);
    float part[LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof(float));
    return vf_load(part);
}

INLINE void store_part(float *p, vf v, int n) { memcpy(p, &v, (size_t)n * sizeof(float)); }

/* First token of span `r` and the one after its last. */
static void span_of(const struct sequences *s, int r, int *begin, int *end) {
    *begin = s->spans ? s->spans[2 * r] : r;
    *end = s->spans ? s->spans[2 * r + 1] : r + 1;
}

/* `n` channels of one span. */
static void convolve(const struct conv_tail *op, int begin, int end, float *tail, int fresh,
                     int channel, int n) {
    int taps = op->kernel, all = op->channels;
    vf past[MOST_TAPS], weight[MOST_TAPS];
    for (int i = 0; i < taps; i++) {
        weight[i] = load_part(op->weight + (size_t)i * all + channel, n);
        past[i] = fresh || i == taps - 1 ? (vf){0} : load_part(tail + (size_t)i * all + channel, n);
    }
    for (int t = begin; t < end; t++) {
        past[taps - 1] = load_part(op->x + (size_t)t * op->x_stride + channel, n);
        vf y = past[0] * weight[0];
        for (int i = 1; i < taps; i++) y = y + past[i] * weight[i];
        store_part(op->out + (size_t)t * all + channel, vf_sigmoid_mul(y, y), n);
        for (int i = 0; i + 1 < taps; i++) past[i] = past[i + 1];
    }
    for (int i = 0; i + 1 < taps; i++) store_part(tail + (size_t)i * all + channel, past[i], n);
}

void hb_conv_tail(const struct conv_tail *op, int tid, int threads) {
    const struct sequences *s = &op->sequences;
    int all = op->channels, first, last;
    hb_share((all + LANES - 1) / LANES, tid, threads, &first, &last);
    for (int r = 0; r < s->count; r++) {
        int begin, end;
        span_of(s, r, &begin, &end);
        float *tail = op->tails + (size_t)(s->slots[r] < 0 ? 0 : s->slots[r]) *
                                      (size_t)(op->kernel - 1) * all;
        for (int block = first; block < last; block++) {
            int channel = block * LANES, n = all - channel < LANES ? all - channel : LANES;
            if (s->slots[r] >= 0) {
                convolve(op, begin, end, tail, s->positions[begin] == 0, channel, n);
                continue;
            }
            for (int t = begin; t < end; t++)
                store_part(op->out + (size_t)t * all + channel, (vf){0}, n);
        }
    }
}

/* `x` over its length, times `scale`. */
static void unit_length(const float *x, float *out, int dim, float scale) {
    float sum = 0;
    for (int i = 0; i < dim; i++) sum = f_fma(x[i], x[i], sum);
    float factor = 1.0f / sqrtf(sum + 1e-6f);
    for (int i = 0; i < dim; i++) out[i] = x[i] * factor * scale;
}

/* One token for `vectors` vectors of a head's values, the last with `n` numbers. */
INLINE void delta_step(float *state, const float *q, const float *k, const float *v, float *out,
                       float decay, float beta, int keys, int values, int vectors, int n) {
    vf read[4], sum[4], change[4];
    for (int j = 0; j < vectors; j++) read[j] = sum[j] = (vf){0};
    for (int i = 0; i < keys; i++)
        for (int j = 0; j < vectors; j++) {
            int some = j == vectors - 1 ? n : LANES;
            vf kept = load_part(state + (size_t)i * values + j * LANES, some) * decay;
            read[j] = vf_fma(kept, vf_set(k[i]), read[j]);
        }
    for (int j = 0; j < vectors; j++) {
        int some = j == vectors - 1 ? n : LANES;
        change[j] = (load_part(v + j * LANES, some) - read[j]) * beta;
    }
    for (int i = 0; i < keys; i++)
        for (int j = 0; j < vectors; j++) {
            int some = j == vectors - 1 ? n : LANES;
            float *at = state + (size_t)i * values + j * LANES;
            vf kept = vf_fma(change[j], vf_set(k[i]), load_part(at, some) * decay);
            store_part(at, kept, some);
            sum[j] = vf_fma(kept, vf_set(q[i]), sum[j]);
        }
    for (int j = 0; j < vectors; j++)
        store_part(out + j * LANES, sum[j], j == vectors - 1 ? n : LANES);
}

/* All tokens of a span for one value head. */
static void delta_head(const struct gated_delta *op, int begin, int end, int h, float *state,
                       float *work) {
    int keys = op->key_dim, values = op->value_dim, heads = op->value_heads;
    int key_head = op->tiled ? h % op->key_heads : h / (heads / op->key_heads), all_keys = op->key_heads * keys;
    size_t width = (size_t)2 * all_keys + (size_t)heads * values;
    float *q = work, *k = work + keys, scale = 1.0f / sqrtf((float)keys);
    for (int t = begin; t < end; t++) {
        const float *x = op->x + (size_t)t * width, *ba = op->ba + (size_t)t * 2 * heads;
        float shifted = ba[heads + h] + op->bias[h];
        float softplus = log1pf(expf(-fabsf(shifted))) + (shifted > 0 ? shifted : 0);
        float decay = expf(op->rate[h] * softplus), beta = 1.0f / (1.0f + expf(-ba[h]));
        unit_length(x + (size_t)key_head * keys, q, keys, scale);
        unit_length(x + all_keys + (size_t)key_head * keys, k, keys, 1.0f);
        const float *v = x + 2 * (size_t)all_keys + (size_t)h * values;
        float *out = op->out + ((size_t)t * heads + h) * values;
        int at = 0;
        for (; at + 4 * LANES <= values; at += 4 * LANES)
            delta_step(state + at, q, k, v + at, out + at, decay, beta, keys, values, 4, LANES);
        for (; at < values; at += LANES) {
            int n = values - at < LANES ? values - at : LANES;
            delta_step(state + at, q, k, v + at, out + at, decay, beta, keys, values, 1, n);
        }
    }
}

void hb_gated_delta(const struct gated_delta *op, int tid, int threads) {
    const struct sequences *s = &op->sequences;
    int heads = op->value_heads;
    size_t size = (size_t)op->key_dim * op->value_dim;
    float *work = hb_scratch((size_t)op->key_dim * 2);
    for (int unit = tid; unit < s->count * heads; unit += threads) {
        int r = unit / heads, h = unit % heads, begin, end;
        span_of(s, r, &begin, &end);
        if (s->slots[r] < 0) {
            for (int t = begin; t < end; t++)
                memset(op->out + ((size_t)t * heads + h) * op->value_dim, 0,
                       (size_t)op->value_dim * sizeof(float));
            continue;
        }
        float *state = op->states + ((size_t)s->slots[r] * heads + h) * size;
        if (s->positions[begin] == 0) memset(state, 0, size * sizeof(float));
        delta_head(op, begin, end, h, state, work);
    }
}
