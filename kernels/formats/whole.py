"""Weights as products of integers see them: whole numbers, and what scales them."""

from __future__ import annotations

import torch
from torch import Tensor

from .activations import byte_table
from .canonical import QuantizedLinear
from .code_tables import counts_halves


def whole_numbers(weight: QuantizedLinear) -> tuple[Tensor, Tensor, Tensor | None]:
    """Whole numbers int32 [N, K], scales float32 [N, G], offsets float32 [N, G] or None.

    ``w = scale * whole + offset``, columns in the order of the codes. Zero points that are no whole
    numbers from 0 to 255 become offsets. Entries of a table are rounded to a 127th of the largest,
    those of 4-bit floats counted in halves (:func:`~.activations.byte_table`): the scales are
    multiplied by that.
    """
    form, codes, scales = weight.format, weight.unpack().int(), weight.scales.float()
    if form.zero == "table":
        entries = torch.tensor(form.table)
        step = entries.abs().max() / entries.new_tensor(127.0)
        step = torch.where(step == 0, 1.0, step)
        if counts_halves(form.table):
            step = entries.new_tensor(0.5)
        whole = torch.round(torch.tensor(byte_table(form.table)) / step).int()
        return whole[codes], scales * step, None
    if form.zero == "none":
        return codes - (1 << (form.bits - 1)), scales, None
    assert weight.zeros is not None
    zeros = weight.zeros.float()
    if form.zero == "float":
        return codes, scales, zeros
    points = zero_points(weight)
    if points is None:
        return codes, scales, -(scales * zeros)
    group, k = form.group_size, weight.in_features
    wide = points.int().repeat_interleave(k if group == -1 else group, dim=1)[:, :k]
    return codes - wide, scales, None


def zero_points(weight: QuantizedLinear) -> Tensor | None:
    """Zero points [N, G] of zero kind ``int`` as uint8; None where some are no such numbers."""
    assert weight.zeros is not None
    points = weight.zeros.to(torch.uint8)
    return points if torch.equal(points.float(), weight.zeros.float()) else None
