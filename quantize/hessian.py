"""What calibration knows of a matrix: second moments of its inputs.

Shape letters: T tokens, K inputs of a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError


class Hessian:
    """Sum of ``x x^T`` over inputs x [K]: half the second derivative of the squared output error.

    Args:
        name: of the matrix, for messages.
        inputs: K.

    Attributes:
        sum_KK: float32 [K, K].
        count: inputs that were added.
    """

    def __init__(self, name: str, inputs: int) -> None:
        self.name = name
        self.sum_KK = torch.zeros(inputs, inputs)
        self.count = 0

    def add(self, x_TK: Tensor) -> None:
        """Take in inputs [T, K]. Raises QuantizeError for numbers that are not finite."""
        x_TK = x_TK.to("cpu", torch.float32)
        if not bool(x_TK.isfinite().all()):
            raise QuantizeError(
                f"the inputs of {self.name} are not finite; expected finite numbers to calibrate",
                hint="the model overflows on this text: is the checkpoint damaged?",
            )
        self.sum_KK.addmm_(x_TK.T, x_TK)
        self.count += x_TK.shape[0]

    def mean(self) -> Tensor:
        """Mean of ``x x^T``, float32 [K, K]."""
        return self.sum_KK / max(1, self.count)
