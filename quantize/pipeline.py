"""Quantize a model layer by layer, each on what the quantized layers before it give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..engine.config import EngineConfig
from ..engine.text.tokenizer_thread import LayersDone
from ..kernels.formats.canonical import QuantizedLinear, Weight
from ..loaders.base import Checkpoint, TensorInfo, TokenizerSource, load_stored
from ..loaders.model.config import ModelConfig
from ..loaders.model.quantizing import is_decoder_linear
from ..loaders.model.report import LoadReport
from .hessian import Hessian
from .methods.base import Quantizer
from .walk import StackedLinear, Walk
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
        self.weights: dict[str, QuantizedLinear] = {}
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


def quantize_model(
    checkpoint: Checkpoint,
    method: Quantizer,
    windows: Windows,
    config: EngineConfig | None = None,
    progress: LayersDone | None = None,
) -> Overlay:
    """All matrices of the decoder's layers, quantized; embedding and head as they are.

    Args:
        checkpoint: a dense model.
        method: quantizes each matrix.
        windows: a text to calibrate on.
        config: how the text goes through the model.
        progress: told after each layer.

    Raises:
        QuantizeError: a matrix cannot be quantized.
        UnsupportedWeightError: the backend cannot run a weight.
    """
    config = config or EngineConfig(activations="float")
    overlay = Overlay(checkpoint)
    names = [i.name for i in checkpoint.tensors() if is_decoder_linear(i.name, i.shape)]
    if not method.calibrated:
        for name in names:
            overlay.weights[name] = method.quantize(name, _dense(checkpoint, name), None)
        return overlay
    wanted = frozenset(names)
    walk = Walk(overlay, config, windows.ids)
    for _ in range(walk.layers):
        walk.load_layer()
        hessians = _hessians(walk)
        for module, (linear, _) in walk.linears.items():
            name = f"{module}.weight"
            if name in wanted and id(linear) in hessians:
                weight = _dense(checkpoint, name)
                overlay.weights[name] = method.quantize(name, weight, hessians[id(linear)])
        walk.load_layer()
        walk.run_layer()
        if progress is not None:
            progress(walk.layer, walk.layers)
    return overlay


def _hessians(walk: Walk) -> dict[int, Hessian]:
    """Of each matrix of the layer that was loaded, by the id of its entry."""
    found: dict[int, Hessian] = {}

    def watch(linear: StackedLinear, x_TK: Tensor, y_TN: Tensor) -> None:
        if id(linear) not in found:
            found[id(linear)] = Hessian(linear.modules[0], linear.packed.shape[1])
        found[id(linear)].add(x_TK)

    walk.watch_layer(watch)
    return found


def _dense(checkpoint: Checkpoint, name: str) -> Tensor:
    weight = checkpoint.load(name)
    return weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32)
