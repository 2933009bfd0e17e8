/* Runs programs of the C kernels for a parent process that cannot load them: another machine's
 * code, under an emulator. See arm_support.py.
 *
 * A request on standard input: int32 number of ops, int32 number of buffers, int64 size of each
 * buffer, the ops, the buffers' bytes. Pointers of ops are (number of the buffer + 1) << 40 plus an
 * offset into it, or 0. The answer is the buffers' bytes after the program. */
#include "halfbyte.h"

#include <stdio.h>

typedef struct hb_pool hb_pool;
hb_pool *hb_pool_new(int threads);
void hb_run(hb_pool *pool, const hb_op *ops, int count, int spin_us);
int hb_lanes(void);
int hb_has_amx(void);

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
    int32_t about[2] = {hb_lanes(), hb_has_amx()}, head[2];
    fwrite(about, sizeof about, 1, stdout);
    fflush(stdout);
    for (;;) {
        get(head, sizeof head);
        int64_t *sizes = room((size_t)head[1] * sizeof *sizes);
        char **buffers = room((size_t)head[1] * sizeof *buffers);
        hb_op *ops = room((size_t)head[0] * sizeof *ops);
        get(sizes, (size_t)head[1] * sizeof *sizes);
        get(ops, (size_t)head[0] * sizeof *ops);
        for (int i = 0; i < head[1]; i++) get(buffers[i] = room((size_t)sizes[i]), (size_t)sizes[i]);
        for (int i = 0; i < head[0]; i++)
            for (int j = 0; j < 12; j++) {
                uint64_t p = (uint64_t)(uintptr_t)ops[i].p[j];
                if (p) ops[i].p[j] = buffers[(p >> 40) - 1] + (p & ((1ull << 40) - 1));
            }
        hb_run(pool, ops, head[0], 0);
        for (int i = 0; i < head[1]; i++) {
            fwrite(buffers[i], 1, (size_t)sizes[i], stdout);
            free(buffers[i]);
        }
        fflush(stdout);
        free(sizes), free(buffers), free(ops);
    }
}
