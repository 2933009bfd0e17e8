"""Bit tricks that turn small integers into floats without a conversion instruction.

Device code only, shared by the kernels. Every helper has a portable form; where a constexpr
``PTX`` is taken, True selects inline instructions that the interpreter and non-NVIDIA targets
do not have, with the same result bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(x, DTYPE: tl.constexpr):
    """Low and high 16 bits of each int32 word, bit-cast to ``DTYPE`` (fp16 or bf16).

    Both keep shape and layout; their ``tl.interleave`` costs nothing where one lane owns the
    word, because a 32-bit register then holds the pair already.
    """
    lo = (x & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    hi = ((x >> 16) & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    return lo, hi


@triton.jit
def int8_to_half(x, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """int8 to fp16 or bf16, exactly; with PTX by byte placement, 4 values at a time.

    The result has the shape of ``x``; without PTX it is an ordinary conversion.
    """
    if PTX:
        if DTYPE == tl.float16:  # noqa: SIM300
            # v ^ 0x80 = v + 128 in 0..255; as the low byte under 0x64 it reads 1024 + (v + 128).
            # 0x6480 is 1152 = 1024 + 128, and both are whole numbers below 2048, so fp16 is exact.
            y = tl.inline_asm_elementwise(
                """{
                .reg .b32 u, c;
                xor.b32 u, $2, 0x80808080;
                mov.b32 c, 0x64806480;
                prmt.b32 $0, u, 0x64646464, 0x4140;
                prmt.b32 $1, u, 0x64646464, 0x4342;
                sub.f16x2 $0, $0, c;
                sub.f16x2 $1, $1, c;
                }""",
                constraints="=&r,=&r,r",
                args=[x],
                dtype=tl.float16,
                is_pure=True,
                pack=4,
            )
        else:
            # Low 7 bits under 0x43 read 128 + low; the sign bit alone under 0x43 reads 128 or 256.
            # Their difference is low - 128 * sign = v: each of the three fits 8 bits of precision.
            y = tl.inline_asm_elementwise(
                """{
                .reg .b32 a, b, c, d, m;
                and.b32 a, $2, 0x7f7f7f7f;
                and.b32 b, $2, 0x80808080;
                mov.b32 m, 0xbf80bf80;
                prmt.b32 c, a, 0x43434343, 0x4140;
                prmt.b32 d, b, 0x43434343, 0x4140;
                fma.rn.bf16x2 $0, d, m, c;
                prmt.b32 c, a, 0x43434343, 0x4342;
                prmt.b32 d, b, 0x43434343, 0x4342;
                fma.rn.bf16x2 $1, d, m, c;
                }""",
                constraints="=&r,=&r,r",
                args=[x],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=4,
            )
        return y
    return x.to(DTYPE)
