"""Two quantized models on the same windows: is the difference of their KL more than chance?

Windows are drawn again with replacement, the same ones for both models, many times over: the spread
of the mean difference shows what another text of the same kind might have given. Source: Efron and
Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from halfbyte.errors import CheckpointError, RequestError

from ...loaders.files.json_text import parse_object
from ..judge import Accuracy

_DRAWS = 10_000
# Fewer windows say too little of how windows differ.
LEAST_WINDOWS = 5
# Two runs of one reference agree to float rounding in the loss of a window, in nats; another
# model, or rounded activations, is off by far more.
_SAME_LOSS = 1e-3
_MAX_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Difference:
    """This run's mean KL minus the other's, nats a token.

    Attributes:
        other: the other run's quantized model.
        kl_mean: the other run's mean KL.
        difference: this run's minus that; negative: this one lost less.
        low: lower end of the 95 % interval.
        high: its upper end.
        significant: the interval leaves 0 out.
    """

    other: str
    kl_mean: float
    difference: float
    low: float
    high: float
    significant: bool

    def sentence(self) -> str:
        """The comparison in words."""
        which = "less" if self.difference < 0 else "more"
        if not self.significant:
            which = "neither less nor more, as far as these windows tell,"
        return (
            f"This model lost {which} than {self.other} (KL {self.kl_mean:.4f}): difference of "
            f"means {self.difference:+.4f} nats a token, 95 % interval {self.low:+.4f} to "
            f"{self.high:+.4f}"
        )


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ``ours - theirs``, and the ends of its 95 % interval.

    Args:
        ours: a figure of each window.
        theirs: the same windows' figures of another run.
        seed: of the draws.

    Raises:
        RequestError: there are fewer windows than ``LEAST_WINDOWS``.
    """
    count = len(ours)
    if count < LEAST_WINDOWS:
        raise RequestError(
            f"--against compares {count} windows; expected at least {LEAST_WINDOWS}",
            hint="judge on a longer text",
        )
    ours_W, theirs_W = (torch.tensor(values, dtype=torch.float64) for values in (ours, theirs))
    difference_W = ours_W - theirs_W
    generator = torch.Generator().manual_seed(seed)
    # Some draws at a time, so that many windows fit into memory.
    means = torch.cat(
        [
            difference_W[torch.randint(count, (draws, count), generator=generator)].mean(1)
            for draws in _shares(_DRAWS, max(1, (1 << 22) // count))
        ]
    )
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(difference_W.mean()), low, high


def compare_runs(found: Accuracy, path: Path, options: Mapping[str, Any]) -> Difference:
    """A run's KL beside that of an earlier run of ``halfbyte accuracy``.

    Args:
        found: this run.
        path: the other run's JSON.
        options: what has to be equal in both files, such as ``activations``.

    Raises:
        RequestError: it cannot be read, is no such file, was made with another text, length,
            tokenizer, reference or option, or has too few windows.
    """
    where = f"--against {path}"
    try:
        data = path.read_bytes()
        facts = parse_object(data, where, max_bytes=_MAX_BYTES, max_items=1 << 24)
    except OSError as error:
        raise RequestError(f"{where}: {error.strerror or error}") from error
    except CheckpointError as error:
        raise RequestError(f"{error}", hint="name a file that accuracy --json wrote") from error
    windows = facts.get("windows")
    figures = _figures(windows)
    if figures is None or not isinstance(facts.get("digest"), str):
        raise RequestError(
            f"{where} has no digest, or no windows with kl and nll_reference",
            hint="name a file that accuracy --json wrote; older ones have to be made again",
        )
    if facts["digest"] != found.digest:
        raise RequestError(
            f"{where} was judged on other windows (digest {facts['digest'][:12]:.12}, here "
            f"{found.digest[:12]})",
            hint="give both runs the same --text, --length and --windows",
        )
    for name, value in options.items():
        if facts.get(name) != value:
            raise RequestError(f"{where} has {name} {facts.get(name)!r:.40}; this run {value!r}")
    kl, loss = figures
    if len(kl) != len(found.windows):
        raise RequestError(f"{where} has {len(kl)} windows, this run has {len(found.windows)}")
    for window, (a, b) in enumerate(zip(loss, found.windows, strict=True)):
        if not math.isclose(a, b.nll_reference, abs_tol=_SAME_LOSS):
            raise RequestError(
                f"{where} was judged by another reference: its loss in window {window} is "
                f"{a:.4f}, here {b.nll_reference:.4f}",
                hint="give both runs the same REFERENCE",
            )
    mean, low, high = paired_bootstrap([window.kl for window in found.windows], kl)
    name = str(facts.get("quantized", path.name))
    return Difference(name, sum(kl) / len(kl), mean, low, high, not low <= 0 <= high)


def _figures(windows: object) -> tuple[list[float], list[float]] | None:
    """KL and the reference's loss of each window; None when the file has no such thing."""
    if not isinstance(windows, list) or not windows:
        return None
    found: tuple[list[float], list[float]] = [], []
    for window in windows:
        for values, name in zip(found, ("kl", "nll_reference"), strict=True):
            value = window.get(name) if isinstance(window, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            values.append(float(value))
    return found


def _shares(total: int, most: int) -> list[int]:
    return [min(most, total - begin) for begin in range(0, total, most)]
