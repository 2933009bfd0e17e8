"""Device code of rounding: to a narrow float, and the activation rules of ``formats.activations``.

Everything here is exact division and single roundings, so codes and scales are those of the rule
bit for bit.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from . import runtime

# 1.5 * 2**23: floats of this size lie 1 apart, so adding it rounds to a whole number, ties to
# even; the low bits of the sum are then that number in two's complement (0x4B400000 + q).
_ROUND = tl.constexpr(12582912.0)
_INTERPRETED = tl.constexpr(runtime.INTERPRETED)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 to ``DTYPE``, to nearest, ties to even.

    The interpreter would cut bf16 off; adding half a step less one, plus the lowest kept bit,
    before the cut makes it a round to nearest even.
    """
    if _INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True).to(DTYPE)
    return x.to(DTYPE)


@triton.jit
def scale_of(reach, TOP: tl.constexpr):
    """Scale of rows whose largest magnitude, or span, is ``reach``; 1 instead of 0."""
    scale = tl.div_rn(reach, tl.full(reach.shape, TOP, tl.float32))
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def zero_of(low, scale):
    """Zero point, a whole float32, of rows from ``low`` <= 0 on."""
    zero = tl.minimum(tl.maximum(-128.0 - tl.div_rn(low, scale), -128.0), 127.0)
    return zero + _ROUND - _ROUND


@triton.jit
def int8_codes(x, scale, zero, LOW: tl.constexpr):
    """``round(clamp(x / scale + zero, LOW, 127))`` as int8, for a scale of the shape of ``x``."""
    v = tl.minimum(tl.maximum(tl.div_rn(x, scale) + zero, LOW), 127.0)
    # The low byte of _ROUND + q is q.
    return ((v + _ROUND).to(tl.int32, bitcast=True) & 0xFF).to(tl.int8)


@triton.jit
def float8_codes(x, scale, DTYPE: tl.constexpr):
    """``x / scale`` as float8 e4m3, saturating, for a scale of the shape of ``x``."""
    v = tl.minimum(tl.maximum(tl.div_rn(x, scale), -448.0), 448.0)
    if _INTERPRETED:
        # Its own conversion loses the carry.
        odd = (v.to(tl.int32, bitcast=True) >> 20) & 1
        bits = (v.to(tl.int32, bitcast=True) + 0x7FFFF + odd) & -0x100000
        small = (v * 512.0 + _ROUND - _ROUND) / 512.0  # steps of 2**-9 below 2**-6
        v = tl.where(tl.abs(v) < 0.015625, small, bits.to(tl.float32, bitcast=True))
    return v.to(DTYPE)


@triton.jit
def row_scale(
    high,
    low,
    poison,
    scale_ptr,
    zero_ptr,
    row,
    STATIC: tl.constexpr,
    HAS_Z: tl.constexpr,
    TOP: tl.constexpr,
):
    """(scale, zero point as a float) of a row; where they are its own, they are stored.

    ``high`` is its largest value with HAS_Z, else its largest magnitude, ``low`` its smallest
    value, and ``poison`` 0, or NaN for a row that has no meaning: the stored scale is NaN then.
    """
    zero = 0.0
    if STATIC:
        scale = tl.load(scale_ptr)
        if HAS_Z:
            zero = tl.load(zero_ptr).to(tl.float32)
    else:
        if HAS_Z:
            low = tl.minimum(low, 0.0)
            scale = scale_of(tl.maximum(high, 0.0) - low, 255.0)
            zero = zero_of(low, scale)
            tl.store(zero_ptr + row, zero.to(tl.int32))
        else:
            scale = scale_of(high, TOP)
        tl.store(scale_ptr + row, scale + poison)
    return scale, zero


@triton.jit
def codes_of(x, scale, zero, LOW: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of some columns of a row: int8, from LOW on, or float8."""
    scales = tl.zeros_like(x) + scale
    if DTYPE == tl.float8e4nv:  # noqa: SIM300
        return float8_codes(x, scales, DTYPE)
    else:
        return int8_codes(x, scales, zero, LOW)
