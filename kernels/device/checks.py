"""Checks of kernel inputs; each failure says all the numbers, before anything is launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from halfbyte.errors import KernelInputError


def require(condition: bool, message: str | Callable[[], str], hint: str = "") -> None:
    """Raise KernelInputError with ``message`` unless the condition holds.

    A message that takes time to write is a function: every launch comes by here, and few fail.
    """
    if not condition:
        raise KernelInputError(message if isinstance(message, str) else message(), hint=hint)


def check_tensor(
    name: str,
    x: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Shape, dtype, contiguity and device of one kernel input.

    Args:
        name: what messages call it.
        x: a tensor of any shape.
        shape: sizes it must have; None: any size.
        dtypes: it must have one of these.
        device: where it must be; None: anywhere.

    Raises:
        KernelInputError: any of that does not hold.
    """
    have = tuple(x.shape)
    fits = len(have) == len(shape) and all(
        want is None or size == want for size, want in zip(have, shape, strict=True)
    )
    there = device is None or x.device == device
    if fits and there and x.dtype in dtypes and x.is_contiguous():
        return
    _refuse(name, x, shape, dtypes, device, fits)


def _refuse(
    name: str,
    x: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None,
    fits: bool,
) -> None:
    have = tuple(x.shape)
    wanted = tuple("any" if size is None else size for size in shape)
    require(fits, f"{name} has shape {have}; expected {wanted}")
    names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    require(x.dtype in dtypes, f"{name} is {str(x.dtype).removeprefix('torch.')}; expected {names}")
    require(
        x.is_contiguous(),
        f"{name} has strides {x.stride()} for shape {have}; expected contiguous",
        "call .contiguous()",
    )
    require(device is None or x.device == device, f"{name} is on {x.device}; expected {device}")
