"""Per-request state that the runner keeps between steps: known tokens and block tables.

Rows live where the device can read them. Step inputs are gathered from rows by index and
sampled tokens are written back to them, so the next step can be built before anybody looked at
the last one's result; a preempted request and a finished one look the same from here.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        """Inputs of a step, in plan order."""
        if plan.pure_decode:
            rows = torch.tensor([w.row for w in plan.work])
            positions = torch.tensor([w.start for w in plan.work], dtype=torch.int32)
            row_index = torch.arange(len(plan.work), dtype=torch.int32)
            spans = [RowSpan(i, i + 1, w.start) for i, w in enumerate(plan.work)]
            token_rows = rows
        else:
            rows = torch.tensor([w.row for w in plan.work])
            counts = torch.tensor([w.count for w in plan.work])
            positions = torch.cat(
                [torch.arange(w.start, w.start + w.count, dtype=torch.int32) for w in plan.work]
            )
            row_index = torch.arange(len(plan.work), dtype=torch.int32).repeat_interleave(counts)
            spans, begin = [], 0
            for w in plan.work:
                spans.append(RowSpan(begin, begin + w.count, w.start))
                begin += w.count
            token_rows = rows.repeat_interleave(counts)
        index = positions.long()
        block = self.block_tables[token_rows, index // self.block_size].long()
        lengths = torch.maximum(self.prompt_lengths[token_rows], positions + 1)
        rope, rope_local = self.rotary.lookup(positions, lengths)
        sample = None
        if not plan.pure_decode:
            ends = [s.end - 1 for s, w in zip(spans, plan.work, strict=True) if w.needs_sample]
            sample = torch.tensor(ends, dtype=torch.int64)
        return StepInputs(
            token_ids=self.tokens[token_rows, index],
            positions=positions,
            rope=rope,
            rope_local=rope_local,
            slots=block * self.block_size + index % self.block_size,
            row_index=row_index,
            block_tables=self.block_tables[rows],
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
