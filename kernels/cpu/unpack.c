/* Chunks of a packed weight as floats, for products that read many rows, and look-ups. */
#include "floats.h"

INLINE void unpack(const weight *w, int codes, int bits, const char *chunk, float out[][TILE]) {
    float_table table = table_of(w);
#pragma GCC unroll 8
    for (int q = 0; q < QUADS; q++)
        for (int v = 0; v < PARTS; v++) {
            vf four[4];
            four_values(w, codes, bits, &table, chunk, q, v, four);
            for (int j = 0; j < 4; j++) vf_store(out[4 * q + j] + v * LANES, four[j]);
        }
}

void hb_unpack_chunk(reader *r, float out[][TILE]) {
    const char *chunk = next_chunk(r, 0, r->w->codes, r->w->bits);
    switch (r->w->codes) {
        case W_BITS2: unpack(r->w, W_BITS2, 2, chunk, out); break;
        case W_BITS3: unpack(r->w, W_BITS3, 3, chunk, out); break;
        case W_BITS4: unpack(r->w, W_BITS4, 4, chunk, out); break;
        case W_BITS5: unpack(r->w, W_BITS5, 5, chunk, out); break;
        case W_BITS6: unpack(r->w, W_BITS6, 6, chunk, out); break;
        case W_BITS8: unpack(r->w, W_BITS8, 8, chunk, out); break;
        case W_TABLE: unpack(r->w, W_TABLE, 4, chunk, out); break;
        case W_E4M3: unpack(r->w, W_E4M3, 8, chunk, out); break;
        case W_F16: unpack(r->w, W_F16, 16, chunk, out); break;
        case W_BF16: unpack(r->w, W_BF16, 16, chunk, out); break;
        default: unpack(r->w, W_F32, 32, chunk, out);
    }
}

int hb_lanes(void) { return LANES; }
