"""What calibration knows of a matrix: second moments of its inputs.

Shape letters: T tokens, K inputs of a matrix, S tokens of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ..kernels.calibrator import Calibrator, PlainCalibrator

# Dampings to try, as multiples of what was asked for, until a Hessian can be factored.
_MORE = (1.0, 10.0, 100.0, 1000.0, 10000.0)
# Inputs that are kept as they are, evenly spread over the text.
_SAMPLE = 1024


class Hessian:
    """Sum of ``x x^T`` over inputs x [K]: half the second derivative of the squared output error.

    Args:
        name: of the matrix, for messages.
        inputs: K.
        calibrator: sums moments; None = plain torch.
        expected: inputs to come in all, over which the sample is spread; 0 = it is spread over
            those of each :meth:`add`.

    Attributes:
        sum_KK: float32 [K, K].
        count: inputs that were added.
        sample_SK: some of the inputs, float32 [S, K].
    """

    def __init__(
        self, name: str, inputs: int, calibrator: Calibrator | None = None, expected: int = 0
    ) -> None:
        self.name = name
        self.sum_KK = torch.zeros(inputs, inputs)
        self.count = 0
        self.sample_SK = torch.zeros(0, inputs)
        self._calibrator, self._expected = calibrator or PlainCalibrator(), expected
        self._factors: dict[float, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, name: str, sum_KK: Tensor, count: int) -> Hessian:
        """From a sum of ``x x^T``, float32 [K, K], over so many inputs."""
        hessian = cls(name, 0)
        hessian.sum_KK, hessian.count = sum_KK, count
        hessian.sample_SK = torch.zeros(0, len(sum_KK))
        return hessian

    def add(self, x_TK: Tensor) -> None:
        """Take in inputs [T, K]. Raises QuantizeError for numbers that are not finite."""
        x_TK = x_TK[:, : self.sum_KK.shape[0]].to("cpu", torch.float32)
        self._calibrator.add_moments(self.sum_KK, x_TK)
        if not bool(self.sum_KK.diagonal().isfinite().all()):
            raise QuantizeError(
                f"the inputs of {self.name} are not finite; expected finite numbers to calibrate",
                hint="the model overflows on this text: is the checkpoint damaged?",
            )
        self._factors.clear()
        stride = max(1, -(-(self._expected or x_TK.shape[0]) // _SAMPLE))
        before = self.count if self._expected else 0
        first = (stride // 2 - before) % stride
        self.sample_SK = torch.cat([self.sample_SK, x_TK[first::stride]])
        self.count += x_TK.shape[0]

    def mean(self) -> Tensor:
        """Mean of ``x x^T``, float32 [K, K]."""
        return self.sum_KK / max(1, self.count)

    def importance(self) -> Tensor:
        """Mean square of each input, float32 [K]."""
        return self.sum_KK.diagonal() / max(1, self.count)

    def factor(self, damping: float) -> tuple[Tensor, Tensor]:
        """Columns by falling importance, and a factor of the inverse in that order.

        Computed once for all matrices that read the inputs.

        Args:
            damping: share of the diagonal's mean that is added to the diagonal. A Hessian that
                cannot be factored with it gets up to 10 000 times as much.

        Returns:
            The order, int64 [K], and the upper triangular float32 U [K, K] with
            ``U^T U = (H + d I)^-1``, H the mean of ``x x^T``.

        Raises:
            QuantizeError: no damping makes it positive.
        """
        found = self._factors.get(damping)
        if found is None:
            found = self._factors[damping] = self._factored(damping)
        return found

    def _factored(self, damping: float) -> tuple[Tensor, Tensor]:
        mean_KK = self.mean()
        order = mean_KK.diagonal().argsort(descending=True, stable=True)
        mean, k = float(mean_KK.diagonal().mean()), len(order)
        if mean == 0:  # nothing ever comes in: any rounding will do
            return order, torch.eye(k)
        # H = R R^T with an upper triangular R, the Cholesky factor from the last column on, makes
        # the inverse R^-T R^-1: one factor and one triangular inverse in place of three factors.
        backward = order.flip(0)
        ordered = mean_KK[backward][:, backward]
        for more in _MORE:
            damped = ordered.clone()
            damped.diagonal().add_(damping * more * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                inverse = torch.linalg.solve_triangular(lower, torch.eye(k), upper=False)
                if bool(inverse.isfinite().all()):
                    return order, inverse.flip(0, 1).contiguous()
        raise QuantizeError(
            f"the statistics of {self.name} are singular even with a damping of "
            f"{damping * _MORE[-1]:g}",
            hint="use a longer or more varied calibration text",
        )

    def over(self, scale_K: Tensor) -> Hessian:
        """The same of inputs that are divided by a scale [K]."""
        other = Hessian.of(self.name, self.sum_KK / scale_K / scale_K.unsqueeze(1), self.count)
        other.sample_SK = self.sample_SK / scale_K
        return other
