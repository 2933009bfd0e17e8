/* Attention over the paged cache, in partitions of fixed size.
 *
 * Partitions hold PARTITION keys and are anchored at position 0, whatever the length, the number
 * of threads or the batch. Partial results are merged from the first to the last of a span of
 * SPAN partitions, and the spans' results likewise. A score is a fixed tree over LANES chains in
 * the order of the head dimension, a value a chain in the order of the keys, and a hidden key
 * adds exactly zero. So a query's result depends on nothing but itself and its keys, and decode,
 * prefill, chunked prefill and any split over threads give the same bits. Source of the merge:
 * Milakov and Gimelshein, 2018.
 *
 * What is computed at a time is one key/value head for a run of tokens of one text: all their
 * query heads share each block of keys, or of values, which is converted to float once and then
 * stays in the first cache.
 */
#include "halfbyte.h"

/* Keys, or values, that are converted at once. */
#define BLOCK 16
#define BLOCKS_AHEAD 4 /* between the use of a block and what is fetched: longer than memory takes */
/* Queries that share a pass over them: as many as registers allow. */
#define MOST 6
#if LANES == 16 || defined(__aarch64__) /* 32 registers */
#define REGISTERS 24
#else
#define REGISTERS 12
#endif

typedef struct attention attention;

/* The memory of a thread.
 *
 * A state is (values [wide], peak, sum) of a query over some keys; a sum of 0 says that there
 * were none. */
typedef struct {
    int wide;      /* the head dimension in whole vectors; what is added is zero */
    float *q;      /* [queries][wide] */
    float *p;      /* [queries][PARTITION]: scores, then weights */
    float *block;  /* [BLOCK][wide] */
    float *next;   /* states of one partition */
    float **state; /* where they go */
    float **into;  /* where those of a span go */
} work;

static size_t work_floats(const attention *a) {
    size_t queries = (size_t)a->max_run * a->group;
    return queries * (PARTITION + 2 * (size_t)a->state_size + 4) + (size_t)BLOCK * a->state_size;
}

/* Lay out memory of work_floats: everything that vectors go over begins with a cache line. */
static work arrange(const attention *a, float *memory) {
    size_t queries = (size_t)a->max_run * a->group, size = (size_t)a->state_size;
    work w = {(a->dim + LANES - 1) / LANES * LANES, 0, 0, 0, 0, 0, 0};
    w.p = memory;
    w.q = w.p + queries * PARTITION;
    w.block = w.q + queries * size;
    w.next = w.block + BLOCK * size;
    w.state = (float **)(w.next + queries * size);
    w.into = w.state + queries;
    return w;
}

static inline int first_key(const attention *a, int position) {
    return a->window && position + 1 > a->window ? position + 1 - a->window : 0;
}

static inline float *sum_of(const work *w, float *state) { return state + w->wide + 1; }

static inline const float *scales_at(const attention *a, const float *scales,
                                     const int32_t *table, int kv, int key) {
    size_t block = (size_t)table[key >> a->block_shift];
    int offset = key & (a->block_size - 1);
    return scales + block * a->scale_stride + (size_t)kv * a->block_size + offset;
}

static inline vf vf_from_int8(const int8_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    vb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}

/* Halves of groups of four lanes interleaved: (a0 b0 a1 b1), (a2 b2 a3 b3). */
#if LANES == 16
#define FOUR_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define FOUR_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#elif LANES == 8
#define FOUR_LOW 0, 8, 1, 9, 4, 12, 5, 13
#define FOUR_HIGH 2, 10, 3, 11, 6, 14, 7, 15
#else
#define FOUR_LOW LOW
#define FOUR_HIGH HIGH
#endif
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

static inline vf fold(vf a, vf b) { return PICK(a, b, FOUR_LOW) + PICK(a, b, FOUR_HIGH); }

/* The first half of the tree that sums over lanes: four vectors become one. */
static inline vf fold_four(const vf r[4]) { return fold(fold(r[0], r[2]), fold(r[1], r[3])); }

/* The second half: sums over the lanes of LANES vectors, every four of them folded. */
static inline vf sums_of(const vf s[LANES / 4]) {
#if LANES == 16
#define HALVES(a, b)                                                              \
    (PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +         \
     PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    vf low = HALVES(s[0], s[1]), high = HALVES(s[2], s[3]);
    return PICK(low, high, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           PICK(low, high, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#elif LANES == 8
    return PICK(s[0], s[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           PICK(s[0], s[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
    return s[0];
#endif
}

/* The vector in a register: compilers would load it anew for each use. */
static inline vf kept(vf v) {
#if defined(__x86_64__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}

/* How many of `left` queries to take next, so that few passes have only one or two. */
static inline int take(int left) {
    if (left > 8 || left == 6) return 6;
    return left >= 7 || left == 4 ? 4 : left == 5 ? 3 : left;
}

#define ELEMENT float
#define LOAD vf_load
#define OF(name) name##_float32
#include "attention_type.h"
#define ELEMENT uint16_t
#define LOAD vf_from_half
#define OF(name) name##_float16
#include "attention_type.h"
#define ELEMENT uint16_t
#define LOAD vf_from_bf16
#define OF(name) name##_bfloat16
#include "attention_type.h"
#define ELEMENT int8_t
#define LOAD vf_from_int8
#define OF(name) name##_int8
#include "attention_type.h"

/* What there is for a type of keys and values. */
typedef struct {
    int size; /* bytes of an element */
    void (*convert)(const void *, int, int, int, int, float *);
    void (*score)(const void *, const char *, int, const float *, int, float, float *);
    void (*weigh)(const void *, const char *, int, int, const float *, float *const *);
} kernels;

static const kernels kernels_of[] = {
    [KV_FLOAT32] = {4, convert_float32, score_float32, weigh_float32},
    [KV_FLOAT16] = {2, convert_float16, score_float16, weigh_float16},
    [KV_BFLOAT16] = {2, convert_bfloat16, score_bfloat16, weigh_bfloat16},
    [KV_INT8] = {1, convert_int8, score_int8, weigh_int8},
};

/* A BLOCK that one pass or two go over is read as it lies: memory and arithmetic overlap then. One
 * for more queries, or of which rows are hidden, is converted first. */
#define DIRECT 8

typedef struct {
    const void *data;
    const kernels *with;
    const char *ahead; /* what is fetched meanwhile, laid out like the data */
} block;

static block block_of(const attention *a, const char *source, const char *ahead, int from, int to,
                      int queries, const work *w) {
    const kernels *own = &kernels_of[a->kv];
    int whole = from == 0 && to == BLOCK && w->wide == a->dim;
    if (whole && (queries <= DIRECT || a->kv == KV_FLOAT32)) return (block){source, own, ahead};
    own->convert(source, from, to, a->dim, w->wide, w->block);
    return (block){w->block, &kernels_of[KV_FLOAT32], (const char *)w->block};
}

/* Where a head's key or value number `key` starts. Blocks of the cache are a power of two, at least
 * 16 keys, so the keys of a BLOCK lie in one of them, one after the other. */
static inline const char *cache_at(const attention *a, const void *side, const int32_t *table,
                                   int kv, int key) {
    size_t block = (size_t)table[key >> a->block_shift];
    int offset = key & (a->block_size - 1);
    size_t at = block * a->block_stride + ((size_t)kv * a->block_size + offset) * a->dim;
    return (const char *)side + at * kernels_of[a->kv].size;
}

/* Number `i` of what a partition reads: `count` blocks of keys from key `first`, as many of values,
 * then the keys of the partition behind it. Behind the last key it is `first` again. */
static const char *block_at(const attention *a, const int32_t *table, int kv, int first, int count,
                            int i, int last) {
    const void *side = i < count || i >= 2 * count ? a->k : a->v;
    int key = i < 2 * count ? first + i % count * BLOCK
                            : (first / PARTITION + 1) * PARTITION + (i - 2 * count) * BLOCK;
    return cache_at(a, side, table, kv, key > last ? first : key);
}

/* p [queries][BLOCK] times the scales of int8 keys or values; those outside [from, to) become 0. */
static void rescale(float *p, int queries, const float *scales, int from, int to) {
    float known[BLOCK] = {0};
    memcpy(known + from, scales + from, (size_t)(to - from) * sizeof(float));
    for (int i = 0; i < queries; i++)
        for (int k = 0; k < BLOCK; k += LANES) {
            float *x = p + (size_t)i * PARTITION + k;
            vf_store(x, vf_load(x) * vf_load(known + k));
        }
}

static void cap(const attention *a, float *p, int queries) {
    for (int i = 0; i < queries; i++)
        for (int k = 0; k < BLOCK; k += LANES) {
            float *x = p + (size_t)i * PARTITION + k;
            vf_store(x, vf_tanh(vf_load(x) / a->softcap) * a->softcap);
        }
}

/* Scores to weights in place: e**(s - peak) for keys in [hidden, visible), 0 for others. */
static void soften(float *p, int hidden, int visible, float *peak, float *sum) {
    for (int i = 0; i < hidden; i++) p[i] = -INFINITY;
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

static int sees(const attention *a, int position, int part) {
    int start = part * PARTITION;
    return start <= position && first_key(a, position) < start + PARTITION;
}

/* One partition for all queries of tokens [t0, t1), each of which sees some of its keys. `q` are
 * the queries, `state` where their states go. */
static void partition(const attention *a, int t0, int t1, int kv, int part, const float *q,
                      const work *w, float *const *state) {
    int start = part * PARTITION, queries = (t1 - t0) * a->group;
    int lowest = first_key(a, a->positions[t0]), last = a->positions[t1 - 1];
    int begin = lowest > start ? lowest : start;
    int end = start + PARTITION < last + 1 ? start + PARTITION : last + 1;
    int first = start + (begin - start) / BLOCK * BLOCK;
    const int32_t *table = a->tables + (size_t)a->rows[t0] * a->table_width;
    int count = (end - first + BLOCK - 1) / BLOCK, turn = 0;
    for (int key = first; key < end; key += BLOCK) {
        int from = begin > key ? begin - key : 0, to = end - key < BLOCK ? end - key : BLOCK;
        float *p = w->p + (key - start);
        const char *now = block_at(a, table, kv, first, count, turn, last);
        const char *ahead = block_at(a, table, kv, first, count, turn++ + BLOCKS_AHEAD, last);
        block keys = block_of(a, now, ahead, from, to, queries, w);
        keys.with->score(keys.data, keys.ahead, w->wide, q, queries, a->scale, p);
        if (a->k_scales)
            rescale(p, queries, scales_at(a, a->k_scales, table, kv, key), from, to);
        if (a->softcap) cap(a, p, queries);
    }
    for (int i = 0; i < queries; i++) {
        int position = a->positions[t0 + i / a->group];
        int hidden = first_key(a, position) - start, seen = position + 1 - start;
        float *sum = sum_of(w, state[i]);
        soften(w->p + (size_t)i * PARTITION, hidden < 0 ? 0 : hidden,
               seen > PARTITION ? PARTITION : seen, sum - 1, sum);
        memset(state[i], 0, (size_t)w->wide * sizeof(float));
    }
    for (int key = first; key < end; key += BLOCK) {
        int from = begin > key ? begin - key : 0, to = end - key < BLOCK ? end - key : BLOCK;
        float *p = w->p + (key - start);
        const char *now = block_at(a, table, kv, first, count, turn, last);
        const char *ahead = block_at(a, table, kv, first, count, turn++ + BLOCKS_AHEAD, last);
        block values = block_of(a, now, ahead, from, to, queries, w);
        if (a->v_scales)
            rescale(p, queries, scales_at(a, a->v_scales, table, kv, key), from, to);
        values.with->weigh(values.data, values.ahead, w->wide, queries, p, state);
    }
}

/* into := into (+) from, both states. */
static void merge(float *into, const float *from, int wide) {
    float peak = into[wide] > from[wide] ? into[wide] : from[wide];
    float keep = expf(into[wide] - peak), more = expf(from[wide] - peak);
    for (int i = 0; i < wide; i++) into[i] = into[i] * keep + from[i] * more;
    into[wide] = peak;
    into[wide + 1] = into[wide + 1] * keep + from[wide + 1] * more;
}

static void finish(const attention *a, int token, int head, const float *state, int wide) {
    float *out = a->out + ((size_t)token * a->heads + head) * a->dim;
    float inverse = 1.0f / state[wide + 1];
    if (a->sinks) { /* merged as a state without values would be */
        float sink = a->sinks[head], peak = state[wide] > sink ? state[wide] : sink;
        float keep = expf(state[wide] - peak);
        inverse = keep / (state[wide + 1] * keep + expf(sink - peak));
    }
    for (int i = 0; i < a->dim; i++) out[i] = state[i] * inverse;
}

/* The queries of tokens [t0, t1) and key/value head `kv` as [queries][wide]. */
static void gather(const attention *a, int t0, int t1, int kv, const work *w) {
    float *q = w->q;
    for (int t = t0; t < t1; t++)
        for (int g = 0; g < a->group; g++, q += w->wide) {
            const float *x = a->q + ((size_t)t * a->heads + kv * a->group + g) * a->dim;
            memcpy(q, x, (size_t)a->dim * sizeof(float));
            memset(q + a->dim, 0, (size_t)(w->wide - a->dim) * sizeof(float));
        }
}

/* Partitions [part, last), all of one span, for the queries that were gathered of [t0, t1): merged
 * from the first to the last into w->into. */
static void attend(const attention *a, int t0, int t1, int kv, int part, int last,
                   const work *w) {
    for (int i = 0; i < (t1 - t0) * a->group; i++) *sum_of(w, w->into[i]) = 0;
    for (; part < last; part++) {
        int from = t0, to = t1;
        while (from < to && !sees(a, a->positions[from], part)) from++;
        while (from < to && !sees(a, a->positions[to - 1], part)) to--;
        if (from == to) continue;
        int begin = (from - t0) * a->group, end = (to - t0) * a->group;
        /* A query's first partition goes straight to where the result is wanted. */
        for (int i = begin; i < end; i++)
            w->state[i] = *sum_of(w, w->into[i]) == 0 ? w->into[i]
                                                      : w->next + (size_t)i * a->state_size;
        partition(a, from, to, kv, part, w->q + (size_t)begin * w->wide, w, w->state + begin);
        for (int i = begin; i < end; i++)
            if (w->state[i] != w->into[i]) merge(w->into[i], w->state[i], w->wide);
    }
}

/* Tokens [t0, t1) of a run, and the pieces [first, last] of `keys` that they see. */
typedef struct {
    int t0, t1, first, last;
} span;

static span run_of(const attention *a, int run, int keys) {
    span s = {run, run + 1, 0, 0};
    if (a->runs) s = (span){a->runs[2 * run], a->runs[2 * run + 1], 0, 0};
    s.first = first_key(a, a->positions[s.t0]) / keys;
    s.last = a->positions[s.t1 - 1] / keys;
    return s;
}

/* Every (run, key/value head, `split` partitions) is a unit by itself. */
void hb_attention_split(const struct attention_split *op, int tid, int threads) {
    const attention *a = &op->attention;
    int keys = a->split * PARTITION, unit = 0, count = 0, begin, end;
    work w = arrange(a, hb_scratch(work_floats(a)));
    for (int run = 0; run < a->run_count; run++) {
        span s = run_of(a, run, keys);
        count += (s.last - s.first + 1) * a->kv_heads;
    }
    /* Neighbours for each thread: what is fetched ahead is then its own. */
    hb_share(count, tid, threads, &begin, &end);
    for (int run = 0; run < a->run_count; run++) {
        span s = run_of(a, run, keys);
        int t0 = s.t0, t1 = s.t1;
        for (int kv = 0; kv < a->kv_heads; kv++)
            for (int piece = s.first; piece <= s.last; piece++, unit++) {
                if (unit < begin || unit >= end) continue;
                int i = 0;
                for (int t = t0; t < t1; t++)
                    for (int g = 0; g < a->group; g++) {
                        size_t query = (size_t)t * a->heads + kv * a->group + g;
                        w.into[i++] = a->partial + (query * a->pieces + piece) * a->state_size;
                    }
                gather(a, t0, t1, kv, &w);
                attend(a, t0, t1, kv, piece * a->split, (piece + 1) * a->split, &w);
            }
    }
}

/* What hb_attention_split left of each (token, head), merged first within spans. */
void hb_attention_merge(const struct attention_merge *op, int tid, int threads) {
    const attention *a = &op->attention;
    int keys = a->split * PARTITION, wide = (a->dim + LANES - 1) / LANES * LANES;
    for (int unit = tid; unit < a->tokens * a->heads; unit += threads) {
        int position = a->positions[unit / a->heads], last = position / keys;
        float *whole = NULL, *part = NULL;
        for (int piece = first_key(a, position) / keys; piece <= last; piece++) {
            float *state = a->partial + ((size_t)unit * a->pieces + piece) * a->state_size;
            if (part && piece * a->split % SPAN) {
                merge(part, state, wide);
                continue;
            }
            if (whole) merge(whole, part, wide);
            else whole = part;
            part = state;
        }
        if (whole) merge(whole, part, wide);
        else whole = part;
        finish(a, unit / a->heads, unit % a->heads, whole, wide);
    }
}

/* Every (run, key/value head) is a unit, and goes through its spans in order. */
void hb_attention_run(const struct attention_run *op, int tid, int threads) {
    const attention *a = &op->attention;
    size_t most = (size_t)a->max_run * a->group, size = (size_t)a->state_size;
    float *memory = hb_scratch(work_floats(a) + 2 * most * size);
    float *whole = memory, *more = memory + most * size;
    work w = arrange(a, memory + 2 * most * size);
    /* The last runs of a prompt have the most keys, so they go first. */
    for (int unit = a->run_count * a->kv_heads - 1 - tid; unit >= 0; unit -= threads) {
        span s = run_of(a, unit / a->kv_heads, SPAN * PARTITION);
        int kv = unit % a->kv_heads, t0 = s.t0, t1 = s.t1, queries = (t1 - t0) * a->group;
        gather(a, t0, t1, kv, &w);
        for (int i = 0; i < queries; i++) *sum_of(&w, whole + i * size) = 0;
        for (int piece = s.first; piece <= s.last; piece++) {
            for (int i = 0; i < queries; i++) {
                float *state = whole + i * size;
                w.into[i] = *sum_of(&w, state) == 0 ? state : more + i * size;
            }
            attend(a, t0, t1, kv, piece * SPAN, (piece + 1) * SPAN, &w);
            for (int i = 0; i < queries; i++)
                if (w.into[i] != whole + i * size && *sum_of(&w, w.into[i]) != 0)
                    merge(whole + i * size, w.into[i], w.wide);
        }
        for (int i = 0; i < queries; i++)
            finish(a, t0 + i / a->group, kv * a->group + i % a->group, whole + i * size, w.wide);
    }
}
