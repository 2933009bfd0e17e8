"""Reading what a device computes, without waiting for it until somebody looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ReadBack:
    """Copies of tensors on their way to the host.

    Args:
        tensors: of any shapes, on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._there = list(tensors)
        if self._there and self._there[0].device.type == "cuda":
            self._there = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors
            ]
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors [...] on the host, once they are computed and copied."""
        if self._event is not None:
            self._event.synchronize()
        return self._there
