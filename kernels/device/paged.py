"""Checks of the paged KV cache, for the kernels that write and read it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats.activations import KV_RULES
from .checks import require


def check_cache(
    name: str,
    cache: Tensor,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """What a kernel relies on of keys or values.

    Args:
        name: ``k`` or ``v``, for the message.
        cache: of any shape.
        shape: that it must have, [B, J, S, E].
        strides: those of the keys, whose blocks may lie apart.
        dtype: of what it holds.
        device: where.

    Raises:
        KernelInputError: any of that does not hold.
    """
    require(
        tuple(cache.shape) == shape and cache.dtype == dtype and cache.device == device,
        lambda: (
            f"{name}_cache is {cache.dtype} {tuple(cache.shape)} on {cache.device}; expected "
            f"{dtype} {shape} on {device}"
        ),
    )
    require(
        cache.stride() == strides,
        lambda: f"{name}_cache has strides {cache.stride()}; expected {strides}",
    )


def check_scale(name: str, scale: Tensor | None, k_cache: Tensor, k_scale: Tensor | None) -> None:
    """What a kernel relies on of the scales of keys or values.

    Args:
        name: ``k`` or ``v``, for the message.
        scale: float32 [B, J, S] for a cache of codes, else None.
        k_cache: the keys, [B, J, S, E].
        k_scale: the scales of the keys, checked before those of the values.

    Raises:
        KernelInputError: there are none for codes, some for another cache, or they do not fit.
    """
    quantized = k_cache.dtype in KV_RULES
    require(
        (scale is not None) == quantized,
        lambda: (
            f"{name}_cache is {k_cache.dtype}, "
            f"so {name}_scale must {'' if quantized else 'not '}be given"
        ),
    )
    if scale is None:
        return
    assert k_scale is not None  # the keys' are checked first
    shape = tuple(k_cache.shape[:3])
    require(
        tuple(scale.shape) == shape
        and scale.dtype == torch.float32
        and scale.stride() == (k_scale.stride(0), shape[2], 1)
        and scale.device == k_cache.device,
        lambda: (
            f"{name}_scale is {scale.dtype} {tuple(scale.shape)} with strides "
            f"{scale.stride()}; expected float32 {shape}, rows contiguous"
        ),
    )
