"""Rows and logits for tests of what shapes a draw."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.run.draw_state import DrawState
from halfbyte.engine.run.sampling import RowSampling

OUT = -torch.inf


def fresh_rng() -> random.Random:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    return random.Random(seed)


def text_row(
    text: list[int], prompt: int = 1, draw: DrawState | None = None, seed: int = 3, **params: Any
) -> RowSampling:
    """A row whose text has these tokens, so many of them the prompt's."""
    tokens = torch.tensor(text, dtype=torch.int64)
    draw = draw or DrawState()
    room = params.pop("room", 100)
    return RowSampling(SamplingParams(**params), seed, len(text), tokens, prompt, draw, room)


def random_scores(rng: random.Random, size: int, *, dropped: float = 0.0) -> Tensor:
    """Float32 [size], at most 0, the best one 0; a share of them is dropped already."""
    values = [rng.gauss(0, 3) for _ in range(size)]
    gone = [rng.random() < dropped for _ in range(size)]
    gone[rng.randrange(size)] = False
    scores_V = torch.tensor([OUT if g else v for v, g in zip(values, gone, strict=True)])
    return scores_V - scores_V.max()


def kept(scores_V: Tensor) -> set[int]:
    """Ids that were not dropped."""
    return {int(i) for i in (scores_V > OUT).nonzero()}
