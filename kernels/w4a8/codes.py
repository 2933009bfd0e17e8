"""Device code: words of packed codes to int8 matrices in the fragments' order.

A word of two 16-bit units (w4a16/layout.py) has the codes of planes 0 and 2 at bits 2-5 of its
bytes, in the order e, 64 + e, e + 1, 65 + e; shifted by 4 in each unit, those of planes 1 and 3. So
one mask gives a register of an int8 fragment, two shifts and two masks the other: 5 instructions
for 8 weights. What comes out is 4 times a code.

Together, a register has k of both halves of a slice: two matrices [BN, 64], which hold k of 0 to 31
with 64 to 95, and of 32 to 63 with 96 to 127. Apart, bytes of two registers are sorted, one more
instruction for 4 weights: four matrices [BN, 32] of consecutive k. Columns of a matrix follow each
other as 16 r + 4 t + byte, r being the register of lane t of four (device/column_order.py).
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.runtime import TRITON


def signed(bm: int, shift: int, additive: bool) -> bool:
    """Whether zero points are taken from codes, which pays where many rows share a code.

    Triton before 3.8 lets the layout of broadcast zero points (``shift`` < 0) decide in which order
    the bytes of codes are read, and reads them wrongly.
    """
    return bm >= 32 and not additive and (shift >= 0 or TRITON >= (3, 8))


@triton.constexpr_function
def _codes_asm(apart: bool) -> str:
    """Words $8 to $11 to registers $0 to $7."""
    lines = ["{ .reg .b32 a, b, p<4>, q<4>;"]
    for i in range(4):
        lines += [
            f"and.b32 p{i}, ${8 + i}, 0x3c3c3c3c;",
            f"shr.u32 a, ${8 + i}, 4;",
            f"shl.b32 b, ${8 + i}, 12;",
            "and.b32 a, a, 0x0c3c0c3c;",
            f"lop3.b32 q{i}, b, 0x30003000, a, 0xea;",  # (b & mask) | a
        ]
    if apart:
        # Even bytes are of the lower 64 k, odd ones of the upper.
        pairs = [(s, i, order) for order in ("0x6420", "0x7531") for s in "pq" for i in (0, 2)]
        lines += [f"prmt.b32 ${j}, {s}{i}, {s}{i + 1}, {o};" for j, (s, i, o) in enumerate(pairs)]
    else:
        lines += [f"mov.b32 ${j}, {'pq'[j // 4]}{j % 4};" for j in range(8)]
    return "\n".join([*lines, "}"])


@triton.jit
def zero_bytes(offsets, BN: tl.constexpr, W: tl.constexpr):
    """Four times zero points float32 [BN * 4], as ``table_values`` has them, for codes [BN, W]."""
    z = (offsets * 4).to(tl.int8).reshape(BN // 64, 4, 8, 4, 2)
    z = z.permute(0, 1, 4, 2, 3).reshape(BN, 1, 4, 1)
    return tl.broadcast_to(z, (BN, W // 16, 4, 4)).reshape(BN, W)


@triton.jit
def less_zeros(codes, zeros, PTX: tl.constexpr):
    """``codes - zeros``, int8 [BN, W], both four times as large as they mean."""
    if PTX:
        # No byte borrows from the next: it is at least 128 - 64 before.
        return tl.inline_asm_elementwise(
            "or.b32 $0, $1, 0x80808080; sub.u32 $0, $0, $2; xor.b32 $0, $0, 0x80808080;",
            constraints="=&r,r,r",
            args=[codes, zeros],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    else:
        return codes - zeros


@triton.jit
def _two(a, b, BN: tl.constexpr):
    """Registers 0 and 1 of each lane, int8 [BN * 16] each, to the matrix [BN, 32]."""
    x = tl.join(a, b).reshape(BN // 64, 2, 4, 8, 4, 4, 2)
    return x.permute(0, 2, 1, 3, 6, 4, 5).reshape(BN, 32)


@triton.jit
def _four(a, b, c, d, BN: tl.constexpr):
    """Registers 0 to 3 of each lane, int8 [BN * 16] each, to the matrix [BN, 64]."""
    x = tl.join(tl.join(a, c), tl.join(b, d)).reshape(BN // 64, 2, 4, 8, 4, 4, 4)
    return x.permute(0, 2, 1, 3, 6, 4, 5).reshape(BN, 64)


@triton.jit
def _bytes(words, BN: tl.constexpr):
    """Bytes of words, [BN * 16], to the matrix [BN, 64]."""
    x = words.reshape(BN // 64, 2, 4, 8, 4, 4).permute(0, 2, 1, 3, 5, 4).reshape(BN, 16, 1)
    x = x >> (8 * tl.arange(0, 4))[None, None, :]
    return (x & 0xFF).to(tl.int8).reshape(BN, 64)


@triton.jit
def _parted(x, BN: tl.constexpr):
    """Columns of even and of odd index of [BN, 64], as two matrices [BN, 32] in lanes' order."""
    # Register pair, register of it, lane, element, half.
    even, odd = tl.split(x.reshape(BN, 2, 2, 4, 2, 2))
    even = even.permute(0, 1, 3, 2, 4).reshape(BN, 32)
    return even, odd.permute(0, 1, 3, 2, 4).reshape(BN, 32)


@triton.jit
def _registers(words, APART: tl.constexpr):
    """Eight registers of each lane, int8 [BN * 16] each, by inline instructions.

    Four words that follow each other belong to one lane, so that byte i of word j, as element i of
    output j, is where it was.
    """
    return tl.inline_asm_elementwise(
        _codes_asm(APART),
        constraints="=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r",
        args=[words],
        dtype=(tl.int8,) * 8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _portable(words, BN: tl.constexpr):
    """Four times the codes of planes 0 and 2, and of 1 and 3, int8 [BN, 64] each."""
    shifted = ((words >> 4) & 0x0C3C0C3C) | ((words << 12) & 0x30003000)
    return _bytes(words & 0x3C3C3C3C, BN), _bytes(shifted, BN)


@triton.jit
def codes_together(words, PTX: tl.constexpr):
    """Two int8 matrices [BN, 64] of words int32 [BN * 16] as loaded."""
    BN: tl.constexpr = words.shape[0] // 16
    if PTX:
        r = _registers(words, False)
        a = _four(r[0], r[1], r[2], r[3], BN)
        b = _four(r[4], r[5], r[6], r[7], BN)
    else:
        a, b = _portable(words, BN)
    return a, b


@triton.jit
def codes_apart(words, PTX: tl.constexpr):
    """Four int8 matrices [BN, 32] of words int32 [BN * 16] as loaded."""
    BN: tl.constexpr = words.shape[0] // 16
    if PTX:
        r = _registers(words, True)
        p = _two(r[0], r[1], BN)
        q = _two(r[2], r[3], BN)
        s = _two(r[4], r[5], BN)
        t = _two(r[6], r[7], BN)
    else:
        a, b = _portable(words, BN)
        p, s = _parted(a, BN)
        q, t = _parted(b, BN)
    return p, q, s, t
