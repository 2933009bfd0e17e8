/* AMX tiles in plain C, palette 1; see emulated.h. What a processor refuses with a fault (#UD, #GP)
 * ends the process here. */
#ifndef HALFBYTE_EMULATED_AMX_H
#define HALFBYTE_EMULATED_AMX_H

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <sys/syscall.h>

typedef struct {
    int configured;
    uint16_t bytes[8]; /* of a row ("colsb") */
    uint8_t rows[8];
    uint8_t data[8][16][64];
} emu_tiles;

/* One of each for all sources of a library: the registers of a thread, the leave of a process. */
__attribute__((weak)) _Thread_local emu_tiles emu_amx;
__attribute__((weak)) int emu_amx_allowed;

static inline __attribute__((unused)) void emu_refuse(const char *why) {
    fprintf(stderr, "emulated AMX: %s\n", why);
    abort();
}

/* arch_prctl, as far as it is used: leave to use tile data. */
#define syscall(number, code, feature)                                                          \
    ((number) == SYS_arch_prctl && (code) == 0x1023 && (feature) == 18 ? (emu_amx_allowed = 1, 0L) : -1L)

EMU emu_tiles *emu_tile(int t) {
    emu_tiles *all = &emu_amx;
    if (!all->configured || t < 0 || t > 7 || !all->rows[t]) emu_refuse("no such tile is configured");
    return all;
}

EMU void emu_loadconfig(const void *memory) {
    uint8_t c[64];
    emu_tiles all = {.configured = 1};
    memcpy(c, memory, sizeof c);
    if (!emu_amx_allowed) emu_refuse("used without the system's leave");
    if (c[0] > 1) emu_refuse("no such palette");
    for (int i = 1; i < 16; i++) /* the start row is for what was interrupted */
        if (c[i]) emu_refuse("reserved bytes of the configuration are not 0");
    for (int t = 0; t < 16 && c[0]; t++) {
        int bytes = c[16 + 2 * t] | c[17 + 2 * t] << 8, rows = c[48 + t];
        if (t > 7 && (bytes || rows)) emu_refuse("palette 1 has eight tiles");
        if (bytes > 64 || rows > 16 || !bytes != !rows) emu_refuse("a tile has up to 16 rows of 64 bytes");
        if (t < 8) all.bytes[t] = (uint16_t)bytes, all.rows[t] = (uint8_t)rows;
    }
    all.configured = c[0];
    emu_amx = all;
}

EMU void emu_release(void) { memset(&emu_amx, 0, sizeof emu_amx); }

EMU void emu_zero(int t) { memset(emu_tile(t)->data[t], 0, sizeof emu_amx.data[t]); }

EMU void emu_loadd(int t, const void *base, int64_t stride) {
    emu_tiles *all = emu_tile(t);
    memset(all->data[t], 0, sizeof all->data[t]);
    for (int i = 0; i < all->rows[t]; i++)
        memcpy(all->data[t][i], (const char *)base + i * stride, all->bytes[t]);
}

EMU void emu_stored(int t, void *base, int64_t stride) {
    emu_tiles *all = emu_tile(t);
    for (int i = 0; i < all->rows[t]; i++)
        memcpy((char *)base + i * stride, all->data[t][i], all->bytes[t]);
}

EMU emu_tiles *emu_product(int c, int a, int b) {
    emu_tiles *all = emu_tile(c);
    (void)emu_tile(a), (void)emu_tile(b);
    if (c == a || c == b || a == b) emu_refuse("a product has three different tiles");
    if (all->bytes[a] % 4 || all->bytes[b] % 4 || all->bytes[c] % 4 || all->rows[c] != all->rows[a] ||
        all->bytes[a] / 4 != all->rows[b] || all->bytes[c] != all->bytes[b])
        emu_refuse("tiles of a product do not fit");
    return all;
}

/* Beyond the rows and bytes of a result there is nothing. */
EMU void emu_trim(emu_tiles *all, int t) {
    for (int i = 0; i < 16; i++) {
        size_t keep = i < all->rows[t] ? all->bytes[t] : 0;
        memset(all->data[t][i] + keep, 0, 64 - keep);
    }
}

/* Sums wrap around. */
EMU void emu_dpb(int c, int a, int b, int signed_a, int signed_b) {
    emu_tiles *all = emu_product(c, a, b);
    for (int m = 0; m < all->rows[c]; m++) {
        uint32_t sum[16];
        memcpy(sum, all->data[c][m], sizeof sum);
        for (int k = 0; k < all->bytes[a] / 4; k++)
            for (int n = 0; n < all->bytes[c] / 4; n++)
                for (int i = 0; i < 4; i++) {
                    uint8_t x = all->data[a][m][4 * k + i], y = all->data[b][k][4 * n + i];
                    int p = signed_a ? (int8_t)x : x, q = signed_b ? (int8_t)y : y;
                    sum[n] += (uint32_t)(p * q);
                }
        memcpy(all->data[c][m], sum, sizeof sum);
    }
    emu_trim(all, c);
}

/* Denormals, of inputs and results, are zeros of their sign. */
EMU float emu_flush(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }

EMU float emu_wide(const uint8_t *bf16) {
    uint32_t bits = (uint32_t)bf16[0] << 16 | (uint32_t)bf16[1] << 24;
    float x;
    memcpy(&x, &bits, sizeof x);
    return emu_flush(x);
}

/* Even and odd products are summed apart, each by fused multiply-adds in the order of k; then the two
 * sums are added, and what they give to the tile. */
EMU void emu_dpbf16ps(int c, int a, int b) {
    emu_tiles *all = emu_product(c, a, b);
    for (int m = 0; m < all->rows[c]; m++) {
        float sum[16], part[2][16] = {{0}};
        memcpy(sum, all->data[c][m], sizeof sum);
        for (int k = 0; k < all->bytes[a] / 4; k++)
            for (int i = 0; i < 2; i++) {
                float x = emu_wide(all->data[a][m] + 4 * k + 2 * i), y[16];
                for (int n = 0; n < 16; n++) y[n] = emu_wide(all->data[b][k] + 4 * n + 2 * i);
                for (int n = 0; n < 16; n++) part[i][n] = emu_flush(fmaf(x, y[n], part[i][n]));
            }
        for (int n = 0; n < all->bytes[c] / 4; n++)
            sum[n] = emu_flush(emu_flush(sum[n]) + emu_flush(part[0][n] + part[1][n]));
        memcpy(all->data[c][m], sum, sizeof sum);
    }
    emu_trim(all, c);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#define _tile_loadconfig emu_loadconfig
#define _tile_release emu_release
#define _tile_zero emu_zero
#define _tile_loadd(t, base, stride) emu_loadd(t, base, (int64_t)(stride))
#define _tile_stored(t, base, stride) emu_stored(t, base, (int64_t)(stride))
#define _tile_dpbf16ps emu_dpbf16ps
#define _tile_dpbssd(c, a, b) emu_dpb(c, a, b, 1, 1)
#define _tile_dpbsud(c, a, b) emu_dpb(c, a, b, 1, 0)

#endif
