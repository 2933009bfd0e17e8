"""Device code that several kernels share: rounding, int8 codes and group sums of a row."""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device import runtime

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
def nearest_int8(y, inverse):
    """``y * inverse``, within +-127.5, to the nearest int8, ties to even, with no conversion.

    1.5 * 2**23 has an ulp of 1, so the FMA rounds the exact product to an integer k, ties to
    even; the sum's mantissa is 2**22 + k, whose low byte is k in two's complement.
    """
    zero = tl.zeros_like(y)
    return (tl.fma(y, zero + inverse, zero + 12582912.0).to(tl.int32, bitcast=True) & 0xFF).to(
        tl.int8
    )


@triton.jit
def store_codes(codes_ptr, scale_ptr, y, largest, mask):
    """Codes ``y * 127 / largest`` at ``codes_ptr`` and ``largest / 127`` at ``scale_ptr``."""
    inverse = tl.where(
        largest > 0.0, tl.div_rn(tl.full((), 127.0, tl.float32), tl.maximum(largest, 1e-37)), 0.0
    )
    tl.store(codes_ptr, nearest_int8(y, inverse), mask=mask)
    tl.store(scale_ptr, tl.div_rn(largest, tl.full((), 127.0, tl.float32)))


@triton.jit
def store_sums(sums_ptr, y, groups, GROUP: tl.constexpr):
    """float32 sums of GROUP consecutive values of a flat tile, for the first ``groups`` groups."""
    COUNT: tl.constexpr = y.shape[0] // GROUP
    sums = tl.sum(tl.reshape(y, (COUNT, GROUP)), 1)
    index = tl.arange(0, COUNT)
    tl.store(sums_ptr + index, sums, mask=index < groups)
