"""AdaRound: learn for each weight whether it is rounded down or up.

Source: Nagel et al., "Up or down? Adaptive rounding for post-training quantization", arXiv
2004.10568. The error of the outputs is taken through the Hessian, ``tr(D H D^T)``, so no inputs are
needed again. A weight lies a share h between two codes; h is a sigmoid stretched to reach both ends
exactly, and a term ``1 - |2 h - 1|^beta`` whose beta falls drives it there.

A few hundred steps leave some weights rounded against each other; sweeps of :mod:`.descent` settle
them. What is still worse than rounding to nearest is taken back, row by row.

Shape letters: N rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.calibrator import Calibrator
from ...kernels.formats.canonical import QuantizedLinear
from ..arithmetic import make_calibrator
from ..grid import CLIPS, Grid
from ..hessian import Hessian
from .base import UniformCodes
from .descent import descend, output_error

# The sigmoid reaches from LOW to LOW + SPAN before it is cut to 0 to 1.
_LOW, _SPAN = -0.1, 1.2
# Share of the steps without the term that drives weights to a code, and how beta falls then.
_FREE, _BETA = 0.2, (20.0, 2.0)
# Adam's memory of slopes and of their squares.
_MEMORY = 0.9, 0.99


def learn_rounding(
    weight_NK: Tensor, hessian_KK: Tensor, grid: Grid, steps: int, rate: float, pull: float
) -> Tensor:
    """Codes, uint8 [N, K], each one of the two next to its weight.

    Args:
        weight_NK: float [N, K].
        hessian_KK: mean of ``x x^T`` of the inputs, float32 [K, K].
        grid: of each group of columns.
        steps: of Adam.
        rate: Adam's; the sigmoid's argument reaches from about -2.4 to 2.4.
        pull: weight of the term that drives to a code, in units of the mean of
            ``scale^2 H_kk``, the error of a weight that is a whole step off.
    """
    k = weight_NK.shape[1]
    moments = hessian_KK.diagonal()
    columns = [grid.column(column) for column in range(k)]
    scales, zeros = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
    place = weight_NK.float() / scales + zeros
    lower = place.floor().clamp_(0, grid.top - 1)
    share = place - lower
    # What a whole step costs, in units of the mean: rare inputs push and are pulled less.
    cost = scales.square() * moments
    unit = float(cost.mean()) or 1.0
    pulls = cost * (2 * pull / unit)
    logit = ((share.clamp(0.01, 0.99) - _LOW) / _SPAN).logit_()
    mean, square = torch.zeros_like(logit), torch.zeros_like(logit)
    for step in range(steps):
        sigmoid = logit.sigmoid()
        h = (sigmoid * _SPAN + _LOW).clamp_(0, 1)
        slope = ((h - share).mul_(scales) @ hessian_KK).mul_(scales).mul_(2 / unit)
        past = (step / steps - _FREE) / (1 - _FREE)
        if past >= 0:
            beta = _BETA[0] + (_BETA[1] - _BETA[0]) * past
            side = 2 * h - 1
            slope -= side.sign() * side.abs().pow_(beta - 1) * pulls * beta
        slope *= sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
        mean.lerp_(slope, 1 - _MEMORY[0])
        square.lerp_(slope.square_(), 1 - _MEMORY[1])
        bias, bias_square = (1 - memory ** (step + 1) for memory in _MEMORY)
        logit -= rate / bias * mean / (square / bias_square).sqrt_().add_(1e-12)
    return (lower + (logit > 0)).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class AdaRoundQuantizer:
    """Learned rounding on grids that are clipped by the expected error of outputs.

    Attributes:
        codes: what they are to be.
        steps: of Adam.
        rate: Adam's.
        pull: weight of the term that drives to a code; see :func:`learn_rounding`.
        sweeps: over all columns afterwards; 0 = what was learned alone.
        calibrated: it wants inputs.
        calibrator: searches the grids.
    """

    codes: UniformCodes
    steps: int = 120
    rate: float = 0.15
    pull: float = 2.0
    sweeps: int = 4
    calibrated: bool = True
    calibrator: Calibrator = field(default_factory=make_calibrator)

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]. Raises QuantizeError for numbers that are not
        finite.
        """
        assert hessian is not None
        mean_KK = hessian.mean()
        if not bool(mean_KK.isfinite().all() and weight_NK.isfinite().all()):
            raise QuantizeError(
                f"{name} or the statistics of its inputs are not finite; expected finite numbers"
            )
        grid = self.codes.fit(weight_NK, mean_KK.diagonal(), CLIPS, self.calibrator)
        nearest = grid.codes(weight_NK)
        learned = learn_rounding(weight_NK, mean_KK, grid, self.steps, self.rate, self.pull)
        codes = descend(weight_NK, learned, mean_KK, grid, self.sweeps)
        before, after = (output_error(weight_NK, c, mean_KK, grid) for c in (nearest, codes))
        codes = torch.where((after <= before)[:, None], codes, nearest)
        return self.codes.weight(name, grid, codes)
