/* AMX: whether its tiles may be used, and their shapes. */
#ifndef HALFBYTE_AMX_H
#define HALFBYTE_AMX_H

#include "halfbyte.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAS_AMX 1

/* Sets up the eight tiles, each of `rows` rows of `bytes` bytes. _tile_release() ends it. */
static inline void amx_begin(const uint8_t rows[8], const uint16_t bytes[8]) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    memcpy(config.rows, rows, 8);
    memcpy(config.bytes, bytes, 16);
    _tile_loadconfig(&config);
}
#endif

/* Whether this library and machine have AMX and the system lets us use it (gemm.c); quick when it
 * was asked before. */
int hb_has_amx(void);

#endif
