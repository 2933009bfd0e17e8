"""Per-request state that the runner keeps between steps: known tokens and block tables.

Rows live where the device can read them. Step inputs are gathered from rows by index and
sampled tokens are written back to them, so the next step can be built before anybody looked at
the last one's result; a preempted request and a finished one look the same from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..models.rope import Rotaries
from ..request import SamplingParams
from ..schedule.plan import RowInit, StepPlan
from .step import RowSpan, StepInputs


class Rows:
    """Fixed-size row buffers.

    Args:
        count: rows.
        max_context: tokens of a row.
        block_size: tokens in a KV block.
        rotary: position embedding tables.
    """

    def __init__(self, count: int, max_context: int, block_size: int, rotary: Rotaries) -> None:
        width = (max_context + block_size - 1) // block_size
        self.block_size = block_size
        self.rotary = rotary
        self.tokens = torch.zeros(count, max_context + 1, dtype=torch.int64)
        self.block_tables = torch.zeros(count, width, dtype=torch.int32)
        self.prompt_lengths = torch.zeros(count, dtype=torch.int32)
        self.params: list[SamplingParams | None] = [None] * count
        # The same memory: an operation on a few numbers costs a third of torch's, and all that
        # runs between two decode steps runs with cold caches.
        self._views = [x.numpy() for x in (self.tokens, self.block_tables, self.prompt_lengths)]
        self._blocks_held = [0] * count

    def admit(self, init: RowInit) -> None:
        """Fill a row for a request that takes it."""
        row = init.row
        self.tokens[row, : len(init.tokens)] = torch.tensor(init.tokens)
        self.prompt_lengths[row] = len(init.request.prompt)
        self.params[row] = init.request.params
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
        return self.step(runs, None if plan.pure_decode else [w.needs_sample for w in plan.work])

    def step(
        self, runs: Sequence[tuple[int, int, int]], wanted: Sequence[bool] | None
    ) -> StepInputs:
        """Inputs of a step.

        Args:
            runs: (row, first position, number of tokens), each row once.
            wanted: whether the logits of a run's last token are wanted; None for those of every
                token.
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
            ends = [span.end - 1 for span, want in zip(spans, wanted, strict=True) if want]
            sample = torch.tensor(ends, dtype=torch.int64)
        block = block_tables[token_rows, positions // self.block_size].astype(np.int64)
        lengths = np.maximum(prompt_lengths[token_rows], positions + 1)
        at = torch.from_numpy(positions)
        rope, rope_local = self.rotary.lookup(at, torch.from_numpy(lengths))
        return StepInputs(
            token_ids=torch.from_numpy(tokens[token_rows, positions]),
            positions=at,
            rope=rope,
            rope_local=rope_local,
            slots=torch.from_numpy(block * self.block_size + positions % self.block_size),
            row_index=torch.from_numpy(row_index),
            block_tables=torch.from_numpy(block_tables[rows]),
            spans=spans,
            sample_index=sample,
        )

    def write_samples(self, plan: StepPlan, sampled: Mapping[str, int]) -> None:
        """Put sampled tokens where the next step finds them; 0 for a row that has none."""
        for item in plan.work:
            if item.needs_sample:
                token = sampled.get(item.request_id, 0)
                self.tokens[item.row, item.start + item.count] = token

    def _extend(self, row: int, blocks: tuple[int, ...]) -> None:
        held = self._blocks_held[row]
        self.block_tables[row, held : held + len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        self._blocks_held[row] = held + len(blocks)
