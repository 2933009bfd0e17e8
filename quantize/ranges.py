"""Static ranges of inputs: what calibration saw of them, in bounded memory, as int8 scales.

Four rules choose the range that a scale covers:

- ``min-max``: all that was seen; nothing is clipped, and one outlier makes every step large.
- ``percentile``: all but a share of the values, equally many of the largest magnitudes.
- ``mse``: the least mean squared rounding error, clipping included (Banner et al., "ACIQ",
  arXiv 1810.05723, has the Gaussian and Laplacian cases in closed form). With the squared norms
  of a matrix's columns as importance that is the expected error of its outputs.
- ``kl``: the least Kullback-Leibler divergence of the rounded histogram from the real one (Migacz,
  "8-bit inference with TensorRT", 2017).

Shape letters: T tokens, K inputs of a matrix, B bins of one sign.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ..kernels.formats.activations import quantize_activations
from ..kernels.formats.weight_format import ActivationFormat

RangeRule = Literal["min-max", "percentile", "mse", "kl"]

# Bins of one sign: 64 for each step of int8 over the full range, one in the smallest range tried.
_BINS = 8192
# Thresholds that are tried: powers of the eighth root of a half, down to a 64th.
_SHARES = tuple(2.0 ** (-i / 8) for i in range(49))


class InputRange:
    """Smallest and largest input of a matrix, and a histogram of all.

    The histogram reaches equally far on both sides. Where larger inputs arrive, two neighbours
    become one bin, so no input has to be seen twice.

    Args:
        name: of the matrix, for messages.
        importance_K: float [K], a weight of each input in the histogram; None = all the same.

    Attributes:
        low: the smallest input, or 0.
        high: the largest input, or 0.
        counts: float64 [2 B], weight of the inputs in each bin.
        limit: where the last bin ends; a power of two.
    """

    def __init__(self, name: str, importance_K: Tensor | None = None) -> None:
        self.name = name
        self.low, self.high, self.limit = 0.0, 0.0, 0.0
        self.counts = torch.zeros(2 * _BINS, dtype=torch.float64)
        self._importance = importance_K

    def add(self, x_TK: Tensor) -> None:
        """Take in inputs [T, K]. Raises QuantizeError for numbers that are not finite."""
        x = x_TK.to("cpu", torch.float32)
        if not bool(x.isfinite().all()):
            raise QuantizeError(
                f"the inputs of {self.name} are not finite; expected finite numbers to calibrate",
                hint="the model overflows on this text: is the checkpoint damaged?",
            )
        if not x.numel():
            return
        low, high = (float(v) for v in x.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-self.low, self.high))
        # Exact: the limit is a power of two.
        place = (x * (_BINS / self.limit)).floor_().long() + _BINS
        weights = None
        if self._importance is not None:
            weights = self._importance.double().expand(x.shape).reshape(-1)
        self.counts += torch.bincount(place.view(-1), weights, 2 * _BINS)

    def _reach(self, magnitude: float) -> None:
        """Make the histogram reach farther than that."""
        if not self.limit:
            self.limit = 2.0 ** (math.floor(math.log2(max(magnitude, 2.0**-100))) + 1)
        while self.limit <= magnitude:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(pairs, (_BINS // 2, _BINS // 2))
            self.limit *= 2

    def act_format(
        self, rule: RangeRule = "mse", symmetric: bool = True, percentile: float = 99.99
    ) -> ActivationFormat:
        """The int8 scale, and the zero point unless symmetric, of the whole tensor.

        The scale has 8 significant bits, so that bfloat16 and, where it is no less than 2^-14,
        float16 hold it.

        Args:
            rule: see the module.
            symmetric: without a zero point.
            percentile: of the magnitudes, that the rule of this name covers.

        Raises:
            QuantizeError: nothing was seen, or the percentile is not between 0 and 100.
        """
        if not bool(self.counts.any()):
            raise QuantizeError(
                f"no inputs of {self.name} were seen; expected some to choose a static range",
                hint="calibrate on a text, or use dynamic scales",
            )
        top = max(-self.low, self.high)
        if rule == "min-max" or not top:
            return self._format(top, symmetric)
        if rule == "percentile":
            return self._format(self._percentile(percentile), symmetric)
        error = self._kl if rule == "kl" else self._squares
        found = [self._format(top * share, symmetric) for share in _SHARES]
        return min(found, key=error)

    def _format(self, threshold: float, symmetric: bool) -> ActivationFormat:
        """Covers all that was seen of magnitudes up to a threshold."""
        low, high = max(self.low, -threshold), min(self.high, threshold)
        scale = max(-low, high) / 127.5 if symmetric else (high - low) / 255
        scale = float(torch.tensor(scale).bfloat16()) or 1.0
        zero = 0 if symmetric else min(127, max(-128, round(-128 - low / scale)))
        return ActivationFormat(symmetric=symmetric, scale=scale, zero=zero)

    def _centers(self) -> Tensor:
        """Middles of the bins, float32 [2 B]."""
        return ((torch.arange(2 * _BINS) + 0.5) / _BINS - 1) * self.limit

    def _percentile(self, percentile: float) -> float:
        """The magnitude that a share of the inputs stays within."""
        if not 0 < percentile <= 100:
            raise QuantizeError(
                f"percentile is {percentile:g}; expected more than 0 and at most 100"
            )
        sides = self.counts[_BINS:] + self.counts[:_BINS].flip(0)
        share = sides.cumsum(0) / sides.sum()
        bins = int(torch.searchsorted(share, percentile / 100 * (1 - 1e-12))) + 1
        return min(max(-self.low, self.high), bins / _BINS * self.limit)

    def _squares(self, form: ActivationFormat) -> float:
        """Mean squared error under a format. Inputs are spread evenly over their bins."""
        x = self._centers()
        codes, scale = quantize_activations(x[None], form)
        value = (codes * scale)[0]
        error = (value - x).double().square() + (self.limit / _BINS) ** 2 / 12
        return float((error * self.counts).sum() / self.counts.sum())

    def _kl(self, form: ActivationFormat) -> float:
        """Divergence of the histogram after rounding from the histogram, tails at its ends."""
        assert form.scale is not None
        x, counts = self._centers(), self.counts
        level = quantize_activations(x[None], form)[0][0].long() + form.zero + 128
        inside = (x / form.scale + form.zero - level + 128).abs() <= 0.5
        used = inside & (counts > 0)
        held = torch.bincount(level[used], counts[used], 256)
        sharing = torch.bincount(level[used], minlength=256).clamp(min=1)
        # What a level holds, spread over the bins that had something; clipped inputs are lost.
        q = torch.where(used, (held / sharing)[level], 0.0)
        first, last = (int(i) for i in inside.nonzero()[[0, -1], 0])
        p = counts.clone()
        p[first] += p[:first].sum()
        p[last] += p[last + 1 :].sum()
        p[:first], p[last + 1 :] = 0, 0
        p, q = p / p.sum(), q / q.sum().clamp(min=1e-300)
        seen = p > 0
        return float((p[seen] * (p[seen] / q[seen].clamp(min=1e-12)).log()).sum())
