"""A step's inputs on a device, as the Triton kernels take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from ...kernels.attention import build_prefill_table, length_bucket
from ..run.step import RowSpan, StepInputs

_ALIGNMENT = 16
"""Bytes at whose multiples the parts of an upload begin: kernels read as much at once."""


# Without slots, so that it can ask its base.
@dataclass
class DeviceStep(StepInputs):
    """A step on the device, with what its attention calls share.

    Attributes:
        max_length: power of two that no row's context exceeds, where results must depend on a
            row's own text alone; 0: the number of splits is that of the longest context there is.
        singles: int32 [R], the tokens of rows that have one, then -1; None when each row has one,
            or is to be treated as so many rows of one.
        lines: work lists of the other rows, by how many tokens a line has.
    """

    max_length: int = 0
    singles: Tensor | None = None
    lines: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, step: StepInputs, device: torch.device, exact: bool) -> DeviceStep:
        """Copy a step to the device, and what all its layers share.

        Args:
            step: on the host.
            device: where to.
            exact: results of a token may depend on nothing but its own text.
        """
        parts = {f.name: getattr(step, f.name) for f in fields(StepInputs)}
        made = cls(**parts)
        if exact:
            made.max_length = length_bucket(max(span.length for span in step.spans))
        elif any(_several(span) for span in step.spans):
            alone = [span.begin for span in step.spans if not _several(span)]
            alone += [-1] * (len(step.block_tables) - len(alone))
            made.singles = torch.tensor(alone, dtype=torch.int32)
        there = iter(upload(made.tensors, device))
        return made.map(lambda _: next(there)).with_drawn()

    @property
    def key(self) -> tuple[int, ...]:
        """That of every step, and the length's bucket."""
        return *super().key, self.max_length

    @property
    def tensors(self) -> list[Tensor]:
        """Those of every step, then ``singles``."""
        return super().tensors + ([] if self.singles is None else [self.singles])

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The step with every tensor changed, in the order of ``tensors``, without work lists."""
        changed = super().map(change)
        singles = None if self.singles is None else change(self.singles)
        return replace(changed, singles=singles, lines={})

    def copy_(self, other: StepInputs) -> None:
        """Take over another step with the same key, in the same buffers."""
        assert isinstance(other, DeviceStep)
        super().copy_(other)
        for block_q, lines in self.lines.items():
            lines.copy_(other.lines_of(block_q))

    def lines_of(self, block_q: int) -> Tensor:
        """Work list int32 [P, 4] of the rows with several tokens, ``block_q`` of them a line.

        P is the same for all steps with the same key; empty lines are the last.
        """
        if block_q not in self.lines:
            most = len(self.token_ids) // block_q + len(self.block_tables)
            spans = ((s.begin, s.end if _several(s) else s.begin, s.start) for s in self.spans)
            made = build_prefill_table(spans, block_q, most)
            (self.lines[block_q],) = upload([made], self.token_ids.device)
        return self.lines[block_q]


def upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies on a device of host tensors [...], each in its own shape, in one transfer."""
    begins, size = [], 0
    for tensor in tensors:
        begins.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for begin, tensor in zip(begins, tensors, strict=True):
        _part(host, begin, tensor).copy_(tensor)
    # Torch keeps pinned memory until what was copied from it has arrived.
    there = host.to(device, non_blocking=True)
    return [_part(there, begin, like) for begin, like in zip(begins, tensors, strict=True)]


def _part(buffer: Tensor, begin: int, like: Tensor) -> Tensor:
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)


def _several(span: RowSpan) -> bool:
    return span.end - span.begin > 1
