"""LLM.int8(): rows of weights in 8 bits, and inputs in 8 bits but for columns with outliers.

Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339. A folder of bitsandbytes stores the rows
alone; outliers are a matter of each batch of inputs. Our own products leave the inputs of such
weights as they are, which is at least as exact, so :func:`decomposed_product` is for comparison.

Shape letters: T tokens, N rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.formats.activations import quantize_activations
from ...kernels.formats.canonical import QuantizedLinear
from ...kernels.formats.weight_format import ActivationFormat
from ...loaders.model.rtn import rtn_symmetric
from ..hessian import Hessian
from ..theory import integer_product

THRESHOLD = 6.0
"""Magnitude from which an input is an outlier, as in the paper and by the tool's default."""

_ROWS = ActivationFormat(top=127.0)


@dataclass(frozen=True, slots=True)
class LLMInt8Quantizer:
    """Rows to int8 by their largest magnitude, as bitsandbytes stores them.

    Attributes:
        calibrated: it wants no inputs.
    """

    calibrated: bool = False

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]. Scales are the file's ``SCB / 127``."""
        return rtn_symmetric(name, weight_NK, 8, -1)


def outlier_columns(x_TK: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Whether a column of inputs [T, K] has a magnitude of at least the threshold, bool [K]."""
    return (x_TK.abs() >= threshold).any(0)


def decomposed_product(
    x_TK: Tensor, weight: QuantizedLinear, threshold: float = THRESHOLD
) -> Tensor:
    """The product as the tool computes it, float32 [T, N].

    Columns with outliers meet the dequantized weights in the inputs' own type; the others are
    rounded to int8, a scale for each token, and their product of whole numbers is exact.

    Args:
        x_TK: inputs [T, K].
        weight: of :class:`LLMInt8Quantizer`.
        threshold: from which an input is an outlier; infinity = none is.
    """
    outlier = outlier_columns(x_TK, threshold)
    codes, scale_T1 = quantize_activations(x_TK.masked_fill(outlier, 0), _ROWS)
    whole = integer_product(codes.to(torch.int8), 0, weight.unpack(), 128)
    y_TN = whole.float() * scale_T1 * weight.scales.float().squeeze(1)
    columns = weight.dequantize(x_TK.dtype)[:, outlier]
    return y_TN + (x_TK[:, outlier] @ columns.T).float()
