"""Weights as GGUF blocks, fitted by what inputs they meet; also as grids that GPTQ rounds to.

Shape letters: N rows, K columns, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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
_CHUNK = 1 << 19


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
        rule, grid = RULES[self.kind.name], self.grid
        groups = weight_NK.float().unflatten(1, (-1, rule.grid.group))
        steps = grid.scales.unsqueeze(-1)
        if not rule.grid.table:
            x = (groups / steps).add_(grid.zeros.unsqueeze(-1))
            return x.round_().clamp_(0, grid.top).to(torch.uint8).flatten(1)
        x = groups / torch.where(steps == 0, 1, steps)
        halves = x.mul_(2).floor_().clamp_(-256, 255).add_(256).long()
        return torch.take(_nearest_entries(rule.grid.table), halves).flatten(1)


@cache
def _nearest_entries(table: tuple[float, ...]) -> Tensor:
    """The nearest entry of every half from -128 to 127.5: no border lies between two, uint8 [512].

    Entries are whole numbers, and so the borders between them are halves.
    """
    values = torch.tensor(table)
    halves = torch.arange(-256, 256) / 2
    return torch.bucketize(halves, (values[1:] + values[:-1]) / 2, right=True).to(torch.uint8)


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
