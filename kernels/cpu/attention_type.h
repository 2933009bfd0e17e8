/* Kernels of attention for one type of keys and values.
 *
 * attention.c includes this once for each type, with ELEMENT, its LOAD of LANES elements as
 * floats, and OF(name), the name that a function has for the type. Float blocks are those that
 * were converted, too.
 */

/* A BLOCK of keys or values to float [BLOCK][wide]; rows outside [from, to) become zero. */
static void OF(convert)(const void *source, int from, int to, int dim, int wide, float *out) {
    const ELEMENT *x = source;
    for (int i = 0; i < BLOCK; i++, x += dim, out += wide) {
        int e = 0;
        if (i < from || i >= to) {
            memset(out, 0, (size_t)wide * sizeof(float));
            continue;
        }
        for (; e + LANES <= dim; e += LANES) vf_store(out + e, LOAD(x + e));
        if (e < dim) {
            ELEMENT part[LANES] = {0};
            memcpy(part, x + e, (size_t)(dim - e) * sizeof(ELEMENT));
            vf_store(out + e, LOAD(part));
        }
    }
}

/* Fetch `count` elements of what is used some blocks later, a few lines at a time between the products: a
 * whole block at once fills the queue of misses, and everything waits until there is room. To the
 * second cache: the queue of the first is the shorter one. */
#define FETCH(ahead, first, count)                                                         \
    for (size_t at = 0; at < (size_t)(count) * sizeof(ELEMENT); at += 64)                  \
        __builtin_prefetch((ahead) + (size_t)(first) * sizeof(ELEMENT) + at, 0, 2);

/* Scores of `count` queries [count][wide] against a BLOCK of keys [BLOCK][wide], `keys` of them at
 * a time. */
#define SCORE(count, keys)                                                                 \
    static void OF(score_##count)(const ELEMENT *block, const char *ahead, int wide,       \
                                  const float *q, float scale, float *p) {                 \
        enum { STEP = (keys) < LANES ? (keys) : LANES };                                   \
        for (int tile = 0; tile < BLOCK; tile += LANES) {                                  \
            vf sums[count][LANES / 4], folded[count][8];                                   \
            for (int k = 0; k < LANES; k += STEP) {                                        \
                const ELEMENT *key = block + (size_t)(tile + k) * wide;                    \
                vf s[count][STEP] = {0};                                                   \
                FETCH(ahead, (tile + k) * wide, STEP * wide)                               \
                for (int e = 0; e < wide; e += LANES) {                                    \
                    vf x[STEP];                                                            \
                    for (int j = 0; j < STEP; j++) x[j] = LOAD(key + j * wide + e);        \
                    for (int i = 0; i < count; i++) {                                      \
                        vf y = kept(vf_load(q + (size_t)i * wide + e));                    \
                        for (int j = 0; j < STEP; j++) s[i][j] = vf_fma(x[j], y, s[i][j]); \
                    }                                                                      \
                }                                                                          \
                /* Four sums of a query are one vector to store, not four. */              \
                for (int i = 0; i < count; i++) {                                          \
                    for (int j = 0; j < STEP; j++) folded[i][k % 4 + j] = s[i][j];         \
                    for (int j = 0; j < STEP; j += 4)                                      \
                        if ((k + STEP) % 4 == 0)                                           \
                            sums[i][(k + j) / 4] = fold_four(folded[i] + j);               \
                }                                                                          \
            }                                                                              \
            for (int i = 0; i < count; i++)                                                \
                vf_store(p + i * PARTITION + tile, sums_of(sums[i]) * scale);              \
        }                                                                                  \
    }
SCORE(6, REGISTERS / 6)
SCORE(4, REGISTERS / 8 + REGISTERS / 24)
SCORE(3, 4)
SCORE(2, 4)
SCORE(1, 8)
#undef SCORE

/* acc [wide] of `count` queries += weight * value, key after key of a BLOCK [BLOCK][wide], `vectors`
 * of the values at a time. */
#define VALUES(count, vectors)                                                             \
    for (; e + (vectors) * LANES <= wide; e += (vectors) * LANES) {                        \
        vf s[count][vectors];                                                              \
        for (int i = 0; i < count; i++)                                                    \
            for (int x = 0; x < (vectors); x++) s[i][x] = vf_load(acc[i] + e + x * LANES); \
        for (int key = 0; key < BLOCK; key++) {                                            \
            const ELEMENT *v = block + (size_t)key * wide + e;                             \
            vf element[vectors];                                                           \
            for (int x = 0; x < (vectors); x++) element[x] = LOAD(v + x * LANES);          \
            FETCH(ahead, key * wide + e, (vectors) * LANES)                                \
            for (int i = 0; i < count; i++) {                                              \
                vf weight = kept(vf_set(p[i * PARTITION + key]));                          \
                for (int x = 0; x < (vectors); x++)                                        \
                    s[i][x] = vf_fma(element[x], weight, s[i][x]);                         \
            }                                                                              \
        }                                                                                  \
        for (int i = 0; i < count; i++)                                                    \
            for (int x = 0; x < (vectors); x++) vf_store(acc[i] + e + x * LANES, s[i][x]); \
    }
#define WEIGH(count, vectors)                                                             \
    static void OF(weigh_##count)(const ELEMENT *block, int wide, const float *p,         \
                                  float *const *acc, const char *ahead) {                 \
        int e = 0;                                                                        \
        VALUES(count, vectors)                                                            \
        VALUES(count, 1)                                                                  \
    }
WEIGH(6, REGISTERS / 6)
WEIGH(4, REGISTERS / 6)
WEIGH(3, 4)
WEIGH(2, 4)
WEIGH(1, 8)
#undef WEIGH
#undef VALUES
#undef FETCH

static void OF(score)(const void *block, const char *ahead, int wide, const float *q, int queries, float scale,
                      float *p) {
    for (int i = 0, count; i < queries; i += count, q += count * wide, p += count * PARTITION)
        switch (count = take(queries - i)) {
        case 6: OF(score_6)(block, ahead, wide, q, scale, p); break;
        case 4: OF(score_4)(block, ahead, wide, q, scale, p); break;
        case 3: OF(score_3)(block, ahead, wide, q, scale, p); break;
        case 2: OF(score_2)(block, ahead, wide, q, scale, p); break;
        default: OF(score_1)(block, ahead, wide, q, scale, p);
        }
}

static void OF(weigh)(const void *block, const char *ahead, int wide, int queries, const float *p,
                      float *const *acc) {
    for (int i = 0, count; i < queries; i += count, p += count * PARTITION)
        switch (count = take(queries - i)) {
        case 6: OF(weigh_6)(block, wide, p, acc + i, ahead); break;
        case 4: OF(weigh_4)(block, wide, p, acc + i, ahead); break;
        case 3: OF(weigh_3)(block, wide, p, acc + i, ahead); break;
        case 2: OF(weigh_2)(block, wide, p, acc + i, ahead); break;
        default: OF(weigh_1)(block, wide, p, acc + i, ahead);
        }
}

#undef ELEMENT
#undef LOAD
#undef OF
