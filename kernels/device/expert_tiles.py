"""How the tokens of a mixture's experts lie in one matrix of inputs, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """How many rows experts have, as far as the choice of kernels depends on it.

    Attributes:
        count: experts E of the layer.
        active: most experts that may have rows.
        m: rows of an expert on average.
    """

    count: int
    active: int
    m: int

    @classmethod
    def of(cls, tokens: int, per_token: int, count: int) -> ExpertLoad:
        """Of so many tokens that each go through ``per_token`` of ``count`` experts."""
        pairs = tokens * per_token
        return cls(count, min(count, pairs), max(1, -(-pairs // count)))


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """Inputs [P, K] sorted by expert, each expert's rows padded to whole tiles.

    Attributes:
        experts: int32 [P / rows], whose rows a tile has; -1: nobody's.
        rows: inputs of a tile, a power of two.
        load: of the experts.
    """

    experts: Tensor
    rows: int
    load: ExpertLoad

    @property
    def padded(self) -> int:
        """P."""
        return self.experts.shape[0] * self.rows

    def part(self, start: int, stop: int) -> ExpertTiles:
        """Rows ``start:stop``, in whole tiles."""
        return ExpertTiles(
            self.experts[start // self.rows : stop // self.rows], self.rows, self.load
        )
