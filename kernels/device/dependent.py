"""Kernels that start while the one before them ends: programmatic dependent launch, from sm_90 on.

A launch with ``launch_pdl`` may begin once every program of the kernel before has called
:func:`release_next` or ended. Whatever that kernel or one before it writes, and whatever they read
and this one writes, may be touched only after :func:`await_previous`, which returns when the
kernel before has ended and all it wrote can be seen; having awaited its own, it vouches for those
before. Only what no kernel writes, such as weights, may be asked for earlier.
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


def dependent_launch(arch: int) -> bool:
    """Whether kernels of a compute capability can be launched so."""
    return arch >= 90


def early_launch(early: bool) -> dict[str, bool]:
    """Launch options of a kernel that may, or may not, start before the one before it ends."""
    return {"launch_pdl": True} if early else {}


@triton.jit
def release_next(EARLY: tl.constexpr):
    """Let the kernel behind this one start. EARLY: the target has such launches."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous(EARLY: tl.constexpr):
    """Wait until the kernels before have ended. EARLY: this one may have started earlier."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch_lines(ptrs):
    """Have lines of 128 bytes brought into the second cache, one for each pointer."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        constraints="=r,l",
        args=[ptrs.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
