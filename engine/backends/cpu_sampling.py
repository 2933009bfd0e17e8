"""Drawing tokens with the C kernel: what rows ask for, as the op has it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.cpu import ops
from ...kernels.cpu.library import Library
from ...kernels.cpu.ops import RECORDS
from ..run.sampling import RowSampling


def draw_rows(library: Library, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor:
    """One token for each row of float32 logits [S, V], -1 where they are not finite: int64 [S]."""
    out = torch.empty(len(rows), dtype=torch.int64)
    texts: list[Tensor] = []
    begin = 0
    numbers: list[list[float]] = []
    counters: list[list[int]] = []
    for row in rows:
        p = row.params
        # Of float32, as the reference takes it.
        farthest = -float(torch.tensor(p.min_p).log()) if p.min_p > 0.0 else math.inf
        penalties = [p.repetition_penalty, p.presence_penalty, p.frequency_penalty]
        numbers.append([p.heat, p.top_p, farthest, *penalties])
        text = row.tokens if row.penalized else row.tokens[:0]
        length = text.shape[0]
        counters.append([p.top_k, row.seed, row.position, begin, length, row.prompt_length])
        texts.append(text)
        begin += length
    op = ops.Draw(
        logits=logits_SV,
        numbers=torch.tensor(numbers, dtype=torch.float32),
        counters=torch.tensor(counters, dtype=torch.int64),
        texts=torch.cat(texts),
        out=out,
        tokens=len(rows),
        width=logits_SV.shape[1],
        stride=logits_SV.stride(0),
    )
    library.run(RECORDS.pack(op)[0], 1)
    return out
