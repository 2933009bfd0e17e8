"""Whether ``device="auto"`` computes on the GPU that torch sees, and why not.

It takes one that the kernels are compiled and checked for, with a Triton that makes right code for
it, unless the configuration asks for something that only the CPU has. ``halfbyte doctor`` says the
same.
"""

from __future__ import annotations

import os
from importlib import metadata

import torch

from ...kernels.codegen.targets import TARGETS
from ...kernels.device.versions import version_numbers
from ..config import EngineConfig

MIN_TRITON = (3, 6)
"""The oldest Triton that compiles the kernels."""
FENCED_TRITON = (3, 7, 1)
"""The oldest one whose code for Hopper is right: docs/kernels.md, Hazards."""


def refused_gpu(index: int = 0) -> str | None:
    """None for a CUDA device that the kernels run on, else why they do not."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    name = torch.cuda.get_device_name(index)
    if torch.version.hip is not None:
        return f"{name} is AMD's, on which nothing has run"
    major, minor = torch.cuda.get_device_capability(index)
    known = [f"sm_{target.arch}" for target in TARGETS.values() if target.backend == "cuda"]
    if f"sm_{major}{minor}" not in known:
        return f"{name} is sm_{major}{minor}; the kernels are compiled for {', '.join(known)}"
    return refused_triton(hopper=major == 9)


def refused_triton(*, hopper: bool) -> str | None:
    """None for an installed Triton that compiles the kernels rightly, else what is wrong."""
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "triton is not installed"
    if version_numbers(version) < MIN_TRITON:
        return f"triton {version} is too old"
    if hopper and version_numbers(version, 3) < FENCED_TRITON:
        return f"triton {version} leaves out a fence that products on Hopper need"
    return None


def wants_cpu(config: EngineConfig) -> bool:
    """Whether a configuration, or the environment, asks for something that only the CPU has."""
    return (
        config.backend not in ("auto", "cuda_triton")
        or config.dtype == "float32"
        or config.activations == "int8-block32"
        or config.packed_cache
        or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    )
