/* A pool of threads that run a step in lockstep.
 *
 * Between two steps a worker spins for a while, because the next one usually follows within a
 * fraction of a millisecond, and then sleeps. Inside a step all threads spin at the barriers and
 * give up their core when one lasts long (another process holds it).
 */
#include "halfbyte.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

typedef struct hb_pool {
    int threads;
    _Atomic uint32_t job;      /* number of the current job; workers wait for a new one */
    _Atomic int arrived;
    _Atomic uint32_t phase;    /* barrier generation */
    _Atomic int sleeping;
    _Atomic int stop;
    const hb_op *ops;
    int count;
    int64_t spin_ns;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t *handles;
} hb_pool;

typedef struct {
    hb_pool *pool;
    int tid;
} worker_arg;

static _Thread_local float *scratch;
static _Thread_local size_t scratch_floats;

float *hb_scratch(size_t floats) {
    if (floats > scratch_floats) {
        free(scratch);
        scratch = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
        scratch_floats = scratch ? floats : 0;
        if (!scratch) abort();
    }
    return scratch;
}

static inline void relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What a thread that waits fetches into its second cache: the beginning of its part of the weight
 * that comes next. Memory would do nothing while small ops run, which in a small model take a tenth
 * of a step, and every product would begin with cold reads. */
typedef struct {
    const hb_op *op;
    const char *at, *end;
} next_weight;

enum { LOOK_AHEAD = 10 /* ops */, MOST_FETCHED = 64 << 10 };

static void find_next(const hb_op *ops, int count, int tid, int threads, next_weight *next) {
    for (const hb_op *op = ops; op < ops + count && op < ops + LOOK_AHEAD; op++) {
        size_t bytes;
        if (op == next->op) return;
        if (!hb_reads_weight(op, tid, threads, &next->at, &bytes)) continue;
        next->op = op;
        next->end = next->at + (bytes < MOST_FETCHED ? bytes : MOST_FETCHED);
        return;
    }
    next->at = next->end;
}

/* Wait until all threads are here. `ops` are the `left` that follow: after the last barrier of a
 * program there are none, and nothing of it may be read. */
static void barrier(hb_pool *pool, const hb_op *ops, int left, int tid, next_weight *next) {
    if (pool->threads == 1) return;
    uint32_t phase = atomic_load_explicit(&pool->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    find_next(ops, left, tid, pool->threads, next);
    for (unsigned spins = 1; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase;
         spins++) {
        if (next->at < next->end) __builtin_prefetch(next->at, 0, 2), next->at += 64;
        else if (spins > 400 && spins % 32 == 0) sched_yield();
        else relax();
    }
}

static void run_ops(hb_pool *pool, int tid) {
    const hb_op *ops = pool->ops;
    int count = pool->count;
    next_weight next = {0};
    for (int i = 0; i < count; i++) {
        hb_call(&ops[i], tid, pool->threads);
        barrier(pool, ops + i + 1, count - i - 1, tid, &next);
    }
}

static void *worker(void *raw) {
    worker_arg arg = *(worker_arg *)raw;
    hb_pool *pool = arg.pool;
    uint32_t seen = 0;
    free(raw);
    for (;;) {
        int64_t until = now_ns() + pool->spin_ns;
        unsigned spins = 0;
        while (atomic_load_explicit(&pool->job, memory_order_acquire) == seen) {
            relax();
            if (++spins % 64 || now_ns() < until) continue;
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->sleeping, 1);
            while (atomic_load(&pool->job) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
            atomic_fetch_sub(&pool->sleeping, 1);
            pthread_mutex_unlock(&pool->lock);
        }
        seen = atomic_load_explicit(&pool->job, memory_order_acquire);
        if (atomic_load(&pool->stop)) break;
        run_ops(pool, arg.tid);
    }
    free(scratch);
    return NULL;
}

static void post(hb_pool *pool) {
    atomic_fetch_add(&pool->job, 1);
    if (atomic_load(&pool->sleeping)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Stop and join the workers. */
void hb_pool_free(hb_pool *pool) {
    atomic_store(&pool->stop, 1);
    post(pool);
    for (int tid = 1; tid < pool->threads; tid++) pthread_join(pool->handles[tid], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool->handles);
    free(pool);
}

/* A pool of `threads`, the caller being one of them; NULL when a thread cannot be made. */
hb_pool *hb_pool_new(int threads) {
    hb_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->handles = calloc((size_t)threads, sizeof *pool->handles);
    for (int tid = 1; tid < threads; tid++) {
        worker_arg *arg = malloc(sizeof *arg);
        *arg = (worker_arg){pool, tid};
        if (pthread_create(&pool->handles[tid], NULL, worker, arg)) {
            free(arg);
            pool->threads = tid;
            hb_pool_free(pool);
            return NULL;
        }
    }
    return pool;
}

/* Run `count` ops on all threads; returns when all are done. Workers spin for `spin_us` after. */
void hb_run(hb_pool *pool, const hb_op *ops, int count, int spin_us) {
    /* Without a barrier a worker could take up the next job for this one. */
    if (!count) return;
    pool->ops = ops;
    pool->count = count;
    pool->spin_ns = (int64_t)spin_us * 1000;
    if (pool->threads > 1) post(pool);
    run_ops(pool, 0);
}
