"""Scales folded into norms, v_proj and up_proj are found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from halfbyte.kernels.formats.canonical import Weight
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.quantize.judge import compare
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import Overlay
from halfbyte.quantize.unfold import find_folded
from halfbyte.quantize.windows import Windows

FIXTURES = Path(__file__).parents[1] / "fixtures"
WINDOWS = Windows(tuple(tuple(range(5 + i, 45 + i)) for i in range(3)))


def replaced(model: Checkpoint, weights: dict[str, Weight]) -> Overlay:
    """A checkpoint with other weights, floats or codes."""
    overlay = Overlay(model)
    overlay.weights.update(weights)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return overlay


def dense(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    weight = checkpoint.load(f"{name}.weight")
    return weight.float() if isinstance(weight, torch.Tensor) else weight.dequantize()


def drawn(count: int) -> torch.Tensor:
    return torch.rand(count) * 2 + 0.5


def folded(model: Checkpoint, codes: UniformCodes | None = None) -> Overlay:
    """Random scales in all four places of each layer, and the matrices quantized if asked for."""
    config = model.config
    weights: dict[str, Weight] = {}
    for layer in range(config.num_layers):
        name = f"model.layers.{layer}"
        attn, mlp = f"{name}.self_attn", f"{name}.mlp"
        parts = [f"{attn}.{x}_proj" for x in "qkvo"]
        parts += [f"{mlp}.{x}_proj" for x in ("gate", "up", "down")]
        found = {module: dense(model, module) for module in parts}
        between = "pre_feedforward" if config.post_norms else "post_attention"
        for norm, readers in (
            (f"{name}.input_layernorm", [f"{attn}.{x}_proj" for x in "qkv"]),
            (f"{name}.{between}_layernorm", [f"{mlp}.gate_proj", f"{mlp}.up_proj"]),
        ):
            scale = drawn(config.hidden_size)
            offset = config.norm_offset
            weights[f"{norm}.weight"] = (dense(model, norm) + offset) / scale - offset
            for reader in readers:
                found[reader] = found[reader] * scale
        scale = drawn(config.num_kv_heads * config.head_dim)
        found[f"{attn}.v_proj"] = found[f"{attn}.v_proj"] / scale[:, None]
        if config.qkv_bias:
            weights[f"{attn}.v_proj.bias"] = dense_bias(model, f"{attn}.v_proj") / scale
        wide = scale.view(config.num_kv_heads, -1)
        wide = wide.repeat_interleave(config.num_heads // config.num_kv_heads, 0).flatten()
        found[f"{attn}.o_proj"] = found[f"{attn}.o_proj"] * wide
        scale = drawn(config.intermediate_size)
        found[f"{mlp}.up_proj"] = found[f"{mlp}.up_proj"] / scale[:, None]
        found[f"{mlp}.down_proj"] = found[f"{mlp}.down_proj"] * scale
        for module, weight in found.items():
            key = f"{module}.weight"
            if codes is None:
                weights[key] = weight
            else:
                weights[key] = NearestQuantizer(codes).quantize(key, weight, None)
    return replaced(model, weights)


def dense_bias(model: Checkpoint, module: str) -> torch.Tensor:
    bias = model.load(f"{module}.bias")
    assert isinstance(bias, torch.Tensor)
    return bias.float()


@pytest.fixture(params=["fp16-llama-spm", "awq-gemm-g32-keep-qwen2", "ct-fp8-dynamic-gemma3"])
def model(request: pytest.FixtureRequest) -> Iterator[Checkpoint]:
    """Grouped heads; biases; norms that hold w of 1 + w, and norms behind the blocks."""
    checkpoint = open_checkpoint(FIXTURES / request.param)
    yield checkpoint
    checkpoint.close()


def test_scales_alone_lose_nothing(model: Checkpoint) -> None:
    """Float32 on both sides but for rounding of the scaled weights: errors of 1e-6, not of 1. Where
    the reference's format rounds inputs (float8), those of the scaled floats are exact: 5e-2.
    """
    limit = 5e-2 if model.path.name == "ct-fp8-dynamic-gemma3" else 1e-5
    found = compare(folded(model), model, WINDOWS, linears=True)
    for layer in found.layers:
        assert len(layer.linears) == 7
        for score in layer.linears:
            assert score.relative < limit, score
            assert score.undone
    assert found.kl_mean < limit


def test_rounded_matrices_show_their_own_error(model: Checkpoint) -> None:
    """As large as when the same rounding meets the same scales, whose factors are known exactly;
    fitted ones are off by the error over the root of K: 15 % covers that.
    """
    codes = UniformCodes(4, 32)
    with_scales = folded(model)
    without = compare(folded_codes(with_scales, codes), with_scales, WINDOWS, linears=True)
    both = compare(folded_codes(with_scales, codes), model, WINDOWS, linears=True)
    for known, seen in zip(without.layers[0].linears, both.layers[0].linears, strict=True):
        assert not known.undone and seen.undone
        assert seen.relative == pytest.approx(known.relative, rel=0.15), seen.module


def folded_codes(model: Overlay, codes: UniformCodes) -> Overlay:
    return replaced(
        model,
        {
            name: NearestQuantizer(codes).quantize(name, weight, None)
            for name, weight in model.weights.items()
            if isinstance(weight, torch.Tensor) and name.endswith("_proj.weight")
        },
    )


def test_rounding_alone_is_not_taken_for_scales() -> None:
    model = open_checkpoint(FIXTURES / "fp16-llama-spm")
    for bits in (2, 4, 8):
        weights: dict[str, Weight] = {}
        modules = [f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"]
        modules += [f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")]
        for module in modules:
            key = f"{module}.weight"
            quantizer = NearestQuantizer(UniformCodes(bits, 32))
            weights[key] = quantizer.quantize(key, dense(model, module), None)
        rounded = replaced(model, weights)
        for module, found in find_folded(rounded, model, 0, modules).items():
            assert found.inputs is None and found.outputs is None and not found.scaled, module
    model.close()
