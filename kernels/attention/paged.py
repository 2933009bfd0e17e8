"""A paged cache in the engine's layout, with every unwritten place poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats.activations import dequantize_kv, quantize_kv


@dataclass(frozen=True, slots=True)
class PagedCache:
    """Caches as the kernels take them, and what they mean.

    Attributes:
        k: keys [B, J, S, E], blocks strided.
        v: values, the same.
        k_scale: float32 [B, J, S] of keys that are codes, else None.
        v_scale: the same of values.
        true_k: what the keys mean, in float64.
        true_v: what the values mean.
        tables: int32 [R, W], entries past a row's blocks out of range.
        lengths: tokens of each row.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    true_k: Tensor
    true_v: Tensor
    tables: Tensor
    lengths: list[int]

    def scales(self) -> dict[str, Any]:
        """Arguments of the attention calls."""
        return {"k_scale_BJS": self.k_scale, "v_scale_BJS": self.v_scale}


def paged_cache(
    rng: torch.Generator,
    lengths: Sequence[int],
    kv_heads: int,
    page: int,
    dim: int,
    dtype: torch.dtype,
    codes: torch.dtype | None = None,
) -> PagedCache:
    """Rows of the given lengths in shuffled blocks of ``page`` tokens, [kv_heads, page, dim] each.

    ``codes``: such with float32 scales in place of ``dtype``.
    """
    need = [-(-length // page) for length in lengths]
    blocks = sum(need) + 2
    order = torch.randperm(blocks, generator=rng).to(torch.int32)
    tables = torch.full((len(lengths), max([*need, 1]) + 2), 2**30, dtype=torch.int32)
    # [block, layer, side, ...] as in engine/run/kv_cache.py: blocks of one layer are strided.
    whole = torch.full((blocks, 2, 2, kv_heads, page, dim), float("nan"), dtype=torch.float32)
    at = 0
    for row, (count, length) in enumerate(zip(need, lengths, strict=True)):
        tables[row, :count] = order[at : at + count]
        at += count
        for token in range(length):
            block = int(tables[row, token // page])
            fresh = torch.randn(2, kv_heads, dim, generator=rng)
            whole[block, 1, :, :, token % page] = fresh
    if codes is None:
        cache = whole.to(dtype)
        k, v = cache[:, 1, 0], cache[:, 1, 1]
        return PagedCache(k, v, None, None, k.double(), v.double(), tables, list(lengths))
    written = ~whole[:, 1, :, :, :, 0].isnan()
    kept, scales = quantize_kv(whole.nan_to_num(), codes)
    true = dequantize_kv(kept, scales, torch.float64)
    scales[:, 1][~written] = float("nan")
    return PagedCache(
        kept[:, 1, 0], kept[:, 1, 1], scales[:, 1, 0], scales[:, 1, 1],
        true[:, 1, 0], true[:, 1, 1], tables, list(lengths),
    )  # fmt: skip
