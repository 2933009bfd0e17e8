"""What each matrix would lose in each format: KL of the whole model, predicted.

For small errors the KL divergence is a quadratic form in them, so the losses of single matrices add
up, and that of one matrix grows with the square of its output error. The error follows from the
second moments H of its inputs: ``tr(D H D^T)`` for a difference D of weights. How much KL such an
error makes differs by orders of magnitude among matrices, and no figure of one layer tells it. So
it is measured: for one candidate, the probe, a few tokens go through the model with the error of
that one matrix alone, and the KL of its next-token distributions is taken.

    cost(matrix, candidate) = KL(matrix, probe) * error(matrix, candidate) / error(matrix, probe)

Shape letters: T tokens, N rows, K columns, R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import RequestError

from ...engine.config import EngineConfig
from ...engine.text.tokenizer_thread import LayersDone
from ...kernels.formats.canonical import QuantizedLinear
from ...kernels.formats.stored import CODES_ALONE, StoredLinear
from ...loaders.base import Checkpoint
from ...loaders.model.quantizing import is_decoder_linear
from ..hessian import Hessian
from ..methods.base import Quantizer
from ..pipeline import dense_matrix
from ..places import compare_rows
from ..walk import StackedLinear, Walk
from ..windows import Windows
from .budget import Choice

WrittenBits = Callable[[str, QuantizedLinear], int]
"""Bits of a weight, by its name, in the file that is to be written."""

# Bits of a scale in files.
_SCALE = 16


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What the matrices of a model would lose.

    Attributes:
        choices: of each module, one for each candidate.
        errors: module -> candidate -> relative output error, norm over norm.
        probe: the candidate whose KL was measured.
        weights: elements of all these matrices.
    """

    choices: dict[str, tuple[Choice, ...]]
    errors: dict[str, dict[str, float]]
    probe: str
    weights: int


@dataclass(frozen=True, slots=True)
class _Found:
    """One matrix in all candidates: their sizes and squared errors; and its outputs' square."""

    sizes: dict[str, int]
    errors: dict[str, float]
    norm: float


def measure(
    checkpoint: Checkpoint,
    windows: Windows,
    candidates: Mapping[str, Quantizer],
    probe: str,
    tokens: int = 512,
    config: EngineConfig | None = None,
    progress: LayersDone | None = None,
    size: WrittenBits | None = None,
) -> Sensitivity:
    """Sizes and predicted losses of all matrices of the decoder's layers.

    It takes a pass of the windows through the model, each candidate's quantizing, and for each
    matrix ``tokens`` through the layers behind it and the head.

    Args:
        checkpoint: a dense model.
        windows: a text to calibrate on.
        candidates: quantizers by name.
        probe: the candidate whose loss is measured: one with errors that are neither lost in those
            of floats, nor so large that KL is no longer quadratic; 3 or 4 bits.
        tokens: how many the losses are measured on, cut into whole windows or one shorter one.
        config: how the text goes through the model.
        progress: told after each layer.
        size: bits of a matrix in the file that is to be written; without it :func:`stored_bits`.

    Raises:
        QuantizeError: a matrix cannot be quantized.
        RequestError: ``probe`` is no candidate.
    """
    if probe not in candidates:
        raise RequestError(f"probe is {probe!r}; expected one of {', '.join(candidates)}")
    config = config or EngineConfig(activations="float")
    wanted = {i.name for i in checkpoint.tensors() if is_decoder_linear(i.name, i.shape)}
    walk = Walk(checkpoint, config, windows.ids)
    clean = Walk(checkpoint, config, few_tokens(windows, tokens))
    found: dict[str, _Found] = {}
    branches: dict[str, Walk] = {}
    for _ in range(walk.layers):
        walk.load_layer()
        clean.load_layer()
        modules = [module for module in walk.linears if f"{module}.weight" in wanted]
        hessians = _run(walk)
        differences: dict[str, Tensor] = {}
        for module in modules:
            hessian = hessians.get(module)
            if hessian is not None:
                found[module], differences[module] = _tried(
                    f"{module}.weight", checkpoint, hessian, candidates, probe, size
                )
        for branch in branches.values():
            branch.share_layer(clean)
            branch.run_layer()
        for module, difference in differences.items():
            branches[module] = clean.branch()
            branches[module].run_layer(_Disturbed(clean, module, difference))
        clean.run_layer()
        if progress is not None:
            progress(walk.layer, walk.layers)
    losses = disturbed_losses(clean, branches)
    choices = {
        module: tuple(
            Choice(name, one.sizes[name], losses[module] * error / max(one.errors[probe], 1e-30))
            for name, error in one.errors.items()
        )
        for module, one in found.items()
    }
    relative = {
        module: {name: (error / one.norm) ** 0.5 for name, error in one.errors.items()}
        for module, one in found.items()
    }
    shapes = {info.name: info.shape for info in checkpoint.tensors()}
    weights = sum(shapes[f"{m}.weight"][0] * shapes[f"{m}.weight"][1] for m in found)
    return Sensitivity(choices, relative, probe, weights)


def _run(walk: Walk) -> dict[str, Hessian]:
    """Second moments of each matrix's inputs, by module, while the walk goes through its layer."""
    found: dict[int, Hessian] = {}
    modules: dict[str, Hessian] = {}

    def watch(linear: StackedLinear, x_TK: Tensor, y_TN: Tensor) -> None:
        if id(linear) not in found:
            found[id(linear)] = Hessian(linear.modules[0], linear.packed.shape[1])
            modules.update(dict.fromkeys(linear.modules, found[id(linear)]))
        found[id(linear)].add(x_TK)

    walk.run_layer(watch)
    return modules


def _tried(
    name: str,
    checkpoint: Checkpoint,
    hessian: Hessian,
    candidates: Mapping[str, Quantizer],
    probe: str,
    size: WrittenBits | None,
) -> tuple[_Found, Tensor]:
    """A matrix in all candidates, and the probe's difference of weights [N, K]."""
    weight_NK, h_KK = dense_matrix(checkpoint, name), hessian.mean()
    sizes: dict[str, int] = {}
    errors: dict[str, float] = {}
    probed_NK = weight_NK
    for candidate, quantizer in candidates.items():
        quantized = quantizer.quantize(name, weight_NK, hessian)
        difference_NK = quantized.dequantize() - weight_NK
        sizes[candidate] = size(name, quantized) if size else stored_bits(quantized)
        errors[candidate] = _square(difference_NK, h_KK)
        if candidate == probe:
            probed_NK = difference_NK
    return _Found(sizes, errors, max(_square(weight_NK, h_KK), 1e-30)), probed_NK


def stored_bits(weight: QuantizedLinear) -> int:
    """Bits of a matrix in a file: codes, scales of 16 bits, zero points as wide as codes.

    Blocks of a GGUF file are counted as they are.
    """
    if isinstance(weight, StoredLinear) and weight.encoding not in CODES_ALONE:
        return 8 * sum(part.nbytes for part in weight.parts)
    n, k = weight.shape
    zeros = weight.zeros
    added = 0
    if zeros is not None:
        added = zeros.numel() * (weight.format.bits if weight.format.zero == "int" else _SCALE)
    return n * k * weight.format.bits + weight.scales.numel() * _SCALE + added


class _Disturbed:
    """Adds the error of one matrix to its outputs."""

    def __init__(self, walk: Walk, module: str, difference_NK: Tensor) -> None:
        self._linear, self._rows = walk.linears[module]
        self._difference_NK = difference_NK

    def __call__(self, linear: StackedLinear, x_TK: Tensor, y_TN: Tensor) -> None:
        if linear is self._linear:
            difference = self._difference_NK.to(y_TN.device, torch.float32)
            error_TN = x_TK[:, : difference.shape[1]].float() @ difference.T
            y_TN[:, self._rows] += error_TN.to(y_TN.dtype)


def few_tokens(windows: Windows, tokens: int) -> list[tuple[int, ...]]:
    """The first tokens of a text: whole windows, or the beginning of one."""
    length = min(tokens, windows.length)
    return [ids[:length] for ids in windows.ids[: max(1, tokens // length)]]


def disturbed_losses(clean: Walk, branches: Mapping[str, Walk]) -> dict[str, float]:
    """Mean KL of each branch's next-token distributions from those of the walk it left, nats.

    All are behind the last layer. The clean logits of all tokens are in memory meanwhile.
    """
    logits = [block_RV.clone() for block_RV in clean.logits()]
    found: dict[str, float] = {}
    for module, branch in branches.items():
        branch.share_layer(clean)
        total, count = 0.0, 0
        for q_RV, p_RV in zip(branch.logits(), logits, strict=True):
            ids = torch.zeros(len(p_RV), dtype=torch.int64)
            total += float(compare_rows(q_RV, p_RV.clone(), ids).kl.sum())
            count += len(p_RV)
        found[module] = total / count
    return found


def _square(weight_NK: Tensor, hessian_KK: Tensor) -> float:
    """Mean over tokens of the square of the outputs."""
    return float((weight_NK @ hessian_KK).mul_(weight_NK).sum(dtype=torch.float64))
