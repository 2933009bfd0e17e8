"""The arithmetic of quantizing: interface of all implementations, and its meaning in plain torch.

Shape letters: N rows, K columns, B columns of a block, G groups of a row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .formats.group_grid import GroupFits, PlainFits


class Calibrator(GroupFits, Protocol):
    """What quantizing computes beside products of matrices."""

    def round_columns(
        self,
        weight_BN: Tensor,
        factor_BB: Tensor,
        scales_GN: Tensor,
        zeros_GN: Tensor,
        groups_B: Tensor,
        top: int,
    ) -> tuple[Tensor, Tensor]:
        """Round columns one after another; each takes its error from those behind it.

        With q the code nearest to ``w / scale + zero``, the error of column b is
        ``(w - scale (q - zero)) / factor[b, b]``, and column c > b loses ``factor[b, c]`` times it
        before it is rounded. Implementations give the same bits.

        Args:
            weight_BN: float32 [B, N], a column of the weight in each row.
            factor_BB: float32 [B, B], upper triangular; rows may lie apart.
            scales_GN: float32 [G, N], none of them 0.
            zeros_GN: float32 [G, N], zero points.
            groups_B: int32 [B], the group of each column.
            top: the largest code, at most 255.

        Returns:
            Codes uint8 [B, N] and errors float32 [B, N].
        """
        ...


class PlainCalibrator(PlainFits):
    """:class:`Calibrator` in plain torch: what the kernels compute, and slow."""

    def round_columns(
        self,
        weight_BN: Tensor,
        factor_BB: Tensor,
        scales_GN: Tensor,
        zeros_GN: Tensor,
        groups_B: Tensor,
        top: int,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Calibrator`; uint8 and float32 [B, N]."""
        w = weight_BN.clone()
        errors, codes = torch.empty_like(w), torch.empty(w.shape, dtype=torch.uint8)
        for b, g in enumerate(groups_B.tolist()):
            scale, zero = scales_GN[g], zeros_GN[g]
            q = (w[b] / scale + zero).round_().clamp_(0, top)
            codes[b] = q
            errors[b] = (w[b] - (q - zero) * scale) / factor_BB[b, b]
            # Rounded twice: whether addr_ is fused depends on how torch was built.
            w[b + 1 :].sub_(torch.outer(factor_BB[b, b + 1 :], errors[b]))
        return codes, errors
