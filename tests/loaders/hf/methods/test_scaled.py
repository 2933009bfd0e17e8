"""int8 and FP8 weights as they are stored: scales, zero points, rules of the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scaled_folders import codes, ct_config, fresh_rng, llama_folder, load_from, quantized

from halfbyte.kernels.formats.canonical import ActivationFormat, QuantizedLinear, can_fuse

N, K = 20, 96
TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}


def weights(strategy: str = "channel", **more: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy} | more


def fp8(rng: np.random.Generator, n: int = N, k: int = K) -> torch.Tensor:
    """Any numbers of e4m3: every byte but the two that are none."""
    raw = rng.integers(0, 254, (n, k)).astype(np.uint8)
    raw[raw >= 127] += 1  # leaves out 0x7F; 0xFF is never drawn
    return torch.from_numpy(raw).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("label", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("shape", [(N, 1), (N,), (1,), ()], ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_int8_weights(tmp_path, shape, symmetric, label):
    rng = fresh_rng()
    q_NK = codes(rng, N, K, 8)
    scale = torch.tensor(rng.uniform(0.01, 0.2, shape).astype(np.float16))
    parts = {"weight": torch.from_numpy(q_NK.astype(np.int8)), "weight_scale": scale}
    zero = torch.zeros(shape)
    if not symmetric:
        zero = torch.tensor(rng.integers(-128, 128, shape), dtype=torch.int8)
        parts["weight_zero_point"] = zero
    strategy = "channel" if len(shape) and shape[0] == N else "tensor"
    config = ct_config(weights(strategy, symmetric=symmetric), format=label)
    config["config_groups"]["group_0"]["input_activations"] = TOKEN
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    column = (N if strategy == "channel" else 1, 1)
    zero = zero.float().reshape(column)
    want = (torch.from_numpy(q_NK.astype(np.float32)) - zero) * scale.float().reshape(column)
    assert torch.equal(linear.dequantize(), want)
    assert linear.scales.shape == (N, 1) and linear.scales.dtype == torch.float16
    assert linear.format.act == ActivationFormat("int8", True, 127.5)


@pytest.mark.parametrize("bits", range(2, 8))
def test_narrower_integers_one_to_a_byte(tmp_path, bits):
    rng = fresh_rng()
    q_NK = codes(rng, N, K, bits)
    scale = torch.tensor(rng.uniform(0.01, 0.2, (N, 3)).astype(np.float32))
    parts = {"weight": torch.from_numpy(q_NK.astype(np.int8)), "weight_scale": scale}
    config = ct_config(weights("group", group_size=32, num_bits=bits), format="int-quantized")
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    want = torch.from_numpy(q_NK.astype(np.float32)) * scale.repeat_interleave(32, 1)
    assert linear.format.bits == bits
    assert torch.equal(linear.dequantize(), want)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_static_inputs(tmp_path, symmetric):
    rng = fresh_rng()
    scale = float(np.float16(rng.uniform(0.01, 0.2)))
    parts = {
        "weight": torch.from_numpy(codes(rng, N, K, 8).astype(np.int8)),
        "weight_scale": torch.ones(N, 1),
        "input_scale": torch.tensor([scale], dtype=torch.float16),
    }
    zero = 0
    if not symmetric:
        zero = int(rng.integers(-128, 128))
        parts["input_zero_point"] = torch.tensor([zero], dtype=torch.int8)
    inputs = STATIC | {"symmetric": symmetric}
    config = ct_config(weights(), input_activations=inputs, format="int-quantized")
    act = quantized(llama_folder(tmp_path / "m", (N, K), parts, config)).format.act
    assert act == ActivationFormat("int8", symmetric, 127.5, scale, zero)


def test_projections_with_different_static_scales_do_not_fuse(tmp_path):
    linears = []
    for i, scale in enumerate((0.5, 0.5, 0.25)):
        parts = {
            "weight": torch.ones(N, K, dtype=torch.int8),
            "weight_scale": torch.ones(N, 1),
            "input_scale": torch.tensor([scale]),
        }
        config = ct_config(weights(), input_activations=STATIC, format="int-quantized")
        linears.append(quantized(llama_folder(tmp_path / str(i), (N, K), parts, config)))
    assert can_fuse(linears[:2])
    assert not can_fuse(linears)


@pytest.mark.parametrize("inputs", [None, "token", "static"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_fp8_weights(tmp_path, strategy, inputs):
    rng = fresh_rng()
    weight = fp8(rng)
    # Blocks that divide neither N nor K: the last ones are cut.
    shape = {"tensor": (1,), "channel": (N, 1), "block": (3, 3)}[strategy]
    scale = torch.tensor(rng.uniform(0.01, 0.2, shape).astype(np.float32))
    parts = {"weight": weight, "weight_scale": scale}
    more = {"block_structure": [8, 40]} if strategy == "block" else {}
    given = None
    if inputs is not None:
        given = {"token": TOKEN, "static": STATIC}[inputs] | {"type": "float"}
        if inputs == "static":
            parts["input_scale"] = torch.tensor([0.125])
    config = ct_config(
        weights(strategy, type="float", **more), input_activations=given, format="float-quantized"
    )
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    if strategy == "block":
        scale = scale.repeat_interleave(8, 0)[:N].repeat_interleave(40, 1)[:, :K]
    assert torch.equal(linear.dequantize(), weight.float() * scale)
    assert (linear.format.zero, linear.codes.dtype) == ("e4m3", torch.uint8)
    assert linear.format.group_size == (40 if strategy == "block" else -1)
    want = {
        None: None,
        "token": ActivationFormat("e4m3", True, 448.0),
        "static": ActivationFormat("e4m3", True, 448.0, 0.125),
    }
    assert linear.format.act == want[inputs]


def test_inputs_rounded_by_groups_are_kept_whole_and_that_is_said(tmp_path):
    rng = fresh_rng()
    group = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128}
    config = ct_config(
        weights("block", type="float", block_structure="32x32"),
        input_activations=group | {"dynamic": True},
        format="float-quantized",
    )
    parts = {"weight": fp8(rng), "weight_scale": torch.ones(1, 3)}
    weight, decisions, _ = load_from(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert isinstance(weight, QuantizedLinear) and weight.format.act is None
    assert any("groups of columns of each token" in text for text in decisions)


def test_presets(tmp_path):
    rng = fresh_rng()
    parts = {"weight": fp8(rng), "weight_scale": torch.ones(N, 1)}
    config = ct_config({}, format="float-quantized", config_groups={"FP8_dynamic": ["Linear"]})
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert linear.format.act == ActivationFormat("e4m3", True, 448.0)


@pytest.mark.parametrize(
    "names",
    [
        ("k_scale", "v_scale"),
        ("q_scale", "k_scale", "v_scale", "prob_output_scale"),
        ("attn.q_scale", "attn.k_scale", "attn.v_scale", "attn.prob_scale"),
        ("q_proj.output_scale", "k_proj.output_scale", "v_proj.output_scale"),
        ("kv_scale",),
        ("qkv_proj.k_scale", "qkv_proj.v_scale"),
        ("k_scale", "k_zero_point", "v_scale", "v_zero_point"),
    ],
    ids=lambda names: names[0],
)
def test_scales_of_quantized_attention_are_known_and_not_used(tmp_path, names):
    attention = "model.layers.0.self_attn."
    extra = {attention + name: torch.ones(1) for name in names}
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    config = ct_config(weights(), format="int-quantized", kv_cache_scheme=scheme)
    parts = {"weight": torch.ones(N, K, dtype=torch.int8), "weight_scale": torch.ones(N, 1)}
    folder = llama_folder(tmp_path / "dense attention", (N, K), parts, config, extra=extra)
    weight, decisions, warnings = load_from(folder, attention + "k_proj")
    assert torch.equal(weight, torch.zeros(N // 2, N, dtype=torch.float16))  # type: ignore
    assert any(f"({', '.join(sorted(names))})" in text for text in decisions)
    assert not any("_scale" in text for text in warnings)
    parts = {"weight": torch.ones(N // 2, N, dtype=torch.int8), "weight_scale": torch.ones(10, 1)}
    extra = {attention + "k_proj.output_scale": torch.ones(1)}
    folder = llama_folder(
        tmp_path / "quantized", (N, K), parts, config, attention + "k_proj", extra
    )
    assert torch.equal(quantized(folder, attention + "k_proj").dequantize(), torch.ones(N // 2, N))
