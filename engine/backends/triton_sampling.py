"""Sampling on the device: rows' parameters and penalty counts for the Triton sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.sampling import TokenChoice, pack_choices, reset_counts, sample
from ..run.sampling import RowSampling
from .device_step import upload


class DeviceSampler:
    """Draws tokens where the logits are.

    Counts of a penalized row are made anew from its text for every draw: one pass over the text,
    in exchange for no state that a preempted or cancelled request could leave wrong.

    Args:
        device: of the logits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts: Tensor | None = None

    def __call__(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor:
        """One token for each row of logits [S, V] -> int64 [S]."""
        penalized = [row for row in rows if row.penalized]
        counts = self._fill(penalized, logits_SV.shape[1]) if penalized else None
        slots = iter(range(len(penalized)))
        choices = [_choice(row, next(slots) if row.penalized else -1) for row in rows]
        floats, ints = pack_choices(choices)
        return sample(logits_SV, *upload([floats, ints], self._device), counts_PV=counts)

    def _fill(self, rows: Sequence[RowSampling], vocabulary: int) -> Tensor:
        """Penalty counts [P, V] of these rows, in buffers that grow by doubling."""
        held = self._counts
        if held is None or held.shape[0] < len(rows) or held.shape[1] < vocabulary:
            lines = 1 << (len(rows) - 1).bit_length()
            held = torch.zeros(lines, vocabulary, dtype=torch.int32, device=self._device)
            self._counts = held
        for slot, row in enumerate(rows):
            reset_counts(held, slot, row.tokens.to(self._device), row.prompt_length)
        return held


def _choice(row: RowSampling, slot: int) -> TokenChoice:
    p = row.params
    return TokenChoice(
        temperature=p.heat,
        top_k=max(p.top_k, 0),
        top_p=p.top_p,
        min_p=p.min_p,
        repetition=p.repetition_penalty,
        presence=p.presence_penalty,
        frequency=p.frequency_penalty,
        seed=row.seed,
        position=row.position,
        slot=slot,
    )
