"""Checks of kernel inputs; each failure says all the numbers, before anything is launched."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.errors import KernelInputError


def require(condition: bool, message: str, hint: str = "") -> None:
    """Raise KernelInputError with ``message`` unless the condition holds."""
    if not condition:
        raise KernelInputError(message, hint=hint)


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
    fits = x.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(x.shape, shape, strict=False)
    )
    wanted = tuple("any" if size is None else size for size in shape)
    require(fits, f"{name} has shape {tuple(x.shape)}; expected {wanted}")
    names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    require(x.dtype in dtypes, f"{name} is {str(x.dtype).removeprefix('torch.')}; expected {names}")
    require(
        x.is_contiguous(),
        f"{name} has strides {x.stride()} for shape {tuple(x.shape)}; expected contiguous",
        "call .contiguous()",
    )
    require(
        device is None or x.device == device,
        f"{name} is on {x.device}; expected {device}",
    )
