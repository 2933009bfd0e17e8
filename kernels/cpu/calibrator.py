"""The arithmetic of quantizing by the C kernels; ``kernels/calibrator.py`` has the meaning.

Shape letters: N rows, K columns, B columns of a block, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibrator import UniformGrid, add_exact_moments
from .fit import CompiledFits
from .fit_ops import (
    GPTQ_COLUMNS,
    MOMENT_COLUMNS,
    MOMENT_TOKENS,
    FitUniform,
    GptqBlock,
    Moments,
    MomentsAdd,
    MomentsPack,
)
from .pack import run_op

# Bytes of codes at once.
_ROOM = 64 << 20


class CompiledCalibrator(CompiledFits):
    """See :class:`..calibrator.Calibrator`."""

    def add_moments(self, sum_KK: Tensor, x_TK: Tensor) -> None:
        """To [K, K] from inputs rounded to int8, see ``moments.c``; else exactly.

        Forms that do not multiply bytes have no such ops.
        """
        if not self._library.moments:
            add_exact_moments(sum_KK, x_TK)
            return
        k = x_TK.shape[1]
        width = -(-k // MOMENT_COLUMNS) * MOMENT_COLUMNS
        x_TK = x_TK.float()
        if x_TK.stride(1) != 1:
            x_TK = x_TK.contiguous()
        most = max(1, _ROOM // (width * MOMENT_TOKENS)) * MOMENT_TOKENS
        for part in x_TK.split(most):
            panels = -(-len(part) // MOMENT_TOKENS)
            moments = Moments(
                x=part,
                codes=torch.empty(panels, width, MOMENT_TOKENS, dtype=torch.int8),
                scales=torch.empty(panels, width),
                totals=torch.empty(panels, width, dtype=torch.int32),
                sums=sum_KK,
                tokens=len(part),
                k=k,
                x_stride=part.stride(0),
            )
            run_op(self._library, MomentsPack(moments=moments))
            run_op(self._library, MomentsAdd(moments=moments))

    def fit_uniform(
        self, grid: UniformGrid, weight_NK: Tensor, importance_K: Tensor, clips: tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        """Scales and zero points, float32 [N, G]."""
        n, k = weight_NK.shape
        shape = n, -(-k // grid.group)
        scales, zeros = torch.empty(shape), torch.empty(shape)
        op = FitUniform(
            weight=weight_NK.float().contiguous(),
            importance=importance_K.float().contiguous(),
            clips=torch.tensor(clips),
            scales=scales,
            zeros=zeros,
            n=n,
            k=k,
            group=min(grid.group, k),
            tries=len(clips),
            refits=grid.refits,
            symmetric=grid.symmetric,
            both_signs=grid.both_signs,
            top=grid.top,
        )
        run_op(self._library, op)
        return scales, zeros

    def round_columns(
        self,
        weight_BN: Tensor,
        factor_BB: Tensor,
        scales_GN: Tensor,
        zeros_GN: Tensor,
        groups_B: Tensor,
        top: int,
    ) -> tuple[Tensor, Tensor]:
        """Codes, uint8 [B, N], and errors, float32 [B, N]; B is at most ``GPTQ_COLUMNS``."""
        b, n = weight_BN.shape
        assert b <= GPTQ_COLUMNS and factor_BB.stride(1) == 1
        codes, errors = torch.empty(b, n, dtype=torch.uint8), torch.empty(b, n)
        op = GptqBlock(
            weight=weight_BN.contiguous(),
            factor=factor_BB,
            scales=scales_GN.contiguous(),
            zeros=zeros_GN.contiguous(),
            groups=groups_B.contiguous(),
            codes=codes,
            errors=errors,
            n=n,
            columns=b,
            factor_stride=factor_BB.stride(0),
            top=top,
        )
        run_op(self._library, op)
        return codes, errors
