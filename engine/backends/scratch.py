"""Memory of intermediate results of the C kernels."""

from __future__ import annotations

import weakref
from math import prod

import torch
from torch import Tensor

from ...kernels.cpu.arena import Arena


class Scratch:
    """Buffers of intermediate results, used again as soon as nobody holds the tensor.

    Ops run in the order in which they are noted, so a buffer whose last Python reference went
    away while a step was noted may serve a later op of the same step. Without this a prefill
    would touch fresh memory in every layer, and pay for it in page faults and cache misses.

    Args:
        arena: where the memory comes from; it is kept for good.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._free: dict[int, list[Tensor]] = {}
        self._live: set[int] = set()

    def take(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        used: tuple[int, int] | None = None,
    ) -> Tensor:
        """An unset tensor of ``shape``, or of a matrix its first ``used`` = [rows, columns]."""
        size = max(4096, 1 << (prod(shape) * dtype.itemsize - 1).bit_length())
        stock = self._free.setdefault(size, [])
        buffer = stock.pop() if stock else self._arena.empty(size)
        tensor = buffer[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
        if used is not None:
            tensor = tensor[: used[0], : used[1]]
        self._live.add(id(tensor))
        weakref.finalize(tensor, self._back, id(tensor), stock, buffer)
        return tensor

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor, of any shape, came from :meth:`take`."""
        return id(tensor) in self._live

    def _back(self, identity: int, stock: list[Tensor], buffer: Tensor) -> None:
        self._live.discard(identity)
        stock.append(buffer)
