"""Device code that several kernels share: group sums of a row."""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_sums(sums_ptr, y, groups, GROUP: tl.constexpr):
    """float32 sums of GROUP consecutive values of a flat tile, for the first ``groups`` groups."""
    COUNT: tl.constexpr = y.shape[0] // GROUP
    sums = tl.sum(tl.reshape(y, (COUNT, GROUP)), 1)
    index = tl.arange(0, COUNT)
    tl.store(sums_ptr + index, sums, mask=index < groups)
