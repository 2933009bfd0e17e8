"""Inputs of a case of a product over several experts, and what belongs to whom in its output."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device.expert_tiles import ExpertLoad, ExpertTiles

TILE_EXPERTS = (2, -1, 0, 2)
"""Whose rows the tiles of a product's case have, of three experts."""


def case_tiles(rows: int) -> ExpertTiles:
    """Tiles of so many rows, of experts in no order, with a gap."""
    return ExpertTiles(torch.tensor(TILE_EXPERTS, dtype=torch.int32), rows, ExpertLoad(3, 3, rows))


def live_rows(x_PN: Tensor, rows: int) -> Tensor:
    """The rows of somebody's tiles, of outputs [P, N]."""
    return own_rows([x_PN] * 3, rows)


def own_rows(parts: list[Tensor], rows: int) -> Tensor:
    """Live rows of [P, N] tensors, each tile's from that of its expert."""
    tiles = [(i * rows, e) for i, e in enumerate(TILE_EXPERTS) if e >= 0]
    return torch.cat([parts[e][at : at + rows] for at, e in tiles])


def by_expert(x_PK: Tensor, matrices: list[Tensor], rows: int) -> Tensor:
    """Live rows [L, N] of inputs [P, K], each times the matrix [N, K] of its tile's expert."""
    return own_rows([x_PK @ matrix.T for matrix in matrices], rows)
