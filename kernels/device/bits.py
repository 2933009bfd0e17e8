"""Bit tricks that turn small integers into floats without a conversion instruction.

Device code only, shared by the kernels. Every helper has a portable form; where a constexpr
``PTX`` is taken, True selects inline instructions that the interpreter and non-NVIDIA targets
do not have, with the same result bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

# float8_e4m3fn: below the sign, exponent and mantissa go to where fp16 or bf16 ends its exponent,
# whose bias a product puts right: by 256, and by 2**120. All steps are exact, those of subnormal
# numbers included.
# Of both halves of a word the lower bytes make one register, the upper ones the other; 0xf8:
# a | (b & c).
_FLOAT8 = """{{ .reg .b32 a, m, z, w;
    mov.b32 m, {1};
    mov.b32 z, 0x80008000;
    shl.b32 w, $2, 8;
    and.b32 a, w, 0x7f007f00;
    shr.u32 a, a, {0};
    lop3.b32 a, a, w, 0x80008000, 0xf8;
    fma.rn.{2} $0, a, m, z;
    and.b32 a, $2, 0x7f007f00;
    shr.u32 a, a, {0};
    lop3.b32 a, a, $2, 0x80008000, 0xf8;
    fma.rn.{2} $1, a, m, z; }}"""
_FLOAT8_FP16 = tl.constexpr(_FLOAT8.format(1, "0x5c005c00", "f16x2"))
_FLOAT8_BF16 = tl.constexpr(_FLOAT8.format(4, "0x7b807b80", "bf16x2"))

FLOAT8_TOP = tl.constexpr(448)
"""The largest float8_e4m3fn."""


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
def float8_asm(fp16: bool) -> str:
    """Two registers of fp16 or bf16 from a word of four float8_e4m3fn."""
    return (_FLOAT8_FP16 if fp16 else _FLOAT8_BF16).value


@triton.jit
def float8_value(byte):
    """What a float8_e4m3fn stands for, in fp32."""
    bits = ((byte & 0x80) << 24) | ((byte & 0x7F) << 20)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2**120


@triton.constexpr_function
def code_bias(dtype, top) -> float:
    """What :func:`code_planes` adds to each code: 1152 = 1024 + 128 to an int8 in fp16."""
    return 1152.0 if dtype == tl.float16 and top != FLOAT8_TOP.value else 0.0


@triton.jit
def code_planes(x, DTYPE: tl.constexpr, TOP: tl.constexpr, PTX: tl.constexpr):
    """The low and the high bytes of int16, a code each, plus ``code_bias``: exact floats.

    TOP: the largest code, FLOAT8_TOP, or else of int8. DTYPE: fp16, bf16, or without PTX fp32. Both
    have the shape of ``x``.
    """
    if TOP == FLOAT8_TOP:
        if PTX and DTYPE == tl.float16:  # noqa: SIM300
            low, high = tl.inline_asm_elementwise(
                float8_asm(True),
                constraints="=&r,=&r,r",
                args=[x],
                dtype=(tl.float16, tl.float16),
                is_pure=True,
                pack=2,
            )
        elif PTX:
            low, high = tl.inline_asm_elementwise(
                float8_asm(False),
                constraints="=&r,=&r,r",
                args=[x],
                dtype=(tl.bfloat16, tl.bfloat16),
                is_pure=True,
                pack=2,
            )
        else:
            byte = x.to(tl.int32)
            low = float8_value(byte).to(DTYPE)
            high = float8_value(byte >> 8).to(DTYPE)
    elif PTX:
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
