/* Attention over the paged cache, in partitions of fixed size.
 *
 * Partitions hold 128 keys and are anchored at position 0, whatever the length, the number of
 * threads or the batch; partial results are merged from the first to the last. A query's scores,
 * sums and values are chains in the order of the head dimension and of the keys, and a hidden
 * key adds exactly zero. So a query's result depends on nothing but itself and its keys, and
 * decode, prefill and chunked prefill give the same bits. Source of the merge: Milakov and
 * Gimelshein, 2018.
 *
 * A unit is one key/value head and a run of tokens of one text; all its query heads share each
 * tile of LANES keys, which is transposed once so that a lane is a key and no sum is horizontal.
 */
#include "halfbyte.h"

/* Queries that share a pass over the values, and vectors of it: as many as registers allow. */
#define MOST 6
#define WIDE (LANES == 8 ? 2 : 4)

typedef struct attention attention;

static inline int first_key(const attention *a, int position) {
    return a->window && position + 1 > a->window ? position + 1 - a->window : 0;
}

/* Where a head's key or value number `key` starts. Blocks are a power of two, at least 16 keys, so
 * the keys of a tile lie in one block, one after the other. */
static inline size_t cache_at(const attention *a, const int32_t *table, int kv, int key) {
    size_t block = (size_t)table[key >> a->block_shift];
    int offset = key & (a->block_size - 1);
    return block * a->block_stride + ((size_t)kv * a->block_size + offset) * a->dim;
}

/* log2(LANES) rounds of interleaving transpose LANES rows of LANES. */
static void transpose(vf r[LANES]) {
#pragma GCC unroll 4
    for (int width = 1; width < LANES; width *= 2) {
        vf next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = vf_low(r[i], r[i + LANES / 2]);
            next[2 * i + 1] = vf_high(r[i], r[i + LANES / 2]);
        }
        memcpy(r, next, sizeof next);
    }
}

/* LANES keys from `key` on of one head as [E][LANES]; keys from `end` on are zero. */
static void load_keys(const attention *a, const int32_t *table, int kv, int key, int end,
                      float *tile) {
    const float *first = a->k + cache_at(a, table, kv, key);
    int count = end - key < LANES ? end - key : LANES, dim = a->dim, e = 0;
    for (; e + LANES <= dim; e += LANES) {
        vf r[LANES];
        /* The next tile of keys; past the end of a block this fetches in vain, no more. */
        for (int i = 0; i < LANES; i++)
            __builtin_prefetch(first + (size_t)(LANES + i) * dim + e);
        for (int i = 0; i < LANES; i++)
            r[i] = i < count ? vf_load(first + (size_t)i * dim + e) : (vf){0};
        transpose(r);
        for (int i = 0; i < LANES; i++) vf_store(tile + (e + i) * LANES, r[i]);
    }
    for (; e < dim; e++)
        for (int i = 0; i < LANES; i++)
            tile[e * LANES + i] = i < count ? first[(size_t)i * dim + e] : 0.0f;
}

/* Scores of up to four queries against one tile of keys. */
#define SCORES(count)                                                              \
    for (; i + count <= queries; i += count) {                                     \
        vf s[count] = {0};                                                         \
        for (int e = 0; e < a->dim; e++) {                                         \
            vf key = vf_load(tile + e * LANES);                                    \
            for (int j = 0; j < count; j++)                                        \
                s[j] = vf_fma(key, vf_set(q[i + j][e]), s[j]);                     \
        }                                                                          \
        for (int j = 0; j < count; j++)                                            \
            vf_store(p + (size_t)(i + j) * PARTITION + at, s[j] * a->scale);       \
    }

static void score_tile(const attention *a, const float *const *q, int queries, const float *tile,
                       float *p, int at) {
    int i = 0;
    SCORES(8)
    SCORES(4)
    SCORES(3)
    SCORES(2)
    SCORES(1)
    if (!a->softcap) return;
    for (i = 0; i < queries; i++) {
        float *s = p + (size_t)i * PARTITION + at;
        vf_store(s, vf_tanh(vf_load(s) / a->softcap) * a->softcap);
    }
}

/* Scores to weights in place: e**(s - peak) for visible keys, 0 for hidden ones. */
static void soften(float *p, int hidden_below, int visible, float *peak, float *sum) {
    for (int i = 0; i < hidden_below; i++) p[i] = -INFINITY;
    for (int i = visible; i < PARTITION; i++) p[i] = -INFINITY;
    vf top = vf_set(-INFINITY), total = {0};
    for (int i = 0; i < PARTITION; i += LANES) {
        vf v = vf_load(p + i);
        vi more = v > top;
        top = (vf)(((vi)v & more) | ((vi)top & ~more));
    }
    *peak = vf_max(top);
    for (int i = 0; i < PARTITION; i += LANES) {
        vf e = vf_exp(vf_load(p + i) - *peak);
        total += e;
        vf_store(p + i, e);
    }
    *sum = vf_sum(total);
}

/* acc [E] of `count` queries: sum over keys of weight * value, some dimensions at a time. */
#define VALUES(count, vectors)                                                     \
    for (; e + vectors * LANES <= a->dim; e += vectors * LANES) {                  \
        vf s[count][vectors] = {0};                                                \
        for (int key = begin; key < end; key++) {                                  \
            const float *v = value[key - start] + e;                               \
            for (int x = 0; x < vectors; x++) {                                    \
                vf element = vf_load(v + x * LANES);                               \
                for (int j = 0; j < count; j++) {                                  \
                    vf weight = vf_set(p[j * PARTITION + key - start]);            \
                    s[j][x] = vf_fma(element, weight, s[j][x]);                    \
                }                                                                  \
            }                                                                      \
        }                                                                          \
        for (int j = 0; j < count; j++)                                            \
            for (int x = 0; x < vectors; x++)                                      \
                vf_store(acc[j] + e + x * LANES, s[j][x]);                         \
    }

#define WEIGH(name, count)                                                                    \
    static void name(const attention *a, const float *const *value, const float *p,           \
                     int start, int begin, int end, float *const *acc) {                      \
        int e = 0;                                                                            \
        VALUES(count, WIDE)                                                                   \
        VALUES(count, 1)                                                                      \
        for (; e < a->dim; e++)                                                               \
            for (int j = 0; j < count; j++) {                                                 \
                float s = 0;                                                                  \
                for (int key = begin; key < end; key++)                                       \
                    s = f_fma(value[key - start][e], p[j * PARTITION + key - start], s);      \
                acc[j][e] = s;                                                                \
            }                                                                                 \
    }
WEIGH(weigh_1, 1)
WEIGH(weigh_2, 2)
WEIGH(weigh_3, 3)
WEIGH(weigh_6, 6)

/* One partition for all queries of tokens [t0, t1) and key/value head `kv`. `state(i)` is where
 * query i's (peak, sum, values [E]) go; queries that see none of the keys are left alone. */
static void partition(const attention *a, int t0, int t1, int kv, int part, float *scratch,
                      float *const *state) {
    int start = part * PARTITION, queries = 0, lowest = INT32_MAX, last = a->positions[t1 - 1];
    const int32_t *table = a->tables + (size_t)a->rows[t0] * a->table_width;
    const float *value[PARTITION];
    const float **q = (const float **)scratch;
    float *p = scratch + (size_t)a->max_run * a->group * 2;
    float *tile = p + (size_t)a->max_run * a->group * PARTITION;
    for (int t = t0; t < t1; t++) {
        int first = first_key(a, a->positions[t]);
        if (first < lowest) lowest = first;
        for (int g = 0; g < a->group; g++)
            q[queries++] = a->q + ((size_t)t * a->heads + kv * a->group + g) * a->dim;
    }
    int begin = lowest > start ? lowest : start;
    int end = start + PARTITION < last + 1 ? start + PARTITION : last + 1;
    for (int key = start + (begin - start) / LANES * LANES; key < end; key += LANES) {
        const char *values = (const char *)(a->v + cache_at(a, table, kv, key));
        for (int i = 0; i < LANES * a->dim * 4; i += 64) __builtin_prefetch(values + i);
        load_keys(a, table, kv, key, end, tile);
        score_tile(a, q, queries, tile, p, key - start);
    }
    for (int key = start + (begin - start) / LANES * LANES; key < end; key += LANES) {
        const float *first = a->v + cache_at(a, table, kv, key);
        for (int i = 0; i < LANES; i++) value[key - start + i] = first + (size_t)i * a->dim;
    }
    for (int i = 0; i < queries;) {
        int count = 0;
        float *acc[MOST];
        for (; count < MOST && i + count < queries; count++) {
            int position = a->positions[t0 + (i + count) / a->group];
            int hidden = first_key(a, position) - start, seen = position + 1 - start;
            float *s = state[i + count];
            if (hidden < 0) hidden = 0;
            if (seen > PARTITION) seen = PARTITION;
            if (hidden >= seen) break;
            soften(p + (size_t)(i + count) * PARTITION, hidden, seen, s, s + 1);
            acc[count] = s + 2;
        }
        const float *weights = p + (size_t)i * PARTITION;
        i += count ? count : 1;
        if (count == MOST) {
            weigh_6(a, value, weights, start, begin, end, acc);
            continue;
        }
        int done = 0;
        for (; count - done >= 3; done += 3)
            weigh_3(a, value, weights + done * PARTITION, start, begin, end, acc + done);
        if (count - done == 2)
            weigh_2(a, value, weights + done * PARTITION, start, begin, end, acc + done);
        if (count - done == 1)
            weigh_1(a, value, weights + done * PARTITION, start, begin, end, acc + done);
    }
}

static int sees(const attention *a, int position, int part) {
    int start = part * PARTITION;
    return start <= position && first_key(a, position) < start + PARTITION;
}

/* into := into (+) from, both as (peak, sum, values [E]). */
static void merge(float *into, const float *from, int dim) {
    float peak = into[0] > from[0] ? into[0] : from[0];
    float keep = expf(into[0] - peak), take = expf(from[0] - peak);
    into[0] = peak;
    into[1] = into[1] * keep + from[1] * take;
    for (int i = 0; i < dim; i++) into[2 + i] = into[2 + i] * keep + from[2 + i] * take;
}

static void finish(const attention *a, int token, int head, const float *state) {
    float *out = a->out + ((size_t)token * a->heads + head) * a->dim;
    float inverse = 1.0f / state[1];
    for (int i = 0; i < a->dim; i++) out[i] = state[2 + i] * inverse;
}

static size_t work_floats(const attention *a) {
    size_t queries = (size_t)a->max_run * a->group;
    return queries * (2 + PARTITION) + (size_t)a->dim * LANES;
}

/* Single tokens, every (token, key/value head, partition) a separate unit. */
void hb_attention_split(const struct attention_split *op, int tid, int threads) {
    const attention *a = &op->attention;
    int stride = a->dim + 2, unit = 0;
    float *scratch = hb_scratch(work_floats(a) + (size_t)a->group * 2);
    float **state = (float **)(scratch + work_floats(a));
    for (int t = 0; t < a->units; t++)
        for (int kv = 0; kv < a->kv_heads; kv++)
            for (int part = 0; part * PARTITION <= a->positions[t]; part++) {
                if (!sees(a, a->positions[t], part) || unit++ % threads != tid) continue;
                for (int g = 0; g < a->group; g++) {
                    size_t query = (size_t)t * a->heads + kv * a->group + g;
                    state[g] = a->partial + (query * a->partitions + part) * stride;
                }
                partition(a, t, t + 1, kv, part, scratch, state);
            }
}

/* Merges what hb_attention_split left, first partition first. */
void hb_attention_merge(const struct attention_merge *op, int tid, int threads) {
    const attention *a = &op->attention;
    int stride = a->dim + 2;
    for (int unit = tid; unit < a->units * a->heads; unit += threads) {
        int t = unit / a->heads;
        float *first = NULL;
        for (int part = 0; part * PARTITION <= a->positions[t]; part++) {
            if (!sees(a, a->positions[t], part)) continue;
            float *state = a->partial + ((size_t)unit * a->partitions + part) * stride;
            if (first) merge(first, state, a->dim);
            else first = state;
        }
        finish(a, t, unit % a->heads, first);
    }
}

/* Runs of tokens: each (run, key/value head) goes through its partitions in order. */
void hb_attention_run(const struct attention_run *op, int tid, int threads) {
    const attention *a = &op->attention;
    int stride = a->dim + 2, most = a->max_run * a->group;
    size_t work = work_floats(a);
    float *scratch = hb_scratch(work + (size_t)most * (2 + 2 * stride));
    float **state = (float **)(scratch + work);
    float *whole = scratch + work + (size_t)most * 2, *next = whole + (size_t)most * stride;
    /* The last runs of a prompt have the most keys, so they go first. */
    for (int unit = a->units * a->kv_heads - 1 - tid; unit >= 0; unit -= threads) {
        int run = unit / a->kv_heads, kv = unit % a->kv_heads;
        int t0 = a->runs[2 * run], t1 = a->runs[2 * run + 1], queries = (t1 - t0) * a->group;
        for (int i = 0; i < queries; i++) whole[(size_t)i * stride + 1] = 0;
        for (int part = 0; part * PARTITION <= a->positions[t1 - 1]; part++) {
            /* A query's first partition goes straight into its result. */
            for (int i = 0; i < queries; i++) {
                float *sum = whole + (size_t)i * stride + 1;
                state[i] = *sum == 0 ? sum - 1 : next + (size_t)i * stride;
            }
            partition(a, t0, t1, kv, part, scratch, state);
            for (int i = 0; i < queries; i++)
                if (state[i] != whole + (size_t)i * stride &&
                    sees(a, a->positions[t0 + i / a->group], part))
                    merge(whole + (size_t)i * stride, state[i], a->dim);
        }
        for (int i = 0; i < queries; i++)
            finish(a, t0 + i / a->group, kv * a->group + i % a->group, whole + (size_t)i * stride);
    }
}
