"""Memory that the kernels use between their programs; allocated once, before any graph capture."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import require

PARTIAL_BYTES = 32 << 20
"""Bytes of partial sums that every workspace has at least."""
COUNTERS = 8192
"""Output tiles with a counter that every workspace has at least."""


class Workspace:
    """Split-K partial sums, arrival counters and dequantization scratch of one stream.

    The counters are zero between launches: the program that arrives last puts its own back. Two
    streams that run at once need a workspace each.

    Args:
        device: where the weights are.
        partial_bytes: fp32 partial sums; bounds how many splits a launch may have.
        counters: output tiles that one launch may have when it splits.
        scratch_bytes: dequantized weights for large M; wide layers are done in pieces of this
            size. Allocated at the first use.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        partial_bytes: int = PARTIAL_BYTES,
        counters: int = COUNTERS,
        scratch_bytes: int = 96 << 20,
    ) -> None:
        self.device = device
        self.scratch_bytes = scratch_bytes
        self.partials = torch.empty(partial_bytes // 4, dtype=torch.float32, device=device)
        self.counters = torch.zeros(counters, dtype=torch.int32, device=device)
        self._scratch: Tensor | None = None

    def rows_at_once(
        self, m: int, *, bm: int, bn: int, across: int, splits: int, unit: int = 0
    ) -> int:
        """Rows of a product that one launch can take: all ``m``, or the whole units that fit.

        Args:
            m: rows of x.
            bm: rows of an output tile.
            bn: columns of an output tile.
            across: tiles side by side.
            splits: programs that share a tile; one needs no room.
            unit: rows that must stay together, a multiple of ``bm``; 0: those of a tile.

        Raises:
            KernelInputError: not one unit fits.
        """
        if splits == 1:
            return m
        unit = unit or bm
        counters = unit // bm * across
        floats = counters * bm * bn * splits
        units = min(self.partials.numel() // floats, self.counters.numel() // counters)
        require(
            units > 0,
            lambda: (
                f"{splits} splits of {counters} tiles need {floats * 4} bytes and {counters} "
                f"counters; the workspace has {self.partials.numel() * 4} bytes and "
                f"{self.counters.numel()} counters"
            ),
            "enlarge the workspace, or lower the splits in the override table",
        )
        return min(m, units * unit)

    def scratch(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Uninitialized [rows, columns] in the scratch area."""
        size = rows * columns * dtype.itemsize
        require(
            size <= self.scratch_bytes,
            lambda: (
                f"scratch of {size} bytes asked for {rows} x {columns} {dtype}; "
                f"the workspace has {self.scratch_bytes}"
            ),
        )
        if self._scratch is None:
            self._scratch = torch.empty(self.scratch_bytes, dtype=torch.uint8, device=self.device)
        return self._scratch[:size].view(dtype).view(rows, columns)
