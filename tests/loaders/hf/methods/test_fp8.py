"""``fp8``, ``modelopt`` and ``quark``: FP8 weights under other configs, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scaled_folders import DOWN, fresh_rng, llama_folder, load_from, quantized, refused

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import ActivationFormat, QuantizedLinear

N, K = 20, 96
STATIC = ActivationFormat("e4m3", True, 448.0, 0.25)


def weight() -> torch.Tensor:
    raw = fresh_rng().integers(0, 0x7F, (N, K)).astype(np.uint8)
    return torch.from_numpy(raw).view(torch.float8_e4m3fn)


def scalar(value: float = 0.5) -> torch.Tensor:
    return torch.tensor(value)


def test_blocks_are_multiplied_by_the_scale_that_is_called_inverse(tmp_path):
    scale = torch.rand(2, 3) + 0.1
    parts = {"weight": weight(), "weight_scale_inv": scale}
    config = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [16, 32],
    }
    linear, decisions, _ = load_from(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert isinstance(linear, QuantizedLinear)
    every = scale.repeat_interleave(16, 0)[:N].repeat_interleave(32, 1)
    assert torch.equal(linear.dequantize(), parts["weight"].float() * every)
    assert linear.format.group_size == 32 and linear.format.act is None
    assert any("groups of columns of each token" in text for text in decisions)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("inputs", ["static", "dynamic"])
def test_one_scale_for_the_tensor(tmp_path, name, inputs):
    parts = {"weight": weight(), name: scalar()}
    if inputs == "static":
        parts["input_scale"] = scalar(0.25)
    config = {"quant_method": "fp8", "activation_scheme": inputs, "ignored_layers": ["lm_head"]}
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert torch.equal(linear.dequantize(), parts["weight"].float() * 0.5)
    want = STATIC if inputs == "static" else ActivationFormat("e4m3", True, 448.0)
    assert linear.format.act == want


MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head*"]}


@pytest.mark.parametrize("place", ["config.json", "side file"])
def test_modelopt(tmp_path, place):
    parts = {"weight": weight(), "weight_scale": scalar(), "input_scale": scalar(0.25)}
    attention = "model.layers.0.self_attn."
    extra = {f"{attention}k_proj.k_scale": scalar(), f"{attention}v_proj.v_scale": scalar()}
    if place == "side file":
        side: dict[str, Any] = {"producer": {"name": "modelopt"}, "quantization": MODELOPT}
        folder = llama_folder(tmp_path / "m", (N, K), parts, {}, extra=extra, hf_quant_config=side)
    else:
        config = {"quant_method": "modelopt", **MODELOPT}
        folder = llama_folder(tmp_path / "m", (N, K), parts, config, extra=extra)
    linear, decisions, _ = load_from(folder)
    assert isinstance(linear, QuantizedLinear) and linear.format.act == STATIC
    assert torch.equal(linear.dequantize(), parts["weight"].float() * 0.5)
    assert any("kv_cache_quant_algo 'FP8' is not used" in text for text in decisions)


def test_a_module_that_the_config_excludes_but_the_file_quantizes(tmp_path):
    parts = {"weight": weight(), "weight_scale": scalar(), "input_scale": scalar()}
    config = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*.down_proj"]}
    _, _, warnings = load_from(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert any(f"{DOWN} is stored quantized although" in text for text in warnings)


FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": None}


def quark(**more: Any) -> dict[str, Any]:
    scheme = {"weight": FP8, "input_tensors": FP8, "output_tensors": None, "bias": None}
    scheme |= {key: more.pop(key) for key in list(more) if key in scheme}
    return {
        "quant_method": "quark",
        "global_quant_config": scheme,
        "exclude": ["lm_head"],
        "export": {"weight_format": "real_quantized", "pack_method": "reorder"},
    } | more


def test_quark(tmp_path):
    parts = {"weight": weight(), "weight_scale": scalar(), "input_scale": scalar(0.25)}
    cache = {"weight": FP8, "input_tensors": FP8, "output_tensors": FP8}
    config = quark(layer_quant_config={"*k_proj": cache, "*v_proj": cache})
    linear = quantized(llama_folder(tmp_path / "tensor", (N, K), parts, config))
    assert torch.equal(linear.dequantize(), parts["weight"].float() * 0.5)
    assert linear.format.act == STATIC
    parts = {"weight": weight(), "weight_scale": torch.rand(N)}
    rows = FP8 | {"qscheme": "per_channel", "ch_axis": 0}
    config = quark(weight=rows, input_tensors=None)
    linear = quantized(llama_folder(tmp_path / "rows", (N, K), parts, config))
    want = parts["weight"].float() * parts["weight_scale"].unsqueeze(1)
    assert torch.equal(linear.dequantize(), want)
    assert linear.format.act is None


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'; supported is e4m3"),
    "static blocks": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [8, 8]},
        "activation_scheme is 'static' with weight_block_size",
    ),
    "modelopt AWQ": (
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"},
        "quant_algo is 'W4A16_AWQ'; supported from ModelOpt are FP8, NVFP4",
    ),
    "modelopt int8": (
        {"quant_method": "modelopt", "quant_algo": "W8A8_SQ_PER_CHANNEL"},
        "use a compressed-tensors checkpoint",
    ),
    "quark int8": (quark(weight=FP8 | {"dtype": "int8"}), "weight.dtype is 'int8'; supported"),
    "quark groups": (quark(weight=FP8 | {"qscheme": "per_group"}), "is 'per_group of axis 0'"),
    "quark columns": (
        quark(weight=FP8 | {"qscheme": "per_channel", "ch_axis": 1}),
        "is 'per_channel of axis 1'",
    ),
    "quark dynamic": (
        quark(input_tensors=FP8 | {"is_dynamic": True}),
        "input_tensors.qscheme is 'per_tensor, dynamic True'",
    ),
    "quark outputs": (quark(output_tensors=FP8), "global_quant_config.output_tensors is 'set'"),
    "quark not rounded": (
        quark(export={"weight_format": "fake_quantized"}),
        "export.weight_format is 'fake_quantized'",
    ),
    "quark by layer": (
        quark(layer_quant_config={"*down_proj": {"weight": None}}),
        "layer_quant_config.*down_proj is",
    ),
    "quark by type": (
        quark(layer_type_quant_config={"Linear": {}}),
        "layer_type_quant_config is 'set'",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_implemented(tmp_path, case):
    config, part = UNSUPPORTED[case]
    parts = {"weight": weight(), "weight_scale": scalar()}
    folder = llama_folder(tmp_path / "m", (N, K), parts, config)
    refused(folder, UnsupportedModelError, str(tmp_path / "m"), part)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"quant_method": "fp8", "activation_scheme": "none"}, "activation_scheme is 'none'"),
        ({"quant_method": "fp8", "weight_block_size": [0, 8]}, "weight_block_size is [0, 8]"),
        ({"quant_method": "fp8", "ignored_layers": "a"}, "ignored_layers is 'a'; expected a list"),
        ({"quant_method": "modelopt"}, "quant_algo is missing"),
        ({"quant_method": "quark"}, "global_quant_config.weight.dtype is missing"),
        (
            {"quant_method": "fp8", "activation_scheme": "static"},
            f"tensor {DOWN}.input_scale is missing",
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [8, 8]},
            "weight_scale is []; expected [3, 12]",
        ),
    ],
)
def test_damaged(tmp_path, config, part):
    parts = {"weight": weight(), "weight_scale": scalar()}
    folder = llama_folder(tmp_path / "m", (N, K), parts, config)
    refused(folder, CheckpointError, str(tmp_path / "m"), part)


def test_bytes_are_refused(tmp_path):
    parts = {"weight": torch.zeros(N // 2, K, dtype=torch.uint8)}
    folder = llama_folder(tmp_path / "m", (N, K), parts, {"quant_method": "modelopt", **MODELOPT})
    refused(folder, UnsupportedModelError, "weight is U8, as 4-bit weights are stored")
