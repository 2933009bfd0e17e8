"""What kernels ask about where they run; nothing here needs a GPU to be imported."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from triton import knobs

INTERPRETED: bool = bool(knobs.runtime.interpret)
"""Whether kernels of this process run in Triton's interpreter (``TRITON_INTERPRET=1``)."""


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
