"""MXFP4 and NVFP4 folders against numbers worked out from the definitions, one at a time."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from loader_hf_files import TINY_CONFIG
from safetensors.torch import load_file, save_file
from scaled_folders import DOWN, ct_config, fresh_rng, llama_folder, load_from, quantized, refused
from torch import Tensor

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.kernels.formats.compact import ByteScales
from halfbyte.kernels.formats.stored import StoredLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import load_stored
from halfbyte.loaders.files.fields import Fields
from halfbyte.loaders.hf.config import read_config
from halfbyte.loaders.model.checks import expected_tensors
from halfbyte.loaders.model.report import LoadReport

N, K = 24, 96
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
LOCAL = NVFP4 | {"dynamic": "local"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


def entry(code: int) -> float:
    """E2M1: a sign, two bits of exponent with a bias of 1, one of mantissa; 0 has no exponent."""
    exponent, fraction = code >> 1 & 3, code & 1
    size = fraction / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction / 2)
    return math.copysign(size, -1.0 if code & 8 else 1.0)


def e4m3(byte: int) -> float:
    byte = int(byte)
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = 2.0**-9 * fraction if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction / 8)
    return -size if byte & 128 else size


def drawn_pairs(rng: np.random.Generator, n: int = N, k: int = K) -> tuple[np.ndarray, Tensor]:
    """Codes [N, K], every one among them, and their bytes: the first code in the low bits."""
    codes = rng.integers(0, 16, (n, k))
    codes.flat[:16] = range(16)
    return codes, torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8))


def drawn_nvfp4(rng: np.random.Generator, n: int = N, k: int = K) -> tuple[np.ndarray, Tensor]:
    """Bytes [N, K / 16] of any e4m3 numbers, and the tensor."""
    raw = rng.integers(0, 254, (n, k // 16)).astype(np.uint8)
    raw[raw >= 127] += 1
    return raw, torch.from_numpy(raw.copy()).view(torch.float8_e4m3fn)


def meant(codes: np.ndarray, scales: np.ndarray, group: int) -> Tensor:
    """Entries times float32 scales [N, G], rounded to float32."""
    entries = np.vectorize(entry)(codes).astype(np.float32)
    return torch.from_numpy(entries * np.repeat(scales.astype(np.float32), group, axis=1))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.exact
@pytest.mark.parametrize("tool", ["compressed-tensors", "modelopt", "modelopt side file"])
@pytest.mark.parametrize("shape", [(1,), ()], ids=str)
def test_nvfp4_weights(tmp_path, tool, shape):
    rng = fresh_rng()
    (codes, pairs), (raw, scale) = drawn_pairs(rng), drawn_nvfp4(rng)
    number = np.float32(rng.uniform(1e-3, 3e3))
    factor = torch.tensor(number).reshape(shape)
    values = np.vectorize(e4m3)(raw).astype(np.float32)
    if tool == "compressed-tensors":
        parts = {"weight_packed": pairs, "weight_scale": scale, "weight_global_scale": factor}
        config = ct_config(NVFP4, format="nvfp4-pack-quantized")
        folder, scales = llama_folder(tmp_path / "m", (N, K), parts, config), values / number
    else:
        parts = {"weight": pairs, "weight_scale": scale, "weight_scale_2": factor}
        parts["input_scale"] = torch.tensor(0.5)
        side: dict[str, Any] = {"hf_quant_config": {"quantization": MODELOPT | {"group_size": 16}}}
        if tool == "modelopt":
            folder = llama_folder(tmp_path / "m", (N, K), parts, MODELOPT)
        else:
            folder = llama_folder(tmp_path / "m", (N, K), parts, {}, **side)
        scales = values * number
    linear = quantized(folder)
    assert same_bits(linear.dequantize(), meant(codes, scales, 16))
    assert isinstance(linear.compact, ByteScales) and linear.compact.factors is not None
    assert np.array_equal(linear.compact.scales.view(torch.uint8).numpy(), raw)
    assert linear.format.group_size == 16 and linear.format.act is None


@pytest.mark.exact
@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e8m0fnu], ids=str)
def test_mxfp4_weights_of_compressed_tensors(tmp_path, kind):
    rng = fresh_rng()
    codes, pairs = drawn_pairs(rng)
    exponents = rng.integers(0, 252, (N, K // 32)).astype(np.uint8)
    exponents.flat[0] = 0  # a subnormal scale
    parts = {"weight_packed": pairs, "weight_scale": torch.from_numpy(exponents).view(kind)}
    config = ct_config(MXFP4, format="mxfp4-pack-quantized")
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    scales = np.exp2(exponents.astype(np.float64) - 127)
    assert same_bits(linear.dequantize(), meant(codes, scales, 32))
    assert linear.compact is not None and linear.compact.form.dtype == "F8_E8M0"


def blocks_of(pairs: Tensor) -> Tensor:
    return pairs.view(*pairs.shape[:-1], -1, 16)


@pytest.mark.exact
def test_mxfp4_matrices_of_transformers(tmp_path):
    rng = fresh_rng()
    codes, pairs = drawn_pairs(rng)
    exponents = rng.integers(110, 140, (N, K // 32)).astype(np.uint8)
    extra = {f"{DOWN}_blocks": blocks_of(pairs), f"{DOWN}_scales": torch.from_numpy(exponents)}
    folder = llama_folder(tmp_path / "m", (N, K), {}, {"quant_method": "mxfp4"}, extra=extra)
    without_weight(folder)
    scales = np.exp2(exponents.astype(np.float64) - 127)
    assert same_bits(quantized(folder).dequantize(), meant(codes, scales, 32))


def without_weight(folder) -> None:
    """The folder less the float16 matrix of the module."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{DOWN}.weight"]
    save_file(tensors, folder / "model.safetensors")


def ct_parts(rng: np.random.Generator, **other: Tensor) -> dict[str, Tensor]:
    parts = {
        "weight_packed": drawn_pairs(rng)[1],
        "weight_scale": drawn_nvfp4(rng)[1],
        "weight_global_scale": torch.tensor([448.0]),
    }
    return parts | other


def nvfp4_folder(path, rng: np.random.Generator, less: str = "", **other: Tensor):
    parts = ct_parts(rng, **other)
    parts.pop(less, None)
    return llama_folder(path, (N, K), parts, ct_config(NVFP4, format="nvfp4-pack-quantized"))


def one_bad(value: Tensor, byte: int) -> Tensor:
    value = value.clone()
    value.view(torch.uint8)[3, 2] = byte
    return value


@pytest.mark.parametrize("name", ["weight_scale", "weight_global_scale"])
def test_missing_parts_are_named(tmp_path, name):
    folder = nvfp4_folder(tmp_path / "m", fresh_rng(), less=name)
    refused(folder, CheckpointError, f"{DOWN}.{name} is missing; the weight is NVFP4")


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_global_scales_that_are_no_factors_are_refused(tmp_path, value):
    given = torch.tensor([value])
    folder = nvfp4_folder(tmp_path / "m", fresh_rng(), weight_global_scale=given)
    says = "holds 0; expected a factor" if value == 0 else f"holds {value} at element 0"
    refused(folder, CheckpointError, f"{DOWN}.weight_global_scale {says}")


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_scales_that_are_no_numbers_are_refused(tmp_path, byte):
    rng = fresh_rng()
    scale = one_bad(drawn_nvfp4(rng)[1], byte)
    folder = nvfp4_folder(tmp_path / "m", rng, weight_scale=scale)
    at = 3 * (K // 16) + 2
    refused(folder, CheckpointError, f"{DOWN}.weight_scale holds nan at element {at}")


def test_scales_over_a_tiny_factor_are_refused(tmp_path):
    rng = fresh_rng()
    scale = torch.full((N, K // 16), 448.0).to(torch.float8_e4m3fn)
    given = torch.tensor([1e-36])
    folder = nvfp4_folder(tmp_path / "m", rng, weight_scale=scale, weight_global_scale=given)
    refused(folder, CheckpointError, f"{DOWN}.weight_scale: the scale of row 0, group 0 is", "inf")


def mxfp4_folder(path, rng: np.random.Generator, scale: Tensor, **more: Any):
    parts = {"weight_packed": drawn_pairs(rng)[1], "weight_scale": scale}
    config = ct_config(MXFP4, format="mxfp4-pack-quantized", **more)
    return llama_folder(path, (N, K), parts, config)


@pytest.mark.parametrize(
    ("byte", "says"),
    [
        (255, "holds the exponent 255 (NaN) in row 3, group 2; expected 0 to 254"),
        (253, "the scale of row 3, group 2 is 8.50706e+37, and 6 times that is infinite"),
    ],
)
def test_exponents_that_make_no_weights_are_refused(tmp_path, byte, says):
    scale = one_bad(torch.full((N, K // 32), 120, dtype=torch.uint8), byte)
    refused(mxfp4_folder(tmp_path / "m", fresh_rng(), scale), CheckpointError, DOWN, says)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (torch.ones(N, K // 32), "weight_scale is F32; expected U8 or F8_E8M0"),
        (torch.ones(N, K // 16, dtype=torch.uint8), f"expected [{N}, 3] (3 groups of 32)"),
        (torch.ones(N, dtype=torch.uint8), f"expected [{N}, 3] (3 groups of 32)"),
    ],
)
def test_scales_of_the_wrong_kind_are_refused(tmp_path, scale, says):
    refused(mxfp4_folder(tmp_path / "m", fresh_rng(), scale), CheckpointError, DOWN, says)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (torch.zeros(N, K, dtype=torch.uint8), f"expected [{N}, {K // 2}] (two codes to a byte"),
        (torch.zeros(N, K // 8, dtype=torch.int32), "weight_packed is I32; expected U8"),
    ],
)
def test_codes_of_the_wrong_kind_are_refused(tmp_path, pairs, says):
    folder = nvfp4_folder(tmp_path / "m", fresh_rng(), weight_packed=pairs)
    refused(folder, CheckpointError, DOWN, says)


def test_columns_that_are_no_whole_groups_are_refused(tmp_path):
    n, k = 24, 72
    parts = {
        "weight_packed": torch.zeros(n, k // 2, dtype=torch.uint8),
        "weight_scale": torch.ones(n, 5).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.ones(1),
    }
    folder = llama_folder(tmp_path / "m", (n, k), parts, ct_config(NVFP4))
    refused(folder, CheckpointError, DOWN, "groups of 16 do not divide K = 72")


def test_global_scales_of_several_numbers_are_refused(tmp_path):
    folder = nvfp4_folder(tmp_path / "m", fresh_rng(), weight_global_scale=torch.ones(N))
    refused(folder, CheckpointError, "weight_global_scale is [24]; expected [1]")


@pytest.mark.parametrize("inputs", [LOCAL, MXFP4 | {"dynamic": True}], ids=["local", "groups"])
def test_inputs_that_recipes_round_to_four_bits_are_kept(tmp_path, inputs):
    rng = fresh_rng()
    parts = ct_parts(rng, input_global_scale=torch.tensor([3.0]))
    config = ct_config(NVFP4, format="nvfp4-pack-quantized", input_activations=inputs)
    weight, decisions, warnings = load_from(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert isinstance(weight, QuantizedLinear) and weight.format.act is None
    assert any("rounds them to 4-bit floats" in text for text in decisions)
    assert not any("input" in text for text in warnings)


@pytest.mark.parametrize("name", ["NVFP4", "nvfp4a16"])
def test_presets(tmp_path, name):
    config = ct_config({}) | {"format": "nvfp4-pack-quantized"}
    config["config_groups"] = {name: ["Linear"]}
    folder = llama_folder(tmp_path / "m", (N, K), ct_parts(fresh_rng()), config)
    weight, decisions, _ = load_from(folder)
    assert isinstance(weight, QuantizedLinear) and weight.compact is not None
    assert any("4-bit floats" in text for text in decisions) == (name == "NVFP4")


def test_inputs_of_eight_bits_beside_pairs_are_refused(tmp_path):
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    config = ct_config(NVFP4, format="nvfp4-pack-quantized", input_activations=inputs)
    folder = llama_folder(tmp_path / "m", (N, K), ct_parts(fresh_rng()), config)
    refused(folder, UnsupportedModelError, "rounds inputs to FP8 per token", "4-bit floats")


def test_labels_that_contradict_the_tensors_are_reported(tmp_path):
    config = ct_config(NVFP4, format="pack-quantized")
    folder = llama_folder(tmp_path / "m", (N, K), ct_parts(fresh_rng()), config)
    weight, _, warnings = load_from(folder)
    assert isinstance(weight, QuantizedLinear)
    assert any(
        "labelled pack-quantized, but its weights are stored in pairs" in w for w in warnings
    )


@pytest.mark.parametrize("size", [32, 128])
def test_modelopt_groups_that_are_not_of_the_format_are_refused(tmp_path, size):
    config = MODELOPT | {"group_size": size}
    folder = llama_folder(tmp_path / "m", (N, K), ct_parts(fresh_rng()), config)
    refused(folder, CheckpointError, f"group_size is {size}; expected 16 for NVFP4")


def test_codes_stay_in_the_file_until_they_are_wanted(tmp_path):
    checkpoint = open_checkpoint(nvfp4_folder(tmp_path / "m", fresh_rng()))
    weight = load_stored(checkpoint, f"{DOWN}.weight")
    assert isinstance(weight, StoredLinear)
    (info,) = [t for t in checkpoint.tensors() if t.name == f"{DOWN}.weight"]
    assert weight.compact_form == info.compact and info.label == "NVFP4"
    assert info.nbytes == N * (K // 2 + K // 16) + 4
    checkpoint.close()


MIXTURE = TINY_CONFIG | {
    **{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64},
    **{"head_dim": 32, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
EXPERTS = "model.layers.0.mlp.experts."


def mixture_folder(path, stacks: dict[str, Tensor]):
    """A mixture whose experts' matrices are in stacks, beside zeros."""
    path.mkdir()
    config = MIXTURE | {"quantization_config": {"quant_method": "mxfp4"}}
    (path / "config.json").write_text(json.dumps(config))
    empty = Fields("m/generation_config.json", {})
    given = "m/config.json", config, empty, "m", "float16", LoadReport("safetensors")
    shapes = expected_tensors(read_config(*given))
    dense = {name: torch.zeros(s).half() for name, s in shapes.items() if EXPERTS not in name}
    save_file(dense | stacks, path / "model.safetensors")
    return path


def drawn_stacks(rng: np.random.Generator) -> dict[str, Tensor]:
    stacks = {}
    for name, (n, k) in {"gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}.items():
        blocks = rng.integers(0, 256, (3, n, k // 32, 16)).astype(np.uint8)
        exponents = rng.integers(110, 140, (3, n, k // 32)).astype(np.uint8)
        stacks[f"{EXPERTS}{name}_blocks"] = torch.from_numpy(blocks)
        stacks[f"{EXPERTS}{name}_scales"] = torch.from_numpy(exponents)
    return stacks


@pytest.mark.exact
def test_stacks_of_experts_are_those_of_transformers(tmp_path):
    peer = pytest.importorskip("transformers.integrations.mxfp4")
    stacks = drawn_stacks(fresh_rng())
    checkpoint = open_checkpoint(mixture_folder(tmp_path / "m", stacks))
    for name in ("gate_proj", "up_proj", "down_proj"):
        parts = stacks[f"{EXPERTS}{name}_blocks"], stacks[f"{EXPERTS}{name}_scales"]
        want = peer.convert_moe_packed_tensors(*parts, dtype=torch.float32)
        for expert in range(3):
            weight = checkpoint.load(f"{EXPERTS}{expert}.{name}.weight")
            assert isinstance(weight, QuantizedLinear)
            assert same_bits(weight.dequantize(), want[expert].T.contiguous())
    sizes = [info.nbytes for info in checkpoint.tensors() if info.label == "MXFP4"]
    assert sum(sizes) == sum(part.nbytes for part in stacks.values())
    checkpoint.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop(f"{EXPERTS}up_proj_scales"), "experts.0.up_proj.scales is missing"),
        (
            lambda s: s.update({f"{EXPERTS}up_proj_blocks": s[f"{EXPERTS}up_proj_blocks"][:2]}),
            "up_proj_blocks is [2, 32, 2, 16]; expected [3, 32, 2, 16]",
        ),
        (
            lambda s: s[f"{EXPERTS}up_proj_scales"].__setitem__((0, 3, 1), 255),
            "up_proj_scales[0] holds the exponent 255 (NaN) in row 3, group 1",
        ),
        (
            lambda s: s.update({f"{EXPERTS}up_proj_scales": torch.zeros(3, 32, 2)}),
            "up_proj_scales is F32; expected U8",
        ),
    ],
)
def test_damaged_stacks_are_refused(tmp_path, change, says):
    stacks = drawn_stacks(fresh_rng())
    change(stacks)
    folder = mixture_folder(tmp_path / "m", stacks)
    refused(folder, CheckpointError, says, module=f"{EXPERTS}0.up_proj")
