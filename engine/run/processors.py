"""What changes the logits of a row before the temperature: each a small function, in order.

All take float32 logits [V] and give new ones; a logit of -inf stays so, whatever they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halfbyte.errors import RequestError, described

from ...kernels import reference as ref

if TYPE_CHECKING:
    from .sampling import RowSampling

# A repetition of some hundred tokens would overflow float32; this is as good as never.
MOST_PENALTY = 1e30
# Longest repetition that is counted: a longer one is as good as forbidden with any base above 1.
LONGEST_REPETITION = 1024


def bias(logits_V: Tensor, row: RowSampling) -> Tensor:
    """Logits [V] plus ``logit_bias``."""
    given = row.params.logit_bias
    if not given:
        return logits_V
    out = logits_V.clone()
    out[list(given)] += torch.tensor(list(given.values()), dtype=out.dtype)
    return out


def penalties(logits_V: Tensor, row: RowSampling) -> Tensor:
    """Logits [V] after repetition, presence and frequency penalties; see ``ref.penalize``."""
    if not row.penalized:
        return logits_V
    p, size = row.params, logits_V.shape[0]
    output = row.tokens[row.prompt_length :]
    counts = torch.bincount(output, minlength=size)[:size].to(logits_V.dtype)
    seen = torch.zeros(size, dtype=torch.bool)
    seen[row.tokens[row.tokens < size]] = True
    return ref.penalize(
        logits_V,
        seen,
        counts,
        p.repetition_penalty,
        p.presence_penalty,
        p.frequency_penalty,
    )


def dry(logits_V: Tensor, row: RowSampling) -> Tensor:
    """Logits [V] less what a token costs that would go on with a repetition.

    When the last n tokens stood earlier in the text, followed by token t, and n is the largest
    such number for t, t loses ``multiplier * base ** (n - allowed_length)`` if n is at least
    ``allowed_length`` and t is no breaker. Source: "Don't Repeat Yourself" sampling (p-e-w, 2024,
    text-generation-webui pull request 5677).
    """
    p = row.params
    if not p.dry_multiplier or not p.dry_penalty_last_n:
        return logits_V
    begin = 0 if p.dry_penalty_last_n < 0 else max(0, row.position - p.dry_penalty_last_n)
    breakers = row.draw.breakers
    lengths = _repetitions(row.tokens[begin : row.position].tolist(), breakers)
    out = logits_V.clone()
    for token, length in lengths.items():
        costs = length >= p.dry_allowed_length and token not in breakers
        if costs and token < out.shape[0]:
            # Logarithms of it do not overflow where it would.
            growth = (length - p.dry_allowed_length) * math.log(p.dry_base)
            out[token] -= min(p.dry_multiplier * math.exp(min(growth, 700.0)), MOST_PENALTY)
    return out


def _repetitions(text: list[int], breakers: frozenset[int]) -> dict[int, int]:
    """Token -> the longest repetition that it would go on with.

    ``common[i]`` is how many tokens the text up to i has in common with its end, going backwards
    and not over a breaker: the Z function of the reversed text, in linear time.
    """
    back = text[::-1]
    free = next((i for i, token in enumerate(back) if token in breakers), len(back))
    most = min(free, LONGEST_REPETITION)
    lengths: dict[int, int] = {}
    z = [0] * len(back)
    left = right = 0
    for i in range(1, len(back)):
        length = min(right - i, z[i - left]) if i < right else 0
        while i + length < len(back) and length < most and back[length] == back[i + length]:
            length += 1
        z[i] = length
        if i + length > right:
            left, right = i, i + length
        follower = back[i - 1]
        if length > lengths.get(follower, 0):
            lengths[follower] = length
    return lengths


def custom(logits_V: Tensor, row: RowSampling) -> Tensor:
    """Logits [V] after the caller's own ``processors``.

    Raises:
        RequestError: one raises, or gives anything but float logits [V], or NaN or infinity.
    """
    sane = bool(logits_V.max().isfinite())
    for number, process in enumerate(row.params.processors):
        try:
            out = process(row.tokens.tolist(), logits_V.clone())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # its SystemExit would end the texts of all others
            raise RequestError(
                f"processors[{number}] raised {described(error)}", param="processors"
            ) from error
        good = isinstance(out, Tensor) and out.shape == logits_V.shape and out.is_floating_point()
        if not good:
            found = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else f"{out!r:.60}"
            raise RequestError(
                f"processors[{number}] gave {found}; expected float logits {tuple(logits_V.shape)}",
                param="processors",
            )
        logits_V = out.detach().to(torch.float32)
        best = float(logits_V.max())
        if sane and (math.isnan(best) or best == math.inf):
            raise RequestError(
                f"processors[{number}] gave a logit of {best}; expected finite ones or -inf",
                param="processors",
            )
    return logits_V


PROCESSORS: tuple[Callable[[Tensor, RowSampling], Tensor], ...] = (bias, penalties, dry, custom)
"""In the order in which they apply."""


def processed(logits_V: Tensor, row: RowSampling) -> Tensor:
    """Logits [V] after all processors; what may not be drawn stays at -inf."""
    out = logits_V
    for process in PROCESSORS:
        out = process(out, row)
    return out if out is logits_V else out.masked_fill(logits_V == -torch.inf, -torch.inf)
