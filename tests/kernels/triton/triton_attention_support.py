"""A paged cache in the engine's layout, with every unwritten place poisoned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.kernels.formats.activations import dequantize_kv, quantize_kv


@dataclass
class Paged:
    """Caches as the kernels take them, and what they mean in float64."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    true_k: Tensor
    true_v: Tensor
    tables: Tensor
    lengths: list[int]

    def scales(self) -> dict[str, Tensor | None]:
        return {"k_scale_BJS": self.k_scale, "v_scale_BJS": self.v_scale}


def paged(rng, lengths, kv_heads, page, dim, dtype, quantized=False) -> Paged:
    """Rows of the given lengths in shuffled blocks; the tables' tails are out of range."""
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
    if not quantized:
        cache = whole.to(dtype)
        k, v = cache[:, 1, 0], cache[:, 1, 1]
        return Paged(k, v, None, None, k.double(), v.double(), tables, list(lengths))
    written = ~whole[:, 1, :, :, :, 0].isnan()
    codes, scales = quantize_kv(whole.nan_to_num())
    true = dequantize_kv(codes, scales, torch.float64)
    scales[:, 1][~written] = float("nan")
    return Paged(
        codes[:, 1, 0], codes[:, 1, 1], scales[:, 1, 0], scales[:, 1, 1],
        true[:, 1, 0], true[:, 1, 1], tables, list(lengths),
    )  # fmt: skip
