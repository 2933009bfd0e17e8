"""Quantize a model layer by layer, each matrix on what the quantized ones before it give.

Every layer is computed once. When the inputs of all tokens stand in front of a matrix, their second
moments are taken, scales may be moved into the op before, the matrix is quantized, and the codes
give the product that goes on, for one batch of windows after another.

Shape letters: T tokens, N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..engine.backends.base import PackedLinear
from ..engine.config import EngineConfig
from ..kernels.calibrator import Calibrator
from ..kernels.formats.canonical import QuantizedLinear, Weight, can_fuse
from ..kernels.formats.stored import StoredLinear
from ..loaders.base import Checkpoint, TensorInfo, TokenizerSource, load_stored
from ..loaders.model.config import ModelConfig
from ..loaders.model.quantizing import is_decoder_linear
from ..loaders.model.report import LoadReport
from .arithmetic import make_calibrator
from .deciding import Inputs, Multiply, PendingLinear
from .folding import fold, origin_of
from .hessian import Hessian
from .host_memory import trim_heap
from .methods.base import Quantizer
from .smoothing import Smoother
from .spill import Spill
from .walk import Walk
from .windows import Windows


class Overlay:
    """A checkpoint of which some weights are replaced.

    Attributes:
        weights: those, by their canonical names.
    """

    def __init__(self, inner: Checkpoint) -> None:
        self.kind: str = inner.kind
        self.path: Path = inner.path
        self.config: ModelConfig = inner.config
        self.weights: dict[str, Weight] = {}
        self._inner = inner

    def tensors(self) -> list[TensorInfo]:
        """As in the file."""
        return self._inner.tensors()

    def load(self, name: str) -> Weight:
        """The replaced weight, or the file's. Raises CheckpointError for an unknown name."""
        return self.weights[name] if name in self.weights else self._inner.load(name)

    def load_stored(self, name: str) -> Weight:
        """The replaced weight, or the file's as it lies there; see ``loaders.base.load_stored``."""
        return self.weights[name] if name in self.weights else load_stored(self._inner, name)

    def has(self, name: str) -> bool:
        """Whether a tensor of that canonical name is stored."""
        return self._inner.has(name)

    def release(self, names: Iterable[str]) -> None:
        """Tell the system that the file pages of these tensors are no longer needed."""
        self._inner.release(names)

    def tokenizer(self) -> TokenizerSource:
        """The tokenizer's raw material. Raises TokenizerError when there is none."""
        return self._inner.tokenizer()

    def report(self) -> LoadReport:
        """What was detected, checked and decided so far."""
        return self._inner.report()

    def close(self) -> None:
        """Unmap the files."""
        self._inner.close()


@dataclass(slots=True)
class LayerReport:
    """What became of a layer.

    Attributes:
        layer: number from 0.
        layers: how many there are.
        errors: module -> error of its outputs on real inputs: norm of the difference over the
            norm; of some of its rows.
        weights: tensors of the layer that are quantized, or changed by scales.
    """

    layer: int
    layers: int
    errors: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)


class Keeper(Protocol):
    """Keeps what is done of a run, so that another can go on with it; see :mod:`.staging`."""

    def done(self) -> tuple[int, dict[str, Weight], Iterator[Tensor]] | None:
        """Layers that an earlier run finished, their weights, and the residuals [T, D] behind."""
        ...

    def keep(self, layers: int, weights: Mapping[str, Weight], residuals: Iterator[Tensor]) -> None:
        """Note the weights of the last of so many layers, and the residuals [T, D] behind it."""
        ...


def quantize_model(
    checkpoint: Checkpoint,
    method: Quantizer,
    windows: Windows | None,
    *,
    smoother: Smoother | None = None,
    config: EngineConfig | None = None,
    done: Callable[[LayerReport], None] | None = None,
    matrices: frozenset[str] | None = None,
    others: Iterable[str] = (),
    keeper: Keeper | None = None,
    spill: Spill | None = None,
) -> Overlay:
    """All matrices of the decoder's layers, quantized.

    Args:
        checkpoint: a dense model.
        method: quantizes each matrix.
        windows: a text to calibrate on; None for methods that want none.
        smoother: chooses scales to be moved into the op before, or None.
        config: how the text goes through the model; by default with inputs as rounded by blocks,
            which is faster than floats and gives the same statistics but for little noise.
        done: told after each layer.
        matrices: of the layers, which are quantized; None = all.
        others: matrices outside the layers (embedding, head) to be quantized, without inputs.
        keeper: keeps what is done; only with windows.
        spill: keeps activations on disk that no batch of windows works on; None = in memory.

    Raises:
        ConfigError: something is to be spilled, and the backend is on no CPU.
        QuantizeError: a matrix cannot be quantized, or the disk is full.
        UnsupportedWeightError: the backend cannot run a weight.
    """
    overlay = Overlay(checkpoint)
    for name in others:
        overlay.weights[name] = method.quantize(name, dense_matrix(checkpoint, name), None)
        checkpoint.release([name])
    wanted = matrices
    if wanted is None:
        infos = checkpoint.tensors()
        wanted = frozenset(i.name for i in infos if is_decoder_linear(i.name, i.shape))
    if windows is None:
        return _without_text(overlay, method, wanted, done)
    config = config or EngineConfig(activations="int8-block32")
    calibrator = make_calibrator(config.threads)
    walk = Walk(overlay, config, windows.ids, to_logits=False, spill=spill)
    if keeper is not None and (earlier := keeper.done()) is not None:
        layers, weights, residuals = earlier
        overlay.weights |= weights
        walk.go_on(layers, residuals)
    for layer in range(walk.layer, walk.layers):
        report = LayerReport(layer, walk.layers)
        decider = _Decider(walk, overlay, method, smoother, report, calibrator)
        walk.decide_layer(lambda module: f"{module}.weight" in wanted, decider)
        # Experts that no token went through.
        for name in sorted(_of_layer(wanted, layer) - report.weights.keys()):
            matrix = dense_matrix(overlay, name)
            decider.keep(name, method.quantize(name, matrix, Hessian(name, matrix.shape[1])))
        if keeper is not None:
            keeper.keep(walk.layer, report.weights, walk.residuals())
        # Else what is between long-lived codes would stay, and grow with the layers.
        trim_heap()
        if done is not None:
            done(report)
    return overlay


def _without_text(
    overlay: Overlay,
    method: Quantizer,
    wanted: frozenset[str],
    done: Callable[[LayerReport], None] | None,
) -> Overlay:
    layers = overlay.config.num_layers
    for layer in range(layers):
        report = LayerReport(layer, layers)
        names = sorted(_of_layer(wanted, layer))
        for name in names:
            weight = method.quantize(name, dense_matrix(overlay, name), None)
            overlay.weights[name] = report.weights[name] = weight
        overlay.release(names)
        if done is not None:
            done(report)
    return overlay


class _Decider:
    """Quantizes the matrices of one layer when their inputs are there, and gives the products."""

    def __init__(
        self,
        walk: Walk,
        overlay: Overlay,
        method: Quantizer,
        smoother: Smoother | None,
        report: LayerReport,
        calibrator: Calibrator,
    ) -> None:
        self._walk, self._overlay = walk, overlay
        self._method, self._smoother = method, smoother
        self._report = report
        self._calibrator = calibrator

    def __call__(self, pending: PendingLinear, inputs: Inputs) -> Multiply:
        k = pending.shape[1]
        hessian = Hessian(pending.modules[0], k, self._calibrator, inputs.count)
        for x_TK in inputs:
            hessian.add(x_TK)
        names = [f"{module}.weight" for module in pending.modules]
        matrices = [dense_matrix(self._overlay, name) for name in names]
        scale = self._scale(pending, torch.cat(matrices), hessian)
        if scale is not None:
            matrices = [matrix * scale for matrix in matrices]
            hessian = hessian.over(scale)
        for name, matrix in zip(names, matrices, strict=True):
            weight = self._method.quantize(name, matrix, hessian)
            self.keep(name, weight)
            error = relative_error(weight, matrix, hessian)
            self._report.errors[name.removesuffix(".weight")] = error
        self._overlay.release(names)
        return self._product(pending, names, scale)

    def keep(self, name: str, weight: Weight) -> None:
        """Remember what a tensor became."""
        self._overlay.weights[name] = self._report.weights[name] = weight

    def _scale(self, pending: PendingLinear, weight_NK: Tensor, hessian: Hessian) -> Tensor | None:
        """The scale [K] that was moved into the op before."""
        layer, model = self._report.layer, self._overlay
        origin = origin_of(model.config, layer, pending.modules)
        if self._smoother is None or origin is None:
            return None
        scale = self._smoother.scale(weight_NK, hessian, origin.tied)
        if scale is None:
            return None
        changed: dict[str, Weight] = {}
        scale = fold(origin, scale, model, changed)
        for name, weight in changed.items():
            self.keep(name, weight)
        return scale

    def _product(self, pending: PendingLinear, names: list[str], scale: Tensor | None) -> Multiply:
        """What multiplies inputs, over their scale [K], by the matrices of these names."""
        parts = self._packed(pending, names)

        def product(x_TK: Tensor) -> Tensor:
            if scale is not None:
                x_TK = x_TK / scale.to(x_TK.device, x_TK.dtype)
            y = [self._walk.product(part, x_TK) for part in parts]
            return y[0] if len(y) == 1 else torch.cat(y, dim=1)

        return product

    def _packed(self, pending: PendingLinear, names: list[str]) -> list[PackedLinear]:
        weights, packer = [self._overlay.weights[name] for name in names], self._walk.backend.packer
        quantized = [w for w in weights if isinstance(w, QuantizedLinear)]
        biases = [self._bias(module) for module in pending.modules] if pending.has_bias else []
        if can_fuse(weights) and len(quantized) == len(weights):
            whole, bias = StoredLinear.stack(quantized), torch.cat(biases) if biases else None
            return [packer.pack(whole, bias)]
        return [packer.pack(w, biases[i] if biases else None) for i, w in enumerate(weights)]

    def _bias(self, module: str) -> Tensor:
        bias = self._overlay.load(f"{module}.bias")
        assert isinstance(bias, Tensor)
        return bias.to(self._walk.backend.device, torch.float32)


def relative_error(weight: QuantizedLinear, matrix_NK: Tensor, hessian: Hessian) -> float:
    """Norm of the difference of a matrix's outputs over their norm, by some of the rows [K]."""
    step = max(1, matrix_NK.shape[0] // 128)
    rows, h_KK = matrix_NK[::step].float(), hessian.mean()
    difference = weight.dequantize()[::step] - rows
    lost, whole = (float((d @ h_KK).mul_(d).sum()) for d in (difference, rows))
    return (max(lost, 0.0) / max(whole, 1e-30)) ** 0.5


def dense_matrix(checkpoint: Checkpoint, name: str) -> Tensor:
    """A matrix [N, K] of floats."""
    weight = checkpoint.load(name)
    return (weight if isinstance(weight, Tensor) else weight.dequantize()).float()


def _of_layer(names: frozenset[str], layer: int) -> set[str]:
    return {name for name in names if name.startswith(f"model.layers.{layer}.")}
