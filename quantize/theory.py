"""What uniform quantization costs, in formulas, and the means to check them.

A step s makes errors that are spread evenly over half a step on both sides, so their mean square
is ``s^2 / 12``. A range from -max to max has ``s = 2 max / 2^b``, and the signal-to-noise ratio is
``6.02 b + 4.77 - 20 log10(max / sigma)`` dB (Bennett, "Spectra of quantized signals", 1948).

Shape letters: N rows (tokens, for inputs), K columns, M rows of the other factor of a product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ..loaders.base import TensorInfo
from .grid import CLIPS, fit_grid

Granularity = Literal["tensor", "channel", "group", "token"]
"""What shares a step: everything, a row of weights, some columns of a row, a row of inputs."""

GridRule = Literal["min-max", "percentile", "mse", "output"]
"""How a range is chosen: all of it; all but the largest magnitudes; by least squared error of the
numbers; by least squared error of the product with inputs of given mean squares."""


def step_mse(step: float) -> float:
    """Mean squared rounding error of a step, ``s^2 / 12``."""
    return step * step / 12


def predicted_sqnr(bits: int, peak_over_sigma: float) -> float:
    """Signal-to-noise ratio without clipping: ``6.02 b + 4.77 - 20 log10(max / sigma)`` dB.

    With ``sqrt 3`` (uniform numbers over the full range) that is 6.02 b, with ``sqrt 2`` (a sine)
    6.02 b + 1.76.
    """
    return 20 * bits * math.log10(2) + 10 * math.log10(3) - 20 * math.log10(peak_over_sigma)


def full_range_sqnr(bits: int) -> float:
    """The same in dB for uniform numbers whose range has a code at both ends.

    Then there are 2^b - 1 steps: ``20 log10(2^b - 1)``.
    """
    return 20 * math.log10((1 << bits) - 1)


def sqnr(exact: Tensor, rounded: Tensor) -> float:
    """Measured signal-to-noise ratio of tensors of any shape, in dB; infinite without noise."""
    noise = float((rounded.double() - exact.double()).square().sum())
    return 10 * math.log10(float(exact.double().square().sum()) / noise) if noise else math.inf


@dataclass(frozen=True, slots=True)
class UniformRounding:
    """Numbers on uniform grids.

    Attributes:
        values: float32 [N, K].
        steps: float32, one for each grid: [1] by tensor, [N] by row, [N, G] by group.
    """

    values: Tensor
    steps: Tensor

    def predicted_mse(self) -> float:
        """The mean of ``s^2 / 12`` over grids of equal size."""
        return float(self.steps.double().square().mean()) / 12


def round_uniform(
    x_NK: Tensor,
    bits: int,
    granularity: Granularity = "channel",
    group: int = -1,
    symmetric: bool = True,
    rule: GridRule = "min-max",
    importance_K: Tensor | None = None,
    percentile: float = 99.9,
) -> UniformRounding:
    """Round [N, K] to uniform grids, whose steps are numbers that float16 holds.

    Args:
        x_NK: float [N, K].
        bits: of a code, 2 to 8.
        granularity: what shares a grid.
        group: columns that share one, by ``group`` only.
        symmetric: without zero points.
        rule: how ranges are chosen.
        importance_K: mean square of each input [K], for ``output``.
        percentile: of a grid's magnitudes, that the rule of this name covers.

    Raises:
        QuantizeError: a group or an importance is missing, or given where it means nothing.
    """
    n, k = x_NK.shape
    if (granularity == "group") != (group > 0):
        raise QuantizeError(
            f"granularity is {granularity} and group {group}; expected both or none"
        )
    if (rule == "output") != (importance_K is not None):
        raise QuantizeError(f"rule is {rule}; expected an importance with output, and only there")
    x, importance = x_NK.float(), importance_K
    if granularity == "tensor":
        x = x.reshape(1, -1)
        importance = None if importance is None else importance.repeat(n)
    size = group if granularity == "group" else x.shape[1]
    fitted = _within(x, size, percentile) if rule == "percentile" else x
    clips = CLIPS if rule in ("mse", "output") else (1.0,)
    grid = fit_grid(fitted, bits, size, symmetric, importance, clips)
    values = grid.values(grid.codes(x)).view(n, k)
    return UniformRounding(
        values, grid.scales if granularity == "group" else grid.scales.squeeze(1)
    )


def _within(x_NK: Tensor, group: int, percentile: float) -> Tensor:
    """Numbers [N, K], those beyond a percentile of their group's magnitudes moved to it."""
    parts = []
    for part in x_NK.split(group, dim=1):
        count = min(part.shape[1], max(1, math.ceil(part.shape[1] * percentile / 100)))
        most = part.abs().kthvalue(count, dim=1, keepdim=True).values
        parts.append(torch.minimum(torch.maximum(part, -most), most))
    return torch.cat(parts, dim=1)


def integer_product(a_MK: Tensor, zero_a: int, b_NK: Tensor, zero_b: int) -> Tensor:
    """``sum_k (a - za)(b - zb)`` from sums of whole numbers alone, int64 [M, N], exact.

    ``sum ab - zb sum a - za sum b + K za zb``: the product of codes, one sum for each row of both
    factors, and a constant. That is what lets a kernel multiply codes and add zero points later.

    Args:
        a_MK: codes [M, K] of any integer type.
        zero_a: their zero point.
        b_NK: codes [N, K].
        zero_b: theirs.
    """
    a, b = a_MK.long(), b_NK.long()
    sums_a, sums_b = a.sum(1, keepdim=True), b.sum(1)
    return a @ b.T - zero_b * sums_a - zero_a * sums_b + a.shape[1] * zero_a * zero_b


@dataclass(frozen=True, slots=True)
class Compression:
    """What quantized matrices take in their files.

    Attributes:
        weights: their elements.
        stored: their bytes, with scales, zero points and whatever else belongs to them.
    """

    weights: int
    stored: int

    @property
    def bits(self) -> float:
        """Bits of a weight."""
        return 8 * self.stored / self.weights

    def ratio(self, dense_bits: int = 32) -> float:
        """Bytes of the same matrices without quantization over theirs."""
        return dense_bits / self.bits


def compression(infos: Iterable[TensorInfo]) -> Compression:
    """Counted over the quantized matrices among a checkpoint's tensors.

    Raises QuantizeError when none is quantized.
    """
    quantized = [info for info in infos if info.format is not None]
    if not quantized:
        raise QuantizeError("no tensor of the checkpoint is quantized; expected some to count")
    weights = sum(math.prod(info.shape) for info in quantized)
    return Compression(weights, sum(info.nbytes for info in quantized))
