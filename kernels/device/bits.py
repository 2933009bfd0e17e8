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


@triton.constexpr_function
def code_bias(dtype) -> float:
    """What :func:`code_planes` adds to each code of a type: 1152 = 1024 + 128 in fp16."""
    return 1152.0 if dtype == tl.float16 else 0.0


@triton.jit
def code_planes(x, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """The low and the high bytes of int16, signed codes each, plus ``code_bias``: exact floats.

    DTYPE: fp16, bf16, or without PTX fp32. Both have the shape of ``x``.
    """
    if PTX:
        if DTYPE == tl.float16:  # noqa: SIM300
            # v ^ 0x80 = v + 128 in 0..255; as the low byte under 0x64 it reads 1024 + (v + 128),
            # a whole number below 2048, so that fp16 is exact.
            low, high = tl.inline_asm_elementwise(
                """{
                .reg .b32 u;
                xor.b32 u, $2, 0x80808080;
                lop3.b32 $0, u, 0x00ff00ff, 0x64006400, 0xea;
                prmt.b32 $1, u, 0x64646464, 0x4341;
                }""",
                constraints="=&r,=&r,r",
                args=[x],
                dtype=(tl.float16, tl.float16),
                is_pure=True,
                pack=2,
            )
        else:
            # Low 7 bits under 0x43 read 128 + low; the sign bit alone under 0x43 reads 128 or 256.
            # Their difference is low - 128 * sign = v: each of the three fits 8 bits of precision.
            low, high = tl.inline_asm_elementwise(
                """{
                .reg .b32 h, a, b, m;
                mov.b32 m, 0xbf80bf80;
                lop3.b32 a, $2, 0x007f007f, 0x43004300, 0xea;
                lop3.b32 b, $2, 0x00800080, 0x43004300, 0xea;
                fma.rn.bf16x2 $0, b, m, a;
                shr.u32 h, $2, 8;
                lop3.b32 a, h, 0x007f007f, 0x43004300, 0xea;
                lop3.b32 b, h, 0x00800080, 0x43004300, 0xea;
                fma.rn.bf16x2 $1, b, m, a;
                }""",
                constraints="=&r,=&r,r",
                args=[x],
                dtype=(tl.bfloat16, tl.bfloat16),
                is_pure=True,
                pack=2,
            )
    elif DTYPE == tl.float16:  # noqa: SIM300
        u = x ^ -0x7F80
        low = ((u & 0xFF) | 0x6400).to(tl.float16, bitcast=True)
        high = (((u >> 8) & 0xFF) | 0x6400).to(tl.float16, bitcast=True)
    else:
        # By way of fp32: the interpreter has no conversion from integers to bf16.
        low = ((x << 8) >> 8).to(tl.float32).to(DTYPE)
        high = (x >> 8).to(tl.float32).to(DTYPE)
    return low, high
