"""One kernel in one shipped configuration, described so that it can be compiled anywhere.

A family lists its own in ``variants.py``: ``def variants(arch: int) -> Iterator[Variant]``, where
``arch`` is a compute capability such as 90, or 0 for a target that is not NVIDIA's (portable
forms only). A kind of weight gives its own by the method of that name;
:mod:`halfbyte.kernels.codegen.shipped` finds all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """What the ahead-of-time compiler needs to know, and what the loop's work is counted in.

    Attributes:
        kernel: dotted name, e.g. ``attention.decode``.
        config: short name of the configuration, unique within the kernel, e.g.
            ``m16 g128 128x128 w4 s4 fp16``.
        fn: the ``triton.jit`` function.
        signature: argument name -> Triton type such as ``*fp16`` or ``i32``, for every argument
            that is not a constant.
        constants: the constexpr arguments.
        divisible: arguments (pointers and integers) known to be multiples of 16.
        num_warps: warps of one program.
        num_stages: pipeline stages.
        unit: what the main loop's instructions are divided by: items of work that one pass of
            the loop does in one lane (weights for a matrix product, KV tokens * head_dim / 32
            lanes for attention, ...); 0 when there is no such loop.
        options: further launch options that the launcher passes, e.g. ``maxnreg``.
    """

    kernel: str
    config: str
    fn: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    unit: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
