"""Which matrices of a quantized model are worth more bits, and what those would buy.

A few tokens go through the reference with one matrix as the quantized model has it, for each matrix
in turn: the KL of the next-token distributions is what that one costs. A bit more halves its steps
and its output error, and KL goes with the square of that: it falls to a quarter.

Shape letters: T tokens, N outputs and K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...engine.config import EngineConfig
from ...engine.text.tokenizer_thread import LayersDone
from ...kernels.formats.canonical import QuantizedLinear, WeightFormat
from ...loaders.base import Checkpoint
from ...loaders.model.quantizing import is_decoder_linear
from ..unfold import Folded, find_folded
from ..walk import StackedLinear, Walk
from ..windows import Windows
from .budget import Choice, Curve
from .sensitivity import disturbed_losses, few_tokens

_BITS = range(2, 9)
# Share of a matrix's KL that one bit more takes away.
SAVED = 0.75


@dataclass(frozen=True, slots=True)
class MatrixLoss:
    """One quantized matrix.

    Attributes:
        module: full name.
        bits: of its codes.
        weights: its elements.
        kl: what it alone costs, nats a token.
        saves: KL that one bit more would take away, as predicted.
        bytes: what that bit would add to the file.
    """

    module: str
    bits: int
    weights: int
    kl: float
    saves: float
    bytes: int


def matrix_losses(
    quantized: Checkpoint,
    reference: Checkpoint,
    windows: Windows,
    tokens: int = 256,
    config: EngineConfig | None = None,
    progress: LayersDone | None = None,
) -> tuple[MatrixLoss, ...]:
    """What each quantized matrix of the layers costs; those first that gain most for a byte.

    Args:
        quantized: the model to judge.
        reference: what it was made from.
        windows: a text in the tokens of both.
        tokens: how many the losses are measured on.
        config: how both are computed.
        progress: told after each layer.

    Raises:
        UnsupportedWeightError: the backend cannot run a weight.
    """
    config = config or EngineConfig(activations="float")
    few = few_tokens(windows, tokens)
    theirs, ours = (Walk(model, config, few) for model in (reference, quantized))
    formats = _formats(quantized)
    branches: dict[str, Walk] = {}
    for layer in range(theirs.layers):
        theirs.load_layer()
        ours.load_layer()
        modules = [module for module in theirs.linears if module in formats]
        folded = find_folded(quantized, reference, layer, list(theirs.linears))
        for branch in branches.values():
            branch.share_layer(theirs)
            branch.run_layer()
        for module in modules:
            branches[module] = theirs.branch()
            branches[module].run_layer(_Replaced(theirs, ours, module, folded[module]))
        theirs.run_layer()
        ours.layer += 1
        if progress is not None:
            progress(theirs.layer, theirs.layers)
    found = []
    for module, kl in disturbed_losses(theirs, branches).items():
        form, (n, k) = formats[module]
        found.append(MatrixLoss(module, form.bits, n * k, kl, SAVED * kl, n * k // 8))
    return tuple(sorted(found, key=lambda loss: -loss.saves / loss.bytes))


def _formats(model: Checkpoint) -> dict[str, tuple[WeightFormat, tuple[int, ...]]]:
    """Format and shape of each quantized matrix of the layers, by module."""
    found = {}
    for info in model.tensors():
        if not is_decoder_linear(info.name, info.shape):
            continue
        form = info.format
        if form is None:  # one that was made in memory is not in the headers
            weight = model.load(info.name)
            form = weight.format if isinstance(weight, QuantizedLinear) else None
            model.release([info.name])
        if form is not None:
            found[info.name.removesuffix(".weight")] = form, info.shape
    return found


def predicted_curve(losses: Sequence[MatrixLoss], kl: float) -> list[tuple[float, float]]:
    """Bits of a weight and KL of the best choices of bits, predicted from what matrices cost now.

    Scales are left out of the bits. The sum of single losses is scaled to the model's own.

    Args:
        losses: of all matrices.
        kl: the model's mean KL.
    """
    total = sum(loss.kl for loss in losses)
    weights = sum(loss.weights for loss in losses)
    if not total or not weights:
        return []
    choices: Mapping[str, list[Choice]] = {
        loss.module: [
            Choice(str(bits), bits * loss.weights, loss.kl * kl / total * 4.0 ** (loss.bits - bits))
            for bits in _BITS
        ]
        for loss in losses
    }
    return [(size / weights, cost) for size, cost in Curve(choices).points]


class _Replaced:
    """Puts the quantized model's outputs of one matrix in place of the reference's."""

    def __init__(self, theirs: Walk, ours: Walk, module: str, folded: Folded) -> None:
        self._linear, self._rows = theirs.linears[module]
        self._own, self._own_rows = ours.linears[module]
        self._ours, self._folded = ours, folded

    def __call__(self, linear: StackedLinear, x_TK: Tensor, y_TN: Tensor) -> None:
        if linear is self._linear:
            product = self._ours.product(self._own.packed, self._folded.seen(x_TK))
            y_TN[:, self._rows] = self._folded.undone(product[:, self._own_rows]).to(y_TN.dtype)
