/* Runs programs of the C kernels for a parent process that cannot load them: another machine's
 * code, under an emulator. See arm_support.py.
 *
 * A request on standard input: int32 numbers of ops, of buffers and of pointers, int64 size of each
 * buffer, int64 triples of a pointer (where it lies in the ops, the number of its buffer, an offset
 * into that), the ops, the buffers' bytes. The answer is the buffers' bytes after the program. */
#include "halfbyte.h"

#include <stdio.h>

typedef struct hb_pool hb_pool;
hb_pool *hb_pool_new(int threads);
void hb_run(hb_pool *pool, const hb_op *ops, int count, int spin_us);
int hb_lanes(void);
int hb_has_amx(void);
int hb_has_moments(void);

static void get(void *to, size_t size) {
    if (fread(to, 1, size, stdin) != size) exit(0);
}

static void *room(size_t size) {
    void *p = aligned_alloc(64, (size + 64) / 64 * 64);
    if (!p) abort();
    return p;
}

int main(int argc, char **argv) {
    hb_pool *pool = hb_pool_new(argc > 1 ? atoi(argv[1]) : 1);
    int32_t about[3] = {hb_lanes(), hb_has_amx(), hb_has_moments()}, head[3];
    fwrite(about, sizeof about, 1, stdout);
    fflush(stdout);
    for (;;) {
        get(head, sizeof head);
        int64_t *sizes = room((size_t)head[1] * sizeof *sizes);
        int64_t *pointers = room((size_t)head[2] * 3 * sizeof *pointers);
        char **buffers = room((size_t)head[1] * sizeof *buffers);
        hb_op *ops = room((size_t)head[0] * sizeof *ops);
        get(sizes, (size_t)head[1] * sizeof *sizes);
        get(pointers, (size_t)head[2] * 3 * sizeof *pointers);
        get(ops, (size_t)head[0] * sizeof *ops);
        for (int i = 0; i < head[1]; i++) get(buffers[i] = room((size_t)sizes[i]), (size_t)sizes[i]);
        for (int64_t *p = pointers; p < pointers + 3 * head[2]; p += 3) {
            char *to = buffers[p[1]] + p[2];
            memcpy((char *)ops + p[0], &to, sizeof to);
        }
        hb_run(pool, ops, head[0], 0);
        for (int i = 0; i < head[1]; i++) {
            fwrite(buffers[i], 1, (size_t)sizes[i], stdout);
            free(buffers[i]);
        }
        fflush(stdout);
        free(sizes), free(pointers), free(buffers), free(ops);
    }
}
