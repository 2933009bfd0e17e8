"""Weights as GGUF blocks, fitted by what inputs they meet; also as grids that GPTQ rounds to.

Shape letters: N rows, K columns, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.formats.group_grid import GroupFits
from ...loaders.gguf.types import BLOCK_TYPES, TensorType
from ..grid import Grid
from .gguf_fit import RULES, BlockScales, fit_scales
from .gguf_layout import write_blocks

TYPES: dict[str, TensorType] = {t.name: t for t in BLOCK_TYPES.values() if t.name in RULES}
"""Block types that can be made."""
# Elements of a weight that are fitted at a time: what a core's second cache holds.
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Fitted blocks of a weight [N, K] that have no codes yet.

    Attributes:
        kind: block type.
        scales: the numbers of blocks.
        grid: what codes stand for, with real-valued zero points: ``scale * (code - zero)``. With a
            table its codes are entries, and it serves for nothing but its scales.
    """

    kind: TensorType
    scales: BlockScales
    grid: Grid

    def blocks(self, codes_NK: Tensor) -> Tensor:
        """Raw blocks uint8 [N, bytes of a row] with these scales and uint8 codes [N, K]."""
        return write_blocks(self.kind, codes_NK, self.scales)

    def codes(self, weight_NK: Tensor) -> Tensor:
        """The nearest codes of a weight [N, K], uint8."""
        rule = RULES[self.kind.name]
        if not rule.grid.table:
            return self.grid.codes(weight_NK)
        values = torch.tensor(rule.grid.table)
        borders = (values[1:] + values[:-1]) / 2
        steps = self.grid.scales.unsqueeze(-1)
        x = weight_NK.unflatten(1, (-1, rule.grid.group)) / torch.where(steps == 0, 1, steps)
        return torch.bucketize(x, borders, out_int32=True).to(torch.uint8).flatten(1)


def fit_blocks(
    kind: str, weight_NK: Tensor, importance_K: Tensor | None, fits: GroupFits
) -> BlockGrid:
    """Blocks whose scales make the expected error of outputs small.

    Args:
        kind: block type, one of ``TYPES``.
        weight_NK: float [N, K], K in whole blocks, finite.
        importance_K: float [K], mean square of each input; None = all the same.
        fits: does the search.
    """
    weight, rule = weight_NK.float(), RULES[kind]
    importance = torch.ones(weight.shape[1]) if importance_K is None else importance_K.float()
    scales = fit_scales(rule, fits, weight, importance)
    steps, starts = scales.steps(), scales.starts()
    zeros = torch.full_like(steps, float(rule.grid.zero)) if starts is None else -starts / steps
    return BlockGrid(TYPES[kind], scales, Grid(steps, zeros, rule.grid.top, rule.grid.group))


def quantize_blocks(
    kind: str, weight_NK: Tensor, importance_K: Tensor | None, fits: GroupFits
) -> Tensor:
    """A weight as raw blocks with the nearest codes; arguments as of :func:`fit_blocks`.

    Returns:
        uint8 [N, bytes of a row].
    """
    rows = max(1, _CHUNK // weight_NK.shape[1])
    parts: list[Tensor] = []
    for part in weight_NK.split(rows):
        part = part.float()
        grid = fit_blocks(kind, part, importance_K, fits)
        parts.append(grid.blocks(grid.codes(part)))
    return torch.cat(parts)
