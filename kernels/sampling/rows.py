"""Host side of sampling: what each row asks for, as tensors, and penalty counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from .config import SEEN

FLOAT_FIELDS = 6
"""temperature, top_p, log(min_p), repetition, presence, frequency."""

INT_FIELDS = 4
"""top_k, seed, position, penalty slot."""


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """How one row's token is chosen; the defaults are greedy.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition: penalty, 1 is off.
        presence: penalty, 0 is off.
        frequency: penalty, 0 is off.
        seed: key of the random numbers.
        position: index in the text of the token to be drawn.
        slot: line of the penalty counts, or -1 for no penalties.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int = 0
    position: int = 0
    slot: int = -1


def pack_choices(choices: Sequence[TokenChoice]) -> tuple[Tensor, Tensor]:
    """(float32 [R, 6], int64 [R, 4]) on the CPU, to be copied to the device."""
    floats: list[list[float]] = []
    ints: list[list[int]] = []
    for c in choices:
        low = -math.inf
        if c.min_p > 0.0:
            # In float32, as the reference takes it.
            low = float(torch.log(torch.tensor(c.min_p, dtype=torch.float32)))
        floats.append([c.temperature, c.top_p, low, c.repetition, c.presence, c.frequency])
        seed = (c.seed + (1 << 63)) % (1 << 64) - (1 << 63)
        ints.append([c.top_k, seed, c.position, c.slot])
    return (
        torch.tensor(floats, dtype=torch.float32).reshape(-1, FLOAT_FIELDS),
        torch.tensor(ints, dtype=torch.int64).reshape(-1, INT_FIELDS),
    )


def reset_counts(counts_PV: Tensor, slot: int, tokens_L: Tensor, prompt_length: int) -> None:
    """Make one line of the penalty counts that of a text; later tokens are counted as drawn.

    Args:
        counts_PV: int32 [P, V]; counts of output tokens, plus a flag on tokens of the prompt.
        slot: which line.
        tokens_L: int64 [L], the text so far on the counts' device; ids past V are ignored.
        prompt_length: how many of those are prompt.

    Raises:
        KernelInputError: shapes or types do not fit, or there is no such line.
    """
    check_tensor("counts", counts_PV, (None, None), (torch.int32,))
    check_tensor("tokens", tokens_L, (None,), (torch.int64,), counts_PV.device)
    require(
        0 <= slot < counts_PV.shape[0],
        lambda: f"penalty slot is {slot}; expected 0..{counts_PV.shape[0] - 1}",
    )
    line, width = counts_PV[slot], counts_PV.shape[1]
    # Ids past V are collected in a place more: picking the others out would wait for the device.
    prompt, output = tokens_L.clamp(max=width).split_with_sizes(
        [min(prompt_length, len(tokens_L)), max(len(tokens_L) - prompt_length, 0)]
    )
    counts = torch.zeros(width + 1, dtype=torch.int32, device=counts_PV.device)
    counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
    seen = torch.zeros_like(counts).index_fill_(0, prompt, SEEN)
    torch.bitwise_or(counts[:width], seen[:width], out=line)
