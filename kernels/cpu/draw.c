/* The next token of a row of logits: the first of the largest, or one drawn at random.
 *
 * Meaning: penalize, keep_mask and sample in kernels/reference.py, with the same random bits. Scores
 * are kept as distances from the best token, d = (best - x) / temperature >= 0, and the mass of a
 * distance is exp(-d). No row is sorted: what top-k and top-p keep is a threshold, and bits of a
 * float that is not negative sort as it does, so a search by bits finds it exactly.
 */
#include "halfbyte.h"

typedef uint64_t u64;

/* How a row is drawn: columns of `numbers` and of `counters`. */
typedef struct {
    float temperature, top_p, farthest, repetition, presence, frequency;
} row_numbers;
typedef struct {
    int64_t top_k, seed, position, text, length, prompt;
} row_counters;

static const u64 GOLDEN = 0x9E3779B97F4A7C15u;
/* Noise lies between -2.9 and 16.7: a token farther than this from the best one cannot win. */
static const float FARTHEST = 20.0f;
/* Bit of a token's count that says: it stands in the prompt. */
enum { IN_PROMPT = 1 << 30 };

static inline int any(vi mask) {
    u64 words[LANES / 2], all = 0;
    memcpy(words, &mask, sizeof mask);
    for (int i = 0; i < LANES / 2; i++) all |= words[i];
    return all != 0;
}

/* The largest of a row into `best`; 0 where there is none that is finite, or a NaN. */
static int find_best(const float *x, int width, float *best) {
    vf top = vf_set(-INFINITY);
    vi nan = {0};
    int i = 0, bad = 0;
    *best = -INFINITY;
    for (; i + LANES <= width; i += LANES) {
        vf v = vf_load(x + i);
        nan |= v != v;
        top = vf_pick(v > top, v, top);
    }
    for (; i < width; i++) {
        bad |= x[i] != x[i];
        *best = x[i] > *best ? x[i] : *best;
    }
    float peak = vf_max(top);
    *best = peak > *best ? peak : *best;
    return !bad && !any(nan) && *best < INFINITY && *best > -INFINITY;
}

static int first_of(const float *x, int width, float wanted) {
    int i = 0;
    while (i < width - 1 && x[i] != wanted) i++;
    return i;
}

void hb_argmax(const struct argmax *op, int tid, int threads) {
    for (int t = tid; t < op->tokens; t += threads) {
        const float *x = op->logits + (size_t)t * op->stride;
        float best;
        op->out[t] = find_best(x, op->width, &best) ? first_of(x, op->width, best) : -1;
    }
}

/* reference.penalize, for the tokens of a text: all others keep their logits. */
static void penalize(const struct draw *op, const row_numbers *by, const row_counters *row, float *x,
                     int32_t *counts) {
    const int64_t *text = op->texts + row->text;
    memset(counts, 0, (size_t)op->width * sizeof *counts);
    for (int i = 0; i < row->length; i++)
        if (text[i] < op->width) {
            if (i < row->prompt) counts[text[i]] |= IN_PROMPT;
            else counts[text[i]]++;
        }
    for (int i = 0; i < row->length; i++) {
        if (text[i] >= op->width || !counts[text[i]]) continue;
        float *at = x + text[i], output = (float)(counts[text[i]] & (IN_PROMPT - 1));
        float scaled = *at > 0 ? *at / by->repetition : *at * by->repetition;
        *at = scaled - (output > 0 ? by->presence : 0) - by->frequency * output;
        counts[text[i]] = 0;
    }
}

/* What the distances up to `limit` weigh: their number, or their mass in units of 2**-40, which adds
 * up to the same in any order. `count` is a multiple of LANES. */
static int64_t weigh(const float *d, int count, float limit, int by_mass) {
    int64_t total[LANES] = {0}, sum = 0;
    vi number = {0};
    for (int i = 0; i < count; i += LANES) {
        vf v = vf_load(d + i);
        vi within = v <= vf_set(limit);
        number -= within;
        if (!by_mass || !any(within)) continue;
        vf mass = vf_pick(within, vf_exp(-v) * 0x1p40f, vf_set(0));
        for (int j = 0; j < LANES; j++) total[j] += (int64_t)mass[j];
    }
    for (int j = 0; j < LANES; j++) sum += by_mass ? total[j] : number[j];
    return sum;
}

/* The least distance up to which a row weighs at least `target`; up to `most` it does. The search
 * goes on among those that are `near`, room for all. */
static float threshold(const float *d, int count, float most, int by_mass, int64_t target,
                       float *near) {
    float reach = 0.25f;
    while (reach < most && weigh(d, count, reach, by_mass) < target)
        reach = reach < 64 ? 2 * reach : INFINITY;
    reach = reach < most ? reach : most;
    int left = 0;
    for (int i = 0; i < count; i++) {
        near[left] = d[i];
        left += d[i] <= reach;
    }
    for (; left % LANES; left++) near[left] = NAN; /* within nothing */
    int32_t low = -1, high;
    memcpy(&high, &reach, sizeof high);
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        memcpy(&reach, &middle, sizeof reach);
        if (weigh(near, left, reach, by_mass) >= target) high = middle;
        else low = middle;
    }
    memcpy(&reach, &high, sizeof reach);
    return reach;
}

/* The finalizer of splitmix64 (Steele, Lea and Flood, 2014). */
static inline u64 mix(u64 x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* 23 random bits of a token. */
static inline uint32_t random_bits(u64 key, int token) {
    return (uint32_t)(mix(key + (u64)(token + 1) * GOLDEN) >> 41);
}

/* Standard Gumbel noise: the random number of a token lies in (0, 1). */
static float noise(u64 key, int token) {
    double uniform = (random_bits(key, token) + 0.5) / (1 << 23);
    return (float)-log(-log(uniform));
}

/* The token with the largest noise less distance, of those up to `limit`; the first of equals. */
static int draw_within(const float *d, int width, float limit, u64 key) {
    int token = first_of(d, width, 0);
    float top = noise(key, token);
    /* With a random number u, noise - d > top asks that -log(u) < exp(-d - top), and 1 - u is less
     * than -log(u): few pass a test by that, and only for those logarithms are taken. */
    float bound = (float)exp(-top) * 1.0001f;
    for (int i = 0; i < width; i += LANES) {
        vf v = vf_load(d + i), rest;
        vi within = v <= vf_set(limit);
        if (!any(within)) continue;
        for (int j = 0; j < LANES; j++)
            rest[j] = ((float)((1 << 23) - (int)random_bits(key, i + j)) - 0.5f) * 0x1p-23f;
        within &= rest < vf_exp(-v) * bound;
        if (!any(within)) continue;
        for (int j = 0; j < LANES; j++) {
            if (!within[j]) continue;
            float score = noise(key, i + j) - v[j];
            if (score < top || (score == top && i + j >= token)) continue;
            top = score, token = i + j;
            bound = (float)exp(-top) * 1.0001f;
        }
    }
    return token;
}

static int draw_row(const struct draw *op, int t) {
    const row_numbers *by = (const row_numbers *)op->numbers + t;
    const row_counters *row = (const row_counters *)op->counters + t;
    const float *x = op->logits + (size_t)t * op->stride;
    int width = op->width, count = (width + LANES - 1) / LANES * LANES;
    float best, *d = hb_scratch((size_t)count * 2), *near = d + count;
    if (row->length) {
        memcpy(d, x, (size_t)width * sizeof(float));
        penalize(op, by, row, d, (int32_t *)near);
        x = d;
    }
    if (!find_best(x, width, &best)) return -1;
    if (by->temperature == 0) return first_of(x, width, best);
    float heat = by->temperature > 1e-30f ? by->temperature : 1e-30f;
    int i = 0;
    for (; i + LANES <= width; i += LANES) vf_store(d + i, (best - vf_load(x + i)) / heat);
    for (; i < width; i++) d[i] = (best - x[i]) / heat;
    for (; i < count; i++) d[i] = NAN;
    float limit = INFINITY;
    if (row->top_k > 0 && row->top_k < width)
        limit = threshold(d, count, limit, 0, row->top_k, near);
    if (by->top_p < 1) {
        int64_t total = weigh(d, count, limit, 1), share = (int64_t)((double)total * by->top_p);
        limit = threshold(d, count, limit, 1, share > 1 ? share : 1, near);
    }
    limit = limit < by->farthest ? limit : by->farthest;
    u64 key = mix((u64)row->seed + GOLDEN);
    key = mix(key + (u64)(row->position + 1) * GOLDEN);
    return draw_within(d, width, limit < FARTHEST ? limit : FARTHEST, key);
}

void hb_draw(const struct draw *op, int tid, int threads) {
    for (int t = tid; t < op->tokens; t += threads) op->out[t] = draw_row(op, t);
}
