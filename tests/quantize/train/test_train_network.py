"""The network that is trained against the engine's reference backend."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from halfbyte import Engine
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.train.network import TrainNetwork

FIXTURES = Path(__file__).parents[2] / "fixtures"
# Every family; codes of every kind, in the head, too; inputs that are rounded.
SOME = (
    "fp16-llama-spm",
    "awq-gemm-g32-keep-qwen2",
    "ct-fp8-dynamic-gemma3",
    "ct-w8a8-static-asym-tensor-qwen2",
    "gguf-q8_0-split-mistral",
    "gptq-v1-4b-dynamic-lmhead-llama",
    "gptq-v1-4b-g64-actorder-phi3",
    "bnb-nf4-gemma2",
    "torchao-int8-wo-qwen3",
)
FOLDERS = [
    pytest.param(path.name, marks=() if path.name in SOME else pytest.mark.slow)
    for path in sorted(FIXTURES.iterdir())
    if path.is_dir()
]


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_are_the_reference_backends(name: str) -> None:
    """All families, formats and rules, over windows longer than the sliding ones. Sums in float32
    add up in another order; where inputs are rounded, one may fall to the other side, and such a
    step, up to an eighth of a float8 input, moves logits by some hundredths of their size (0.027
    seen).
    """
    path = next((FIXTURES / name).glob("*.gguf"), FIXTURES / name)
    checkpoint = open_checkpoint(path)
    rounds = any(info.format and info.format.act for info in checkpoint.tensors())
    length = max([16, *checkpoint.config.sliding_window]) + 5
    windows = [[random.randrange(3, 256) for _ in range(length)] for _ in range(2)]
    network = TrainNetwork(checkpoint)
    with torch.no_grad():
        got = network.logits(network.residual(windows)).view(2, length, -1)
    checkpoint.close()
    with Engine(path, backend="reference", activations="float") as engine:
        for ours, ids in zip(got, windows, strict=True):
            want = engine.logits(ids)
            error = (ours - want).norm() / want.norm()
            assert error < (0.1 if rounds else 1e-5)
