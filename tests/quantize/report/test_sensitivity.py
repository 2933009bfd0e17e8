"""Losses of single matrices against whole models in which only that matrix is quantized."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfbyte.errors import QuantizeError, RequestError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.quantize.judge import compare
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.mixed import MixedQuantizer
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import Overlay, quantize_model
from halfbyte.quantize.report.budget import allocate
from halfbyte.quantize.report.sensitivity import measure, stored_bits
from halfbyte.quantize.report.suggest import matrix_losses, predicted_curve
from halfbyte.quantize.windows import Windows

FIXTURES = Path(__file__).parents[2] / "fixtures"
CANDIDATES = {f"{b} bits": NearestQuantizer(UniformCodes(b, 32)) for b in (3, 4, 6)}
SOME = ("model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj")


@pytest.fixture
def dense() -> Iterator[Checkpoint]:
    checkpoint = open_checkpoint(FIXTURES / "fp16-llama-spm")
    yield checkpoint
    checkpoint.close()


@pytest.fixture
def windows(dense: Checkpoint) -> Windows:
    vocab = dense.config.vocab_size
    ids = [tuple(random.randrange(3, vocab) for _ in range(24)) for _ in range(3)]
    return Windows(tuple(ids))


def alone(dense: Checkpoint, windows: Windows, module: str) -> float:
    """KL over all places, the last of each window too: that has a distribution as well."""
    overlay, name = Overlay(dense), f"{module}.weight"
    weight = dense.load(name)
    assert not isinstance(weight, QuantizedLinear)
    overlay.weights[name] = CANDIDATES["4 bits"].quantize(name, weight, None)
    longer = Windows(tuple((*ids, 3) for ids in windows.ids))
    return compare(overlay, dense, longer).kl_mean


def test_losses_are_those_of_models_with_one_quantized_matrix(
    dense: Checkpoint, windows: Windows
) -> None:
    """The disturbance is added to the products in float32 in place of being in the weights."""
    found = measure(dense, windows, CANDIDATES, "4 bits", tokens=72)
    assert found.probe == "4 bits" and len(found.choices) == 7 * dense.config.num_layers
    for module in SOME:
        small, probe, large = found.choices[module]
        assert probe.cost == pytest.approx(alone(dense, windows, module), rel=1e-3)
        assert small.cost > probe.cost > large.cost and small.size < probe.size < large.size
        errors = found.errors[module]
        ratio = (errors["6 bits"] / errors["4 bits"]) ** 2
        assert large.cost == pytest.approx(probe.cost * ratio, rel=1e-3)
    judged = compare(
        quantize_model(dense, CANDIDATES["4 bits"], windows), dense, windows, linears=True
    )
    for score in judged.layers[0].linears:
        assert found.errors[score.module]["4 bits"] == pytest.approx(score.relative, rel=1e-3)


def test_what_quantized_matrices_cost(dense: Checkpoint, windows: Windows) -> None:
    model = quantize_model(dense, CANDIDATES["4 bits"], windows)
    losses = matrix_losses(model, dense, windows, tokens=72)
    known = {loss.module: loss for loss in losses}
    assert len(known) == 7 * dense.config.num_layers
    for module in SOME:
        assert known[module].kl == pytest.approx(alone(dense, windows, module), rel=1e-3)
        assert known[module].bits == 4
    gains = [loss.saves / loss.bytes for loss in losses]
    assert gains == sorted(gains, reverse=True)
    points = predicted_curve(losses, 0.5)
    assert points[0][0] == 2 and points[-1][0] == pytest.approx(8)
    # At four bits a choice is at least as good as four bits everywhere.
    assert min(kl for bits, kl in points if bits <= 4) <= 0.5


def test_mixed_bits_lose_less_than_even_ones_of_the_same_size(
    dense: Checkpoint, windows: Windows
) -> None:
    """On the text that they were chosen by; random weights differ little, so the gain is small."""
    found = measure(dense, windows, CANDIDATES, "4 bits", tokens=72)
    even = sum(choice.size for _, choice, _ in found.choices.values())
    chosen = allocate(found.choices, budget_bits=even)
    mixed = MixedQuantizer({m: CANDIDATES[c.name] for m, c in chosen.choices.items()})
    assert not mixed.calibrated
    model = quantize_model(dense, mixed, windows)
    stored = [w for w in model.weights.values() if isinstance(w, QuantizedLinear)]
    assert sum(stored_bits(weight) for weight in stored) == chosen.size <= even
    assert len({weight.format.bits for weight in stored}) > 1
    uniform = quantize_model(dense, CANDIDATES["4 bits"], windows)
    losses = [compare(one, dense, windows).kl_mean for one in (model, uniform)]
    assert losses[0] < losses[1]


def test_what_was_not_chosen_for_is_named(dense: Checkpoint, windows: Windows) -> None:
    with pytest.raises(QuantizeError, match=r"no format was chosen for model\.layers\.0"):
        quantize_model(dense, MixedQuantizer({}), windows)
    with pytest.raises(RequestError, match="probe is '5 bits'; expected one of 3 bits, 4 bits"):
        measure(dense, windows, CANDIDATES, "5 bits")
