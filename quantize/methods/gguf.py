"""GGUF types as methods: nearest codes on fitted blocks, and GPTQ on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.calibrator import Calibrator
from ...kernels.formats.canonical import QuantizedLinear
from ...kernels.formats.stored import StoredLinear
from ...loaders.gguf.blocks import convert_tensor
from ..arithmetic import make_calibrator
from ..hessian import Hessian
from .gguf_blocks import TYPES, fit_blocks, quantize_blocks
from .gguf_fit import RULES
from .gptq import solve


def stored_blocks(name: str, kind: str, shape: tuple[int, int], raw: Tensor) -> StoredLinear:
    """Raw blocks uint8 [N, bytes of a row] of a weight of shape (N, K) as what they mean."""
    form = TYPES[kind].format
    assert form is not None

    def convert() -> QuantizedLinear:
        weight = convert_tensor(name, TYPES[kind], shape, raw)
        assert isinstance(weight, QuantizedLinear)
        return weight

    return StoredLinear(name, form, shape, kind, (raw,), convert)


@dataclass(frozen=True, slots=True)
class GGUFQuantizer:
    """Nearest codes in blocks that are fitted by the mean square of each input.

    Attributes:
        types: block type by the names of weights.
        calibrated: inputs are wanted; without them all columns count the same.
        importance: mean square [K] of inputs by the names of weights, where it is known before.
        calibrator: does the arithmetic.
    """

    types: Mapping[str, str]
    calibrated: bool = True
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    calibrator: Calibrator = field(default_factory=make_calibrator)

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> StoredLinear:
        """See :class:`.base.Quantizer`; [N, K]. Without a Hessian all columns count the same."""
        importance = self.importance.get(name) if hessian is None else hessian.importance()
        return self.by_importance(name, weight_NK, importance)

    def by_importance(
        self, name: str, weight_NK: Tensor, importance_K: Tensor | None
    ) -> StoredLinear:
        """The matrix [N, K], given the mean square [K] of its inputs or None.

        Raises:
            QuantizeError: the weight or the importance is not finite, or no type is given for it.
        """
        kind = _checked(self.types, name, weight_NK, importance_K)
        raw = quantize_blocks(kind, weight_NK, importance_K, self.calibrator)
        n, k = weight_NK.shape
        return stored_blocks(name, kind, (n, k), raw)


@dataclass(frozen=True, slots=True)
class GPTQBlocksQuantizer:
    """GPTQ on the grids of fitted blocks; see :mod:`.gptq`. For types with uniform grids.

    Attributes:
        types: block type by the names of weights.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        calibrated: it wants inputs.
        calibrator: does the arithmetic.
    """

    types: Mapping[str, str]
    damping: float = 0.01
    calibrated: bool = True
    calibrator: Calibrator = field(default_factory=make_calibrator)

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> StoredLinear:
        """See :class:`.base.Quantizer`; [N, K]. Without a Hessian codes are the nearest.

        Raises:
            QuantizeError: the weight or its statistics are not finite or cannot be factored, no
                type is given for it, or one with a table of values.
        """
        importance = None if hessian is None else hessian.importance()
        kind = _checked(self.types, name, weight_NK, importance)
        if hessian is None:
            raw = quantize_blocks(kind, weight_NK, None, self.calibrator)
        elif RULES[kind].grid.table:
            raise QuantizeError(
                f"{name} is to become {kind}, whose values are those of a table; GPTQ rounds to "
                "uniform grids"
            )
        else:
            blocks = fit_blocks(kind, weight_NK, importance, self.calibrator)
            codes = solve(weight_NK, hessian, blocks.grid, self.damping, self.calibrator)
            raw = blocks.blocks(codes)
        n, k = weight_NK.shape
        return stored_blocks(name, kind, (n, k), raw)


def _checked(
    types: Mapping[str, str], name: str, weight_NK: Tensor, importance_K: Tensor | None
) -> str:
    """The type of a weight that can have it."""
    kind = types.get(name)
    if kind is None:
        raise QuantizeError(f"{name} has no GGUF type; expected one of {', '.join(TYPES)}")
    if weight_NK.shape[1] % TYPES[kind].elements:
        raise QuantizeError(
            f"{name} has rows of {weight_NK.shape[1]} weights; {kind} needs a multiple of "
            f"{TYPES[kind].elements}"
        )
    for what, values in (("weights", weight_NK), ("importance of columns", importance_K)):
        if values is not None and not all(bool(x.isfinite()) for x in torch.aminmax(values)):
            raise QuantizeError(f"{name}: {what} are not finite; expected finite numbers")
    return kind
