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
