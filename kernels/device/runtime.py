"""What kernels ask about where they run; nothing here needs a GPU to be imported."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from .versions import version_numbers

# Multiply-adds are fused unless a launch says otherwise. So does Triton up to 3.9, which warns that
# 3.10 will not.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

TRITON = version_numbers(triton.__version__)
"""Its version, such as (3, 9)."""
INTERPRETED: bool = bool(knobs.runtime.interpret)
"""Whether kernels of this process run in Triton's interpreter (``TRITON_INTERPRET=1``)."""


def _mend_loop_bounds() -> None:
    """Let the interpreter of Triton 3.6 loop up to a computed bound, whatever numpy's version.

    Its scalars are arrays of one element, which it hands to ``int``; numpy 2.4 and newer refuse
    that, and Triton 3.7 takes the element out first. Releases of 3.6 do not change any more, so
    its inner function stays where it is.
    """
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if INTERPRETED and TRITON == (3, 6):
    _mend_loop_bounds()


@functools.cache
def multiprocessors(index: int) -> int:
    """Streaming multiprocessors of a CUDA device; 4 stands in under the interpreter."""
    if INTERPRETED:
        return 4
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@functools.cache
def arch(index: int) -> int:
    """Compute capability of a CUDA device as a number such as 90; 0 under the interpreter."""
    if INTERPRETED or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def device_index(x: Tensor) -> int:
    """CUDA index of the device of a tensor of any shape; 0 for the CPU (interpreter)."""
    return x.device.index or 0


def use_ptx(x: Tensor) -> bool:
    """Whether kernels on the device of a tensor of any shape may take their inline-PTX path."""
    return not INTERPRETED and x.device.type == "cuda" and torch.version.hip is None
