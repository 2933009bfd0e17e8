"""The arithmetic of quantizing by the C kernels; ``kernels/calibrator.py`` has the meaning.

Shape letters: N rows, K columns, B columns of a block, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fit import CompiledFits
from .fit_ops import GPTQ_COLUMNS, GptqBlock
from .pack import run_op


class CompiledCalibrator(CompiledFits):
    """See :class:`..calibrator.Calibrator`."""

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
