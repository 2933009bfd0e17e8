"""Device code: words of weight codes to planes of fp16 or bf16 values, for int8 and codebooks.

A word is one row's codes for two neighbouring k in each plane; see :mod:`.layout`. The two
values of a plane come out in one 32-bit register, in the order the tensor core wants.
"""

# Device code: a type checker takes constexpr parameters for mistakes.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device import bits

# u = v + 128 in 0..255 is the stored byte.
# fp16: u as the low byte under 0x64 reads 1024 + u, exactly, as u < 1024; 0x6480 reads 1152.
# prmt takes bytes 1 and 3 of the word and two 0x64 for plane 1: (1, 4, 3, 4).
_INT8_FP16 = tl.constexpr(
    """{ .reg .b32 a, c, m;
    mov.b32 c, 0x64806480;
    mov.b32 m, 0x64646464;
    lop3.b32 a, $2, 0x00ff00ff, 0x64006400, 0xea;
    sub.f16x2 $0, a, c;
    prmt.b32 a, $2, m, 0x4341;
    sub.f16x2 $1, a, c; }"""
)
# bf16 holds 8 bits: the low 7 bits of u under 0x43 read 128 + low, and the top bit, flipped, reads
# 128 or 256. Their difference is low - 128 * (top == 0) = v, exact like both of them.
_INT8_BF16 = tl.constexpr(
    """{ .reg .b32 a, b, m, w;
    mov.b32 m, 0xbf80bf80;
    lop3.b32 a, $2, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 b, $2, 0x00800080, 0x43804380, 0x6a;
    fma.rn.bf16x2 $0, b, m, a;
    shr.u32 w, $2, 8;
    lop3.b32 a, w, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 b, w, 0x00800080, 0x43804380, 0x6a;
    fma.rn.bf16x2 $1, b, m, a; }"""
)
# A 16-entry table of 2-byte values in 8 registers: $5..$8 hold the low bytes of entries 0-15,
# $9..$12 the high bytes. prmt picks 4 of 8 bytes by the low 3 bits of 4 nibbles; bit 3 of each
# code then chooses between the picks from entries 0-7 and 8-15 (selector byte i or i + 4).
_LOOKUP_HALF = """
    prmt.b32 x, $5, $6, s;
    prmt.b32 y, $7, $8, s;
    prmt.b32 l, x, y, b;
    prmt.b32 x, $9, $10, s;
    prmt.b32 y, $11, $12, s;
    prmt.b32 h, x, y, b;
    prmt.b32 ${}, l, h, 0x5140;
    prmt.b32 ${}, l, h, 0x7362;"""
_LOOKUP = tl.constexpr(
    """{ .reg .b32 s, b, x, y, l, h;
    and.b32 s, $4, 0x77777777;
    shr.u32 b, $4, 1;
    lop3.b32 b, b, 0x44444444, 0x32103210, 0xea;"""
    + _LOOKUP_HALF.format(0, 1)
    + """
    shr.u32 s, s, 16;
    shr.u32 b, b, 16;"""
    + _LOOKUP_HALF.format(2, 3)
    + " }"
)


@triton.jit
def pairs(word, DTYPE: tl.constexpr):
    """A register of two values, [BN, 16], to the plane [BN, 32]; costs no instruction."""
    lo, hi = bits.halves(word, DTYPE)
    return tl.interleave(lo, hi)


@triton.jit
def byte_plane(word, J: tl.constexpr, DTYPE: tl.constexpr, FLOAT8: tl.constexpr):
    """Plane J of :func:`byte_planes` without PTX."""
    lo = (word >> (8 * J)) & 0xFF
    hi = (word >> (8 * J + 16)) & 0xFF
    if FLOAT8:
        return tl.interleave(bits.float8_value(lo), bits.float8_value(hi)).to(DTYPE)
    else:
        return tl.interleave(lo - 128, hi - 128).to(tl.float32).to(DTYPE)


@triton.constexpr_function
def _byte_asm(fp16: bool, float8: bool) -> str:
    if float8:
        return bits.float8_asm(fp16)
    return (_INT8_FP16 if fp16 else _INT8_BF16).value


@triton.jit
def byte_planes(word, DTYPE: tl.constexpr, FLOAT8: tl.constexpr, PTX: tl.constexpr):
    """Two planes [BN, 32] of 8-bit codes, as ``byte - 128`` or as float8_e4m3fn.

    Plane j is byte j (first k) and byte 2 + j.
    """
    if PTX:
        p = tl.inline_asm_elementwise(
            _byte_asm(DTYPE == tl.float16, FLOAT8),  # noqa: SIM300
            constraints="=&r,=&r,r",
            args=[word],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
        return pairs(p[0], DTYPE), pairs(p[1], DTYPE)
    else:
        return byte_plane(word, 0, DTYPE, FLOAT8), byte_plane(word, 1, DTYPE, FLOAT8)


@triton.jit
def looked_up(word, J: tl.constexpr, lut_ptrs):
    """Plane J of table values without PTX; ``lut_ptrs`` points at entry 0, for each row or all."""
    lo = tl.load(lut_ptrs + ((word >> (8 * J)) & 15))
    hi = tl.load(lut_ptrs + ((word >> (8 * J + 4)) & 15))
    return tl.interleave(lo, hi)


@triton.jit
def table_planes(word, lut, lut_ptrs, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """Four planes [BN, 32] of table entries; plane j is nibble 2 j (first k) and 2 j + 1.

    ``lut`` are eight int32, scalar or [BN, 1]: low bytes of entries 0-15, then high bytes.
    """
    if PTX:
        p = tl.inline_asm_elementwise(
            _LOOKUP,
            constraints="=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r",
            args=[word, lut[0], lut[1], lut[2], lut[3], lut[4], lut[5], lut[6], lut[7]],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
        return pairs(p[0], DTYPE), pairs(p[1], DTYPE), pairs(p[2], DTYPE), pairs(p[3], DTYPE)
    else:
        return (
            looked_up(word, 0, lut_ptrs),
            looked_up(word, 1, lut_ptrs),
            looked_up(word, 2, lut_ptrs),
            looked_up(word, 3, lut_ptrs),
        )


@triton.jit
def byte_scales(word, place, SCALE: tl.constexpr):
    """fp32 scales from byte ``place`` (0 to 3) of each word: e8m0, or e4m3 without a sign.

    Either way the byte goes to where fp32 has its exponent. Below 2**-126 that of e8m0 is a
    subnormal number, its own only one; e4m3 has another bias, which a product puts right, exactly.
    """
    byte = (word >> (8 * place)) & 0xFF
    if SCALE == "e8m0":
        return tl.maximum(byte << 23, 0x400000).to(tl.float32, bitcast=True)
    return (byte << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2**120
