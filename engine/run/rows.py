"""Per-request state that the runner keeps between steps: known tokens and block tables.

Rows live where the device can read them. Step inputs are gathered from rows by index and
sampled tokens are written back to them, so the next step can be built before anybody looked at
the last one's result; a preempted request and a finished one look the same from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.rope import Rotaries
from ..request import PromptReader, Request, Sampled
from ..schedule.plan import RowInit, RowWork, StepPlan
from .step import HiddenRows, RowSpan, StepInputs


@dataclass(frozen=True, slots=True)
class Promise:
    """Tokens that are drawn, but not read.

    Attributes:
        items: work whose last position they follow.
        taken: how often the row of each had been taken.
    """

    items: tuple[RowWork, ...]
    taken: tuple[int, ...]


class Rows:
    """Fixed-size row buffers.

    Args:
        count: rows.
        max_context: tokens of a row.
        block_size: tokens in a KV block.
        rotary: position embedding tables.
        stateful: the model keeps a state for each row, in the slot of its number.
    """

    def __init__(
        self,
        count: int,
        max_context: int,
        block_size: int,
        rotary: Rotaries,
        stateful: bool = False,
    ) -> None:
        width = (max_context + block_size - 1) // block_size
        self.block_size = block_size
        self.max_context = max_context
        self.rotary = rotary
        self.stateful = stateful
        self.tokens = torch.zeros(count, max_context + 1, dtype=torch.int64)
        self.block_tables = torch.zeros(count, width, dtype=torch.int32)
        self.prompt_lengths = torch.zeros(count, dtype=torch.int32)
        self.requests: list[Request | None] = [None] * count
        self.known = [0] * count
        # How often a row was taken: what was promised to a request is not for the next one.
        self._taken = [0] * count
        # The same memory: an operation on a few numbers costs a third of torch's, and all that
        # runs between two decode steps runs with cold caches.
        self._views = [x.numpy() for x in (self.tokens, self.block_tables, self.prompt_lengths)]
        self._blocks_held = [0] * count

    def admit(self, init: RowInit) -> None:
        """Fill a row for a request that takes it."""
        row = init.row
        self.tokens[row, : len(init.tokens)] = torch.tensor(init.tokens)
        self.prompt_lengths[row] = len(init.request.prompt)
        self.requests[row] = init.request
        self._taken[row] += 1
        self.known[row] = len(init.tokens)
        self._blocks_held[row] = 0
        self._extend(row, init.blocks)

    def apply(self, plan: StepPlan) -> None:
        """Take in a plan's admissions and new blocks."""
        for init in plan.admitted:
            self.admit(init)
        for item in plan.work:
            if item.new_blocks:
                self._extend(item.row, item.new_blocks)

    def gather(self, plan: StepPlan) -> StepInputs:
        """Inputs of a plan's step, in its order."""
        runs = [(w.row, w.start, w.count) for w in plan.work]
        if plan.pure_decode:
            return self.step(runs, None)
        hidden = [w.count if w.reads and self.reader(w).hidden else 0 for w in plan.work]
        return self.step(runs, [self.logit_rows(w) for w in plan.work], hidden)

    def request(self, item: RowWork) -> Request:
        """The request that has a row."""
        request = self.requests[item.row]
        assert request is not None
        return request

    def reader(self, item: RowWork) -> PromptReader:
        """The reader of a row whose work has one."""
        reader = self.request(item).reader
        assert reader is not None
        return reader

    def logit_rows(self, item: RowWork) -> int:
        """How many of a row's last tokens in the step have logits."""
        if item.reads and not self.reader(item).hidden:
            return item.count
        return int(item.needs_sample)

    def step(
        self,
        runs: Sequence[tuple[int, int, int]],
        wanted: Sequence[int] | None,
        hidden: Sequence[int] = (),
    ) -> StepInputs:
        """Inputs of a step.

        Args:
            runs: (row, first position, number of tokens), each row once.
            wanted: of how many of a run's last tokens the logits are wanted; None for those of
                every token.
            hidden: of how many of them the hidden states are wanted.
        """
        tokens, block_tables, prompt_lengths = self._views
        rows = np.array([row for row, _, _ in runs], np.int64)
        row_index = np.arange(len(runs), dtype=np.int32)
        spans, begin = [], 0
        for _, start, count in runs:
            spans.append(RowSpan(begin, begin + count, start))
            begin += count
        if begin == len(runs):
            positions = np.array([start for _, start, _ in runs], np.int32)
            token_rows = rows
        else:
            positions = np.concatenate(
                [np.arange(start, start + n, dtype=np.int32) for _, start, n in runs]
            )
            counts = [count for _, _, count in runs]
            row_index, token_rows = (x.repeat(counts) for x in (row_index, rows))
        sample = None
        if wanted is not None:
            sample = _last(spans, wanted)
        block = block_tables[token_rows, positions // self.block_size].astype(np.int64)
        lengths = np.maximum(prompt_lengths[token_rows], positions + 1)
        at = torch.from_numpy(positions)
        rope, rope_local = self.rotary.lookup(at, torch.from_numpy(lengths))
        return StepInputs(
            token_ids=torch.from_numpy(tokens[token_rows, positions]),
            positions=at,
            rope=rope,
            rope_local=rope_local,
            query_factors=self.rotary.query_factors(at),
            slots=torch.from_numpy(block * self.block_size + positions % self.block_size),
            row_index=torch.from_numpy(row_index),
            block_tables=torch.from_numpy(block_tables[rows]),
            spans=spans,
            sample_index=sample,
            hidden=HiddenRows(_last(spans, hidden)) if any(hidden) else None,
            states=torch.from_numpy(rows.astype(np.int32)) if self.stateful else None,
        )

    def undecided(self, item: RowWork) -> bool:
        """Whether a row's next token is to be drawn.

        It is not when it was known before the step was over: a grammar left no choice.
        """
        return item.needs_sample and self.known[item.row] == item.start + item.count

    def write_samples(self, plan: StepPlan, sampled: Mapping[str, Sequence[Sampled]]) -> None:
        """Put sampled tokens where the next step finds them; 0 for a row that has none."""
        for item in plan.work:
            if not self.undecided(item):
                continue
            tokens = [s.token for s in sampled.get(item.request_id, ())] or [0]
            end = item.start + item.count
            self.known[item.row] = end + len(tokens)
            self._views[0][item.row, end : end + len(tokens)] = tokens

    def promise(self, items: Sequence[RowWork]) -> Promise:
        """The next token of these rows is drawn, but not read: an id of ``-1 - row`` stands for it.

        The next step can be built with it; :meth:`keep` puts the token itself there.
        """
        for item in items:
            end = item.start + item.count
            self.known[item.row] = end + 1
            self._views[0][item.row, end] = -1 - item.row
        return Promise(tuple(items), tuple(self._taken[item.row] for item in items))

    def keep(self, promise: Promise, tokens: Sequence[int]) -> None:
        """Put tokens where they were promised, except where another request has the row now."""
        for item, taken, token in zip(promise.items, promise.taken, tokens, strict=True):
            if self._taken[item.row] == taken:
                self._views[0][item.row, item.start + item.count] = max(token, 0)

    def _extend(self, row: int, blocks: tuple[int, ...]) -> None:
        held = self._blocks_held[row]
        self.block_tables[row, held : held + len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        self._blocks_held[row] = held + len(blocks)


def _last(spans: Sequence[RowSpan], counts: Sequence[int]) -> Tensor:
    """Indices of the last tokens of each span, as many as ``counts`` says: int64."""
    ends = [
        t
        for span, count in zip(spans, counts, strict=True)
        for t in range(span.end - count, span.end)
    ]
    return torch.tensor(ends, dtype=torch.int64)
