"""What sampling needs of a row, and the draw on the host.

The order, of which ``docs/parameters.md`` speaks: masks (what may not be drawn at all), the
processors of ``processors.py``, temperature, the filters of ``filters.py``, Gumbel-max draw.
A row that asks for none but temperature, top-k, top-p, min-p and the three penalties may be drawn
by the device; see ``kernels/reference.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels import reference as ref
from ..params import SamplingParams
from .draw_state import DrawState
from .filters import filtered, surprise
from .processors import penalties, processed


@dataclass(frozen=True, slots=True)
class RowSampling:
    """What sampling needs of one row.

    Attributes:
        params: how to choose.
        seed: key of the random numbers.
        position: index in the text of the token to be drawn.
        tokens: int64 [position], the text so far.
        prompt_length: how many of those are prompt.
        draw: what is carried from one token of the text to the next.
        room: tokens that still go into the answer, at least 1.
        processed: the processors have changed its logits already.
    """

    params: SamplingParams
    seed: int
    position: int
    tokens: Tensor
    prompt_length: int
    draw: DrawState = field(default_factory=DrawState)
    room: int = 1
    processed: bool = False

    @property
    def penalized(self) -> bool:
        """Whether the text so far changes the logits by the three penalties."""
        p = self.params
        penalties = p.repetition_penalty, p.presence_penalty, p.frequency_penalty
        return not self.processed and penalties != (1.0, 0.0, 0.0)

    @property
    def biased(self) -> bool:
        """Whether processors are to change the logits that only the host has."""
        p = self.params
        return not self.processed and bool(p.logit_bias or p.dry_multiplier or p.processors)

    @property
    def shaped(self) -> bool:
        """Whether the draw itself needs what only the host does."""
        p = self.params
        return bool(
            p.dynatemp_range
            or p.top_n_sigma > 0
            or p.typical_p < 1.0
            or p.xtc_probability
            or p.mirostat
            or (p.logprobs_mode == "processed" and self.draw.rated)
        )


def sample_row(logits_V: Tensor, row: RowSampling) -> int:
    """One token by float32 logits [V] of a row that is not shaped; -1 when they are not finite."""
    p = row.params
    logits_V = penalties(logits_V, row)
    return ref.sample(logits_V, p.heat, p.top_k, p.top_p, p.min_p, row.seed, row.position)


def shaped_row(logits_V: Tensor, row: RowSampling) -> tuple[int, Tensor]:
    """One token by float32 logits [V] of any row, and the log-probabilities [V] that it had.

    The token is -1 when the logits are not finite numbers. Greedy rows have those after the
    processors. What mirostat keeps of the draw is in ``row.draw``.
    """
    logits_V = processed(logits_V, row)
    best = logits_V.max()  # NaN when any is
    if not math.isfinite(best):
        return -1, logits_V
    if row.params.greedy:
        return int(logits_V.argmax()), logits_V.log_softmax(-1)
    # Counted from the best one, no score overflows, however small the temperature is.
    scores_V = filtered((logits_V - best) / max(_heat(logits_V, row), 1e-30), row)
    token = ref.sample(scores_V, 1.0, 0, 1.0, 0.0, row.seed, row.position)
    if row.params.mirostat:
        row.draw.surprise = surprise(scores_V, token)
    return token, scores_V.log_softmax(-1)


def _heat(logits_V: Tensor, row: RowSampling) -> float:
    """The temperature: fixed, or moved by the entropy of what may be drawn.

    Source of the latter: "dynamic temperature" (kalomaze, 2023, llama.cpp pull request 4972).
    """
    p = row.params
    if not p.dynatemp_range:
        return p.heat
    left = logits_V[logits_V > -torch.inf].double()
    largest = math.log(left.numel()) if left.numel() > 1 else 1.0
    logprobs = left.log_softmax(-1)
    share = min(max(float(-(logprobs.exp() * logprobs).sum()) / largest, 0.0), 1.0)
    low, high = p.temperature - p.dynatemp_range, p.temperature + p.dynatemp_range
    return low + (high - low) * share**p.dynatemp_exponent
