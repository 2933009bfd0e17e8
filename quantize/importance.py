"""How large the inputs of each matrix are: what GGUF types weigh the errors of weights with.

Shape letters: T tokens, K inputs of a matrix, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.config import EngineConfig
from ..engine.text.tokenizer_thread import LayersDone
from ..loaders.base import Checkpoint
from .walk import StackedLinear, Walk
from .windows import Windows


def measure_importance(
    checkpoint: Checkpoint,
    windows: Windows,
    config: EngineConfig | None = None,
    progress: LayersDone | None = None,
) -> dict[str, tuple[Tensor, int]]:
    """The mean square of inputs, float32 [K], and how many there were, by names of weights.

    Args:
        checkpoint: a model, dense or quantized.
        windows: the text that it reads.
        config: how.
        progress: told after each layer.

    Raises:
        ConfigError: the engine options contradict each other, or the machine.
        UnsupportedWeightError: the backend cannot run a weight.
    """
    walk = Walk(checkpoint, config or EngineConfig(), windows.ids)
    sums: dict[str, tuple[Tensor, int]] = {}

    def watch(linear: StackedLinear, x_TK: Tensor, y_TN: Tensor) -> None:
        squares = x_TK.float().square().sum(0, dtype=torch.float64).cpu()
        for module in linear.modules:
            before, count = sums.get(f"{module}.weight", (torch.zeros_like(squares), 0))
            sums[f"{module}.weight"] = before + squares, count + len(x_TK)

    for _ in range(walk.layers):
        walk.load_layer()
        walk.run_layer(watch)
        if progress is not None:
            progress(walk.layer, walk.layers)
    return {name: ((total / count).float(), count) for name, (total, count) in sums.items()}
