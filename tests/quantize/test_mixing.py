"""Bits for each matrix within a size or a loss."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.errors import ConfigError, QuantizeError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.quantize.mixing import mix
from halfbyte.quantize.pipeline import quantize_model
from halfbyte.quantize.recipe import Order, Recipe
from halfbyte.quantize.windows import Windows
from halfbyte.quantize.write.gptq import GPTQFormat

DENSE = Path(__file__).parents[1] / "fixtures" / "fp16-llama-spm"


@pytest.fixture
def dense() -> Iterator[Checkpoint]:
    checkpoint = open_checkpoint(DENSE)
    yield checkpoint
    checkpoint.close()


@pytest.fixture
def windows(dense: Checkpoint) -> Windows:
    vocab = dense.config.vocab_size
    return Windows(tuple(tuple(random.randrange(3, vocab) for _ in range(24)) for _ in range(4)))


def made(recipe: Recipe, dense: Checkpoint, windows: Windows) -> dict[str, QuantizedLinear]:
    model = quantize_model(dense, recipe.quantizer, windows, matrices=recipe.matrices)
    return {k: w for k, w in model.weights.items() if isinstance(w, QuantizedLinear)}


@pytest.mark.parametrize("budget", [3.7, 4.6, 6.0])
def test_a_budget_is_kept_and_used(dense: Checkpoint, windows: Windows, budget: float) -> None:
    request = Order(method="rtn", group=32, format="gptq")
    recipe = mix(request, dense, windows, budget=budget)
    weights = made(recipe, dense, windows)
    total = sum(w.shape[0] * w.shape[1] for w in weights.values())
    files = [GPTQFormat().encode(k, w, torch.float16).values() for k, w in weights.items()]
    bits = 8 * sum(tensor.nbytes for file in files for tensor in file) / total
    # A group of matrices is at most a quarter of a layer, and steps are of one bit or two.
    assert budget - 0.6 < bits <= budget
    for layer in range(dense.config.num_layers):
        for block, parts in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
            names = [f"model.layers.{layer}.{block}.{part}_proj.weight" for part in parts]
            assert len({weights[name].format.bits for name in names}) == 1


def test_more_bits_are_predicted_to_lose_less(dense: Checkpoint, windows: Windows) -> None:
    losses: list[Any] = []
    for budget in (3.0, 4.0, 5.0, 8.0):
        recipe = mix(Order(method="rtn", group=32, format="gptq"), dense, windows, budget=budget)
        losses.append(recipe.settings["predicted KL"])
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]


def test_a_bound_on_the_loss_is_kept(dense: Checkpoint, windows: Windows) -> None:
    request = Order(method="rtn", group=32, format="gptq")
    recipe = mix(request, dense, windows, max_kl=0.2)
    predicted: Any = recipe.settings["predicted KL"]
    assert predicted <= 0.2
    with pytest.raises(QuantizeError, match="the best candidates are predicted to lose"):
        mix(request, dense, windows, max_kl=1e-9)


def test_gguf_types_are_mixed(dense: Checkpoint, windows: Windows) -> None:
    request = Order(method="rtn", format="gguf:q4_0")
    recipe = mix(request, dense, windows, budget=5.2)
    kinds = {w.encoding for w in made(recipe, dense, windows).values()}  # type: ignore[attr-defined]
    assert len(kinds) > 1


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (Order(bits=4), "leave out --bits and --scheme"),
        (Order(method="nf4"), "one kind of codes"),
        (Order(method="awq", format="awq"), "one number of bits"),
        (Order(format="gguf:q4_0"), "--method rtn"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    dense: Checkpoint, windows: Windows, request_: Order, names: str
) -> None:
    with pytest.raises(ConfigError, match=names):
        mix(request_, dense, windows, budget=4.5)
    with pytest.raises(ConfigError, match="one of the two"):
        mix(request_, dense, windows)
