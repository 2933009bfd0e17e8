"""Recorded decode steps: CUDA graphs, and the CPU's counterpart of them.

A decode step of T rows is noted down once, on fixed buffers, and then replayed: inputs are
copied into the buffers and one call runs the whole step, so a step costs no Python per op.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.base import Program
from ..models.decoder import Decoder
from .kv_cache import KVCache
from .step import RowSpan, StepInputs


@dataclass(slots=True)
class _Recorded:
    step: StepInputs
    program: Program
    logits: Tensor


class GraphPool:
    """Recorded decode steps by their key, made lazily.

    Args:
        model: the network to record.
        kv: its cache.
        limit: most rows of a recorded step.
    """

    def __init__(self, model: Decoder, kv: KVCache, limit: int) -> None:
        self._model = model
        self._kv = kv
        self._limit = limit
        self._logits: Tensor | None = None
        self._recorded: dict[tuple[int, ...], _Recorded] = {}

    def covers(self, tokens: int) -> bool:
        """Whether a decode step of ``tokens`` rows is, or can be, recorded."""
        return tokens <= self._limit and self._model.records

    def run(self, step: StepInputs) -> Tensor:
        """Logits [T, V] in the backend's dtype; the buffer is overwritten by the next run."""
        step = self._model.ops.prepare(step)
        key = self._model.ops.graph_key(step)
        item = self._recorded.get(key)
        if item is None:
            item = self._recorded[key] = self._record(step)
        else:
            for name in ("token_ids", "positions", "rope", "slots", "block_tables"):
                getattr(item.step, name).copy_(getattr(step, name))
            if item.step.rope_local is not None and step.rope_local is not None:
                item.step.rope_local.copy_(step.rope_local)
        item.program.run()
        return self._model.cap(item.logits)

    def _record(self, step: StepInputs) -> _Recorded:
        fixed = replace(
            step,
            token_ids=step.token_ids.clone(),
            positions=step.positions.clone(),
            rope=step.rope.contiguous().clone(),
            slots=step.slots.clone(),
            block_tables=step.block_tables.contiguous().clone(),
            rope_local=None if step.rope_local is None else step.rope_local.contiguous().clone(),
        )
        if self._model.ops.eager:
            # Everything that is compiled or allocated once must be there before a capture.
            self._model.forward(fixed, self._kv)
        if self._logits is None:
            # One for all: recordings of every batch size would hold gigabytes of them.
            size = (self._limit, self._model.head.shape[0])
            self._logits = torch.empty(
                size, dtype=self._model.ops.dtype, device=self._model.ops.device
            )
        out = self._logits[: len(step.spans)]
        program, logits = record(self._model, fixed, self._kv, out)
        return _Recorded(fixed, program, logits)


def record(
    model: Decoder, step: StepInputs, kv: KVCache, out: Tensor | None = None
) -> tuple[Program, Tensor]:
    """Note a step down; the program fills the returned logits [S, V] (``out``) when it runs."""
    model.ops.begin_record()
    try:
        logits = model.forward(step, kv, out)
    finally:
        program = model.ops.end_record()
    return program, logits


def compute(model: Decoder, step: StepInputs, kv: KVCache) -> Tensor:
    """Logits [S, V] of a step that is run once."""
    if model.ops.alone:
        return model.cap(_one_by_one(model, step, kv))
    step = model.ops.prepare(step)
    if model.ops.eager:
        return model.cap(model.forward(step, kv))
    program, logits = record(model, step, kv)
    program.run()
    return model.cap(logits)


def _one_by_one(model: Decoder, step: StepInputs, kv: KVCache) -> Tensor:
    """Each token as a step of its own, in order, so that none can see how many there are."""
    out: list[Tensor] = []
    for row, span in enumerate(step.spans):
        for t in range(span.begin, span.end):
            single = StepInputs(
                token_ids=step.token_ids[t : t + 1],
                positions=step.positions[t : t + 1],
                rope=step.rope[t : t + 1],
                rope_local=None if step.rope_local is None else step.rope_local[t : t + 1],
                slots=step.slots[t : t + 1],
                row_index=torch.zeros(1, dtype=torch.int32),
                block_tables=step.block_tables[row : row + 1],
                spans=[RowSpan(0, 1, span.start + t - span.begin)],
                sample_index=None,
            )
            out.append(model.forward(single, kv))
    logits = torch.cat(out)
    return logits if step.sample_index is None else logits[step.sample_index]
