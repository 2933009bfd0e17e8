"""Scales moved into the op before change nothing but how numbers are stored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfbyte.engine.config import EngineConfig
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.folding import Origin, fold, origin_of
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import Overlay, dense_matrix
from halfbyte.quantize.walk import Walk

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Plain norms and grouped heads; four norms by 1 + w and biases nowhere; biases of q, k and v.
MODELS = ("fp16-llama-spm", "gguf-q5-bf16-ropefreqs-llama", "bnb-nf4-gemma2", "hqq-8b-g32-qwen3")


def logits(checkpoint: Overlay, ids: list[int]) -> Tensor:
    walk = Walk(checkpoint, EngineConfig(backend="reference"), [ids])
    for _ in range(walk.layers):
        walk.load_layer()
        walk.run_layer()
    return next(iter(walk.logits()))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantized", [False, True])
def test_logits_stay_when_every_origin_takes_a_scale(name: str, quantized: bool) -> None:
    """With matrices before quantized or not: rows of codes take scales as rows of floats do."""
    checkpoint = open_checkpoint(next(iter_models(FIXTURES / name)))
    model = Overlay(checkpoint)
    config = model.config
    ids = [random.randrange(config.vocab_size) for _ in range(12)]
    stem = "model.layers.{}.{}.weight"
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]
    mlp = ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]
    for layer in range(config.num_layers):
        for part in ("self_attn.v_proj", "mlp.up_proj"):
            key = stem.format(layer, part)
            matrix = dense_matrix(checkpoint, key)
            model.weights[key] = matrix
            if quantized:
                codes = UniformCodes(8, 32, False)
                model.weights[key] = NearestQuantizer(codes).quantize(key, matrix, None)
    before = logits(model, ids)
    changed: set[str] = set()
    for layer in range(config.num_layers):
        for group in (*parts, *mlp):
            keys = [stem.format(layer, part) for part in group]
            modules = tuple(key.removesuffix(".weight") for key in keys)
            origin = origin_of(config, layer, modules)
            assert origin is not None
            scale = origin.tied(torch.rand(model.load(keys[0]).shape[1]) + 0.5)
            found = fold(origin, scale, model, model.weights)
            assert found is not None
            changed.add(origin.module)
            for key in keys:
                weight = model.load(key)
                if isinstance(weight, QuantizedLinear):  # what the origin before it gave back
                    weight = weight.dequantize()
                model.weights[key] = weight.float() * found
    assert len(changed) == 4 * config.num_layers
    after = logits(model, ids)
    # Steps in float16 lose half a unit in the eleventh digit when they take a scale.
    bound = (4e-3 if quantized else 1e-4) * float(before.abs().max())
    assert float((after - before).abs().max()) < bound


def iter_models(folder: Path) -> Iterator[Path]:
    files = sorted(folder.glob("*.gguf"))
    return iter(files or [folder])


def test_norms_of_16_bits_leave_their_rounding_to_the_matrices() -> None:
    checkpoint = open_checkpoint(FIXTURES / "fp16-llama-spm")
    model, name = Overlay(checkpoint), "model.layers.0.input_layernorm"
    norm = model.load(f"{name}.weight")
    assert isinstance(norm, Tensor)
    model.weights[f"{name}.weight"] = norm = norm.half()
    scale = torch.rand(len(norm)) + 0.5
    found = fold(Origin(name, True), scale, model, model.weights)
    new = model.weights[f"{name}.weight"]
    assert isinstance(new, Tensor)
    assert new.dtype == torch.float16
    assert found is not None
    # The numbers stored times the scale returned are the old ones, in float32.
    assert float((new.float() * found - norm.float()).abs().max()) < 1e-6
    assert float((found / scale - 1).abs().max()) < 1e-3


def test_a_norm_of_zeros_takes_no_scale() -> None:
    model, name = Overlay(open_checkpoint(FIXTURES / "fp16-llama-spm")), "model.norm"
    weight = torch.ones(model.config.hidden_size)
    weight[3] = 0
    model.weights[f"{name}.weight"] = weight
    found = fold(Origin(name, True), torch.full_like(weight, 2.0), model, model.weights)
    assert found is not None
    assert float(found[3]) == 1.0
    assert float(found[4]) == 2.0


def test_steps_that_float16_could_not_hold_take_no_scale() -> None:
    model = Overlay(open_checkpoint(FIXTURES / "fp16-llama-spm"))
    key = "model.layers.0.mlp.up_proj.weight"
    matrix = dense_matrix(model, key)
    model.weights[key] = NearestQuantizer(UniformCodes(4, 32)).quantize(key, matrix, None)
    scale = torch.full((matrix.shape[0],), 3e4)
    origin = Origin("model.layers.0.mlp.up_proj", False)
    before = model.weights[key]
    assert fold(origin, scale, model, model.weights) is None
    assert model.weights[key] is before
