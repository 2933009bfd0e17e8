"""The inputs of one step: everything a layer needs to know beside its weights.

Shape letters: T tokens of the step, R rows in it, B blocks of the longest block table,
F half the rotary dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
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
class HiddenRows:
    """Hidden states that somebody reads; the same object goes along with a step to the network.

    Attributes:
        index: int64 [H], tokens of the step whose normed hidden states are wanted.
        rows: those states [H, D], once the step is computed.
    """

    index: Tensor
    rows: Tensor | None = None


@dataclass(slots=True)
class StepInputs:
    """One argument instead of global state; :meth:`Rows.step` makes it.

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
        query_factors: float32 [T], by which rotated queries are multiplied, or None.
        hidden: where the normed hidden states of some tokens go, or None.
        drawn: int64, on the device, the token that was drawn last in each row of the engine: an id
            of ``-1 - r`` stands for that of row r, which the host has not read yet. None where no
            id does so.
        states: int32 [R], the slot of each span's state in ``BlockState.sequences``; -1 keeps
            nothing. None where the model keeps no state. A state counts as zeros for a span that
            begins at position 0, whatever its slot holds.
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
    query_factors: Tensor | None = None
    hidden: HiddenRows | None = None
    drawn: Tensor | None = None
    states: Tensor | None = None

    @property
    def key(self) -> tuple[int, ...]:
        """What two steps must have in common to share a recording."""
        sampled = -1 if self.sample_index is None else self.wanted
        return len(self.token_ids), len(self.block_tables), sampled

    def with_drawn(self) -> Self:
        """The step with the ids of tokens that were drawn and not read, where ``drawn`` is."""
        if self.drawn is None:
            return self
        ids = self.token_ids
        read = torch.where(ids < 0, self.drawn[(-1 - ids).clamp(min=0)], ids)
        return replace(self, token_ids=read, drawn=None)

    @property
    def wanted(self) -> int:
        """How many tokens' logits are wanted."""
        return len(self.token_ids if self.sample_index is None else self.sample_index)

    @property
    def tensors(self) -> list[Tensor]:
        """All that a device has to have, in a fixed order."""
        every = (
            *(self.token_ids, self.positions, self.rope, self.slots, self.row_index),
            *(self.block_tables, self.sample_index, self.rope_local, self.query_factors),
            self.states,
        )
        return [tensor for tensor in every if tensor is not None]

    @property
    def decodes(self) -> bool:
        """Whether every row has one token, whose logits are wanted."""
        one_each = self.token_ids.shape[0] == len(self.spans)
        return self.sample_index is None and self.hidden is None and one_each

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The step with every tensor changed."""
        local, sample, factors = self.rope_local, self.sample_index, self.query_factors
        states = self.states
        return replace(
            self,
            token_ids=change(self.token_ids),
            positions=change(self.positions),
            rope=change(self.rope),
            slots=change(self.slots),
            row_index=change(self.row_index),
            block_tables=change(self.block_tables),
            sample_index=None if sample is None else change(sample),
            rope_local=None if local is None else change(local),
            query_factors=None if factors is None else change(factors),
            states=None if states is None else change(states),
        )

    def clone(self) -> Self:
        """The step in contiguous buffers that nothing else has."""
        return self.map(lambda tensor: tensor.contiguous().clone())

    def copy_(self, other: StepInputs) -> None:
        """Take over another step with the same key, in the same buffers."""
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(theirs)

    def padded(self, tokens: int, rows: int) -> StepInputs:
        """A step of so many tokens and block tables; those that are added stand for nothing.

        Nothing of theirs is kept (their slots are negative), they look at the first
        token of the step's first row, and they are in no span, except where each row has one
        token. Where some tokens' logits are wanted, those of ``rows`` are.
        """
        if len(self.token_ids) == tokens and len(self.block_tables) == rows:
            return self

        def fill(tensor: Tensor, count: int, value: int) -> Tensor:
            added = tensor.new_full((count - len(tensor), *tensor.shape[1:]), value)
            return torch.cat([tensor, added])

        more, factors = rows - len(self.block_tables), self.query_factors
        spans, sample = self.spans, self.sample_index
        if self.decodes:
            spans = spans + [RowSpan(i, i + 1, 0) for i in range(len(spans), rows)]
        return replace(
            self,
            token_ids=fill(self.token_ids, tokens, 0),
            positions=fill(self.positions, tokens, 0),
            rope=fill(self.rope, tokens, 0),
            rope_local=None if self.rope_local is None else fill(self.rope_local, tokens, 0),
            query_factors=None if factors is None else fill(factors, tokens, 1),
            slots=fill(self.slots, tokens, -1),
            row_index=fill(self.row_index, tokens, 0),
            block_tables=torch.cat([self.block_tables, self.block_tables[:1].expand(more, -1)]),
            spans=spans,
            sample_index=None if sample is None else fill(sample, rows, 0),
            states=None if self.states is None else fill(self.states, rows, -1),
        )

    def as_decode(self) -> StepInputs:
        """The same tokens as a decode step: each is a row, those whose logits are wanted first.

        A text's keys are all written before any of its tokens looks at them. A state goes through
        the tokens in turn, so that there must be none.
        """
        assert self.sample_index is not None and self.hidden is None and self.states is None
        wanted = torch.zeros(self.token_ids.shape[0], dtype=torch.bool)
        wanted[self.sample_index] = True
        order = torch.cat([self.sample_index, (~wanted).nonzero().squeeze(-1)])
        starts = [span.start + i for span in self.spans for i in range(span.end - span.begin)]
        return StepInputs(
            token_ids=self.token_ids[order],
            positions=self.positions[order],
            rope=self.rope[order],
            rope_local=None if self.rope_local is None else self.rope_local[order],
            query_factors=None if self.query_factors is None else self.query_factors[order],
            slots=self.slots[order],
            row_index=torch.arange(len(order), dtype=torch.int32),
            block_tables=self.block_tables[self.row_index[order].long()],
            spans=[RowSpan(i, i + 1, starts[t]) for i, t in enumerate(order.tolist())],
            sample_index=None,
            drawn=self.drawn,
        )

    def one_by_one(self) -> Iterator[StepInputs]:
        """Each token as a step by itself that wants its logits, in order."""
        for row, span in enumerate(self.spans):
            for t in range(span.begin, span.end):
                local, factors = self.rope_local, self.query_factors
                yield StepInputs(
                    token_ids=self.token_ids[t : t + 1],
                    positions=self.positions[t : t + 1],
                    rope=self.rope[t : t + 1],
                    rope_local=None if local is None else local[t : t + 1],
                    query_factors=None if factors is None else factors[t : t + 1],
                    slots=self.slots[t : t + 1],
                    row_index=torch.zeros(1, dtype=torch.int32),
                    block_tables=self.block_tables[row : row + 1],
                    spans=[RowSpan(0, 1, span.start + t - span.begin)],
                    sample_index=None,
                    hidden=None if self.hidden is None else HiddenRows(torch.zeros(1).long()),
                    drawn=self.drawn,
                    states=None if self.states is None else self.states[row : row + 1],
                )
