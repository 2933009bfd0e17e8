"""The inputs of one step: everything a layer needs to know beside its weights.

Shape letters: T tokens of the step, R rows in it, B blocks of the longest block table,
F half the rotary dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class RowSpan:
    """Where one row's tokens lie in the step: ``[begin, end)``, at positions from ``start``."""

    begin: int
    end: int
    start: int

    @property
    def length(self) -> int:
        """Tokens of the row's context after this step."""
        return self.start + self.end - self.begin


@dataclass(slots=True)
class StepInputs:
    """One argument instead of global state.

    Attributes:
        token_ids: int64 [T].
        positions: int32 [T], position of each token in its own text.
        rope: float32 [T, 2 F], cosines then sines of each token's rotation angles.
        slots: int64 [T], ``block * block_size + offset`` where each token's KV goes.
        row_index: int32 [T], which line of ``block_tables`` a token uses.
        block_tables: int32 [R, B], block numbers; entries past a row's length are not read.
        spans: R spans in token order.
        sample_index: int64 [S], tokens whose logits are wanted, or None for all T.
        rope_local: like ``rope``, for layers with another rule (Gemma 3), or None.
    """

    token_ids: Tensor
    positions: Tensor
    rope: Tensor
    slots: Tensor
    row_index: Tensor
    block_tables: Tensor
    spans: list[RowSpan]
    sample_index: Tensor | None
    rope_local: Tensor | None = None
