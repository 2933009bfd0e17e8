"""Round to nearest: dense matrices to canonical codes, without calibration data.

Each group of weights along K gets the scale that just covers it, and each weight the nearest of
the numbers that its code can mean. Rows are worked on a few at a time, so the float32 copies stay
small whatever the size of the matrix.

Shape letters: N output features, K input features, G groups along K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError

from ...kernels.formats.canonical import QuantizedLinear, pack_codes
from ...kernels.formats.code_tables import NF4
from ...kernels.formats.weight_format import ActivationFormat, WeightFormat

# Elements in float32 at once: 4 MB and a few temporaries of that size.
_CHUNK = 1 << 20
_BINS = 1024

_Round = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def rtn_symmetric(
    name: str, weight_NK: Tensor, bits: int, group: int, act: ActivationFormat | None = None
) -> QuantizedLinear:
    """Codes around the middle: ``w ~ scale * (code - 2 ** (bits - 1))``.

    ``scale`` is the group's largest magnitude over ``2 ** (bits - 1) - 1``, so that one is kept
    exactly and every other weight is off by at most half a scale.

    Args:
        name: of the tensor, for messages.
        weight_NK: float [N, K] of any float dtype.
        bits: 2 to 8.
        group: weights along K that share a scale; the last group may be short; -1 = all of K.
        act: how the product's input is rounded, or None.

    Raises:
        CheckpointError: a weight is not finite.
    """
    center = 1 << (bits - 1)

    def round_groups(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scales = x.abs().amax(-1) / (center - 1)
        codes = (x / _divisor(scales)).round_().add_(center).clamp_(1, 2 * center - 1)
        return codes.to(torch.uint8), scales, scales

    codes, scales, _ = _by_rows(name, weight_NK, group, round_groups)
    form = WeightFormat(bits, group, act=act)
    return QuantizedLinear(name, form, pack_codes(codes, bits), scales, None, weight_NK.shape[1])


def rtn_asymmetric(name: str, weight_NK: Tensor, bits: int, group: int) -> QuantizedLinear:
    """Codes over the group's range: ``w ~ scale * (code - zero)`` with a whole ``zero``.

    The range reaches from the smallest weight or 0 to the largest weight or 0, in
    ``2 ** bits - 1`` steps; 0 itself stays exact. Every weight [N, K] is off by at most half a
    scale, because rounding the zero point moves the range by at most half a step. Arguments and
    errors as in :func:`rtn_symmetric`.
    """
    top = (1 << bits) - 1

    def round_groups(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.amin(-1).clamp_(max=0), x.amax(-1).clamp_(min=0)
        scales = high / top - low / top  # in this order nothing overflows
        divisor = _divisor(scales)
        zeros = (-low / divisor.squeeze(-1)).round_().clamp_(0, top)
        codes = (x / divisor).round_().add_(zeros.unsqueeze(-1)).clamp_(0, top)
        return codes.to(torch.uint8), scales, zeros

    codes, scales, zeros = _by_rows(name, weight_NK, group, round_groups)
    form = WeightFormat(bits, group, "int")
    return QuantizedLinear(name, form, pack_codes(codes, bits), scales, zeros, weight_NK.shape[1])


def rtn_table(
    name: str, weight_NK: Tensor, group: int, table: Sequence[float] = NF4
) -> QuantizedLinear:
    """4-bit codes that index a table of 16 values in [-1, 1]: ``w ~ scale * table[code]``.

    ``scale`` is the group's largest magnitude. Arguments [N, K] and errors as in
    :func:`rtn_symmetric`.
    """
    nearest = _nearest(table)

    def round_groups(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scales = x.abs().amax(-1)
        return nearest(x / _divisor(scales)), scales, scales

    codes, scales, _ = _by_rows(name, weight_NK, group, round_groups)
    form = WeightFormat(4, group, "table", tuple(table))
    return QuantizedLinear(name, form, pack_codes(codes, 4), scales, None, weight_NK.shape[1])


def _nearest(table: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A function from numbers in [-1, 1] to the codes, uint8, of their nearest table values.

    The same as ``torch.bucketize`` over the borders between values, four times as fast: a bin
    knows the borders below it, and as it is narrower than any gap between borders, one comparison
    with the next border is enough.
    """
    values, order = torch.tensor(tuple(table), dtype=torch.float32).sort()
    borders = (values[1:] + values[:-1]) / 2
    # A hair before the bin: the sum with 1 below may have been rounded up into it.
    starts = torch.arange(_BINS + 1) / (_BINS / 2) - 1 - 1e-6
    below = torch.bucketize(starts, borders, out_int32=True)
    following = torch.cat((borders, torch.tensor([math.inf])))
    codes = order.to(torch.uint8)

    def nearest(x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        bins = ((flat + 1) * (_BINS // 2)).to(torch.int32)
        rank = below.index_select(0, bins)
        rank += flat > following.index_select(0, rank)
        return codes.index_select(0, rank).view(x.shape)

    return nearest


def _divisor(scales: Tensor) -> Tensor:
    """Scales with an axis added, and 1 for those of groups that hold nothing but zeros."""
    return torch.where(scales > 0, scales, 1.0).unsqueeze(-1)


def _by_rows(
    name: str, weight_NK: Tensor, group: int, round_groups: _Round
) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix some rows at a time.

    Args:
        name: of the tensor, for messages.
        weight_NK: float [N, K].
        group: weights that share a scale, or -1.
        round_groups: float32 [n, G, group] to codes of that shape, and two tensors [n, G].

    Returns:
        Codes uint8 [N, K] and the two tensors, float32 [N, G].
    """
    n, k = weight_NK.shape
    size = k if group == -1 else group
    groups = -(-k // size)
    codes = torch.empty((n, k), dtype=torch.uint8)
    scales, zeros = torch.empty((n, groups)), torch.empty((n, groups))
    step = max(1, _CHUNK // k)
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        x = weight_NK[rows].float()
        if not bool(torch.isfinite(x).all()):
            at = int((~torch.isfinite(x)).any(1).nonzero()[0, 0]) + start
            raise CheckpointError(
                f"tensor {name} has a weight in row {at} that is not finite; expected finite "
                "weights to quantize",
                hint="the checkpoint is damaged: download it again",
            )
        if groups * size != k:
            # Zeros change neither the largest magnitude nor a range that has 0 in it.
            x = torch.nn.functional.pad(x, (0, groups * size - k))
        found, scales[rows], zeros[rows] = round_groups(x.view(-1, groups, size))
        codes[rows] = found.view(-1, groups * size)[:, :k]
    return codes, scales, zeros
