"""Grids of small groups of weights, and what finds the best: interface of all implementations.

Shape letters: N rows, K columns, G groups of a row, C choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Offset = Literal["", "negative", "free"]


@dataclass(frozen=True, slots=True)
class GroupGrid:
    """What the codes of a group can stand for, apart from its scale and offset.

    Attributes:
        group: columns of a group, 16 or 32.
        top: the largest code.
        zero: the code that stands for 0 where there is no offset; with a table its largest
            magnitude.
        offset: a group has an offset beside its scale: any number, or none above 0; "" = none.
        table: values of 4-bit codes by rising code, else empty.
    """

    group: int
    top: int
    zero: int = 0
    offset: Offset = ""
    table: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """How the scale of a group is looked for.

    Attributes:
        tries: first guesses, spread evenly.
        first: the fewest steps that a guess cuts the range (with an offset), or the largest
            magnitude, into.
        last: the most.
        refits: how often codes are rounded anew by the least-squares fit to codes so far.
    """

    tries: int
    first: float
    last: float
    refits: int = 2


class GroupFits(Protocol):
    """Searches for grids with the least ``sum importance * (w - rounded)^2`` in each group."""

    def fit(
        self, grid: GroupGrid, search: Search, weight_NK: Tensor, importance_K: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The best scales and offsets [N, G], float32; a group of zeros has scale 0.

        Args:
            grid: its kind.
            search: the first guesses.
            weight_NK: float32 [N, K], finite, K in whole groups.
            importance_K: float32 [K], none below 0.
        """
        ...

    def choose(
        self,
        grid: GroupGrid,
        weight_NK: Tensor,
        importance_K: Tensor,
        scales_CNG: Tensor,
        offsets_CNG: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The first choice with the least error in each group, int32 [N, G], and its sums [5, N, G].

        The sums are, with q what a code stands for before scaling and h the importance: the error,
        and those of h q q, of h w q, with offsets of h q, and of h w.
        """
        ...
