"""What both attention kernels rely on, checked before a launch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.paged import check_cache, check_scale
from ..formats.activations import KV_RULES
from .config import DIMS, PAGES, fits

# Tiles are cut for 16-bit types; the interpreter can take wider ones too.
_FLOATS = (torch.float16, torch.bfloat16) + ((torch.float32,) if runtime.INTERPRETED else ())


def check_inputs(
    q_THE: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    tables: Tensor,
    scale: float,
    window: int,
    soft_cap: float,
    sinks: Tensor | None,
) -> tuple[int, int]:
    """Everything both kernels rely on; returns (kv heads, tokens of a block).

    Args:
        q_THE: [T, H, E] of one of FLOATS, heads contiguous.
        k_cache: [B, J, S, E] of the dtype of ``q`` or codes (``KV_RULES``), blocks contiguous.
        v_cache: [B, J, S, E], of the dtype and strides of ``k_cache``.
        k_scale: float32 [B, J, S] for a cache of codes, else None.
        v_scale: float32 [B, J, S] for a cache of codes, else None.
        tables: int32 [R, W], rows contiguous.
        scale: finite and > 0.
        window: >= 0.
        soft_cap: >= 0.
        sinks: float32 [H], or None.

    Raises:
        KernelInputError: any of that does not hold, or devices differ.
    """
    require(
        q_THE.dim() == 3, lambda: f"q has shape {tuple(q_THE.shape)}; expected (tokens, heads, dim)"
    )
    _, heads, dim = q_THE.shape
    require(q_THE.dtype in _FLOATS, lambda: f"q is {q_THE.dtype}; expected one of {_FLOATS}")
    require(fits(dim), lambda: f"head_dim is {dim}; expected a multiple of 16 up to {max(DIMS)}")
    require(
        q_THE.stride(2) == 1 and q_THE.stride(1) == dim and q_THE.stride(0) % 16 == 0,
        lambda: f"q has strides {q_THE.stride()}; expected (a multiple of 16, {dim}, 1)",
    )
    require(
        k_cache.dim() == 4,
        lambda: f"k_cache has shape {tuple(k_cache.shape)}; expected 4 dimensions",
    )
    blocks, kv_heads, page, _ = k_cache.shape
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        lambda: f"{heads} query heads do not divide into {kv_heads} KV heads",
    )
    require(page in PAGES, lambda: f"a KV block has {page} tokens; expected one of {PAGES}")
    require(
        k_cache.stride(0) % 16 == 0,
        lambda: (
            f"blocks of k_cache lie {k_cache.stride(0)} elements apart; expected a multiple of 16"
        ),
    )
    strides = (k_cache.stride(0), page * dim, dim, 1)
    dtype = k_cache.dtype if k_cache.dtype in KV_RULES else q_THE.dtype
    check_cache("k", k_cache, (blocks, kv_heads, page, dim), strides, dtype, q_THE.device)
    check_cache("v", v_cache, (blocks, kv_heads, page, dim), strides, dtype, q_THE.device)
    check_scale("k", k_scale, k_cache, k_scale)
    check_scale("v", v_scale, k_cache, k_scale)
    require(
        tables.dim() == 2 and tables.dtype == torch.int32 and tables.stride(1) == 1
        and tables.device == q_THE.device,
        lambda: f"block_tables is {tables.dtype} {tuple(tables.shape)} with strides "
        f"{tables.stride()} on {tables.device}; expected int32 (rows, blocks), rows contiguous, "
        f"on {q_THE.device}",
    )  # fmt: skip
    require(
        math.isfinite(scale) and scale > 0,
        lambda: f"scale is {scale}; expected a finite number above 0",
    )
    require(
        window >= 0 and soft_cap >= 0,
        lambda: f"window {window} and soft_cap {soft_cap} must be >= 0",
    )
    if sinks is not None:
        check_tensor("sinks", sinks, (heads,), (torch.float32,), q_THE.device)
    return kv_heads, page
