/* Columns of a weight rounded one after another, each taking its error from those behind it (GPTQ).
 *
 * A lane is a row of the weight. All columns of a block are a tile in the first cache; a few of them
 * at a time lose the errors of all before, in registers, and then are rounded. Every weight loses the
 * same products in the same order as in kernels/calibrator.py, and none are fused: same bits.
 */
#include "fit.h"

enum { STEP = 8 };

/* Floats of `rows` lanes; what the others hold does not matter, so long as it is no 0. */
INLINE vf load_rows(const float *p, int rows) {
    if (rows == LANES) return vf_load(p);
    vf v = vf_set(1);
    memcpy(&v, p, (size_t)rows * sizeof *p);
    return v;
}

INLINE void store_rows(const struct gptq_block *op, size_t at, int rows, vf code, vf error) {
    vb bytes = __builtin_convertvector(__builtin_convertvector(code, vi), vb);
    memcpy(op->codes + at, &bytes, (size_t)rows);
    memcpy(op->errors + at, &error, (size_t)rows * sizeof(float));
}

INLINE void round_step(const struct gptq_block *op, int row, int rows, int first, int count,
                       vf *errors) {
    size_t n = (size_t)op->n, stride = (size_t)op->factor_stride;
    vf w[STEP];
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) w[i] = load_rows(op->weight + (first + i) * n + row, rows);
    for (int k = 0; k < first; k++) {
        const float *factor = op->factor + k * stride + first;
        vf error = errors[k];
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) w[i] -= error * factor[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        const float *factor = op->factor + (first + i) * stride + first;
        size_t group = op->groups[first + i] * n + (size_t)row;
        vf scale = load_rows(op->scales + group, rows), zero = load_rows(op->zeros + group, rows);
        vf code = fit_code(w[i] / scale + zero, vf_set(0), vf_set(op->top));
        vf error = (w[i] - (code - zero) * scale) / factor[i];
        errors[first + i] = error;
        store_rows(op, (first + i) * n + (size_t)row, rows, code, error);
#pragma GCC unroll 8
        for (int j = i + 1; j < count; j++) w[j] -= error * factor[j];
    }
}

void hb_gptq_block(const struct gptq_block *op, int tid, int threads) {
    int begin, end, whole = op->columns / STEP * STEP;
    hb_share((op->n + LANES - 1) / LANES, tid, threads, &begin, &end);
    vf errors[GPTQ_COLUMNS];
    for (int tile = begin; tile < end; tile++) {
        int row = tile * LANES, rows = op->n - row < LANES ? op->n - row : LANES;
        for (int first = 0; first < whole; first += STEP) {
            if (rows == LANES) round_step(op, row, LANES, first, STEP, errors);
            else round_step(op, row, rows, first, STEP, errors);
        }
        /* Singly: of a count that is no constant, compilers cannot tell that it fits the step. */
        for (int last = whole; last < op->columns; last++)
            round_step(op, row, rows, last, 1, errors);
    }
}
