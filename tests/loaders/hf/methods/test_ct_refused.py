"""compressed-tensors folders that are damaged, crafted or not implemented: each its own message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scaled_folders import DOWN, ct_config, llama_folder, packed_parts, refused
from torch import Tensor

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError

N, K, GROUP = 8, 64, 32
Change = Callable[[dict[str, Tensor]], object]
PACKED = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}


def packed() -> dict[str, Tensor]:
    codes = torch.arange(N * K).reshape(N, K).numpy() % 16 - 8
    return packed_parts(codes, torch.ones(N, K // GROUP), 4)


def scaled(dtype: torch.dtype = torch.int8) -> dict[str, Tensor]:
    return {"weight": torch.ones(N, K).to(dtype), "weight_scale": torch.ones(N, 1)}


def put(name: str, value: Tensor) -> Change:
    return lambda parts: parts.update({name: value})


def drop(name: str) -> Change:
    return lambda parts: parts.pop(name)


def spoiled(value: float) -> Tensor:
    scale = torch.ones(N, K // GROUP)
    scale[1, 1] = value
    return scale


ORDER = torch.arange(K, dtype=torch.int32) // GROUP
TENSORS: dict[str, tuple[Change, dict[str, Any], str]] = {
    "no scales": (drop("weight_scale"), {}, "weight_scale is missing; the weight is packed"),
    "no shape": (drop("weight_shape"), {}, "weight_shape is missing"),
    "another shape": (
        put("weight_shape", torch.tensor([N, K + 1])),
        {},
        f"weight_shape holds [{N}, {K + 1}]; expected [{N}, {K}]",
    ),
    "shape of three": (put("weight_shape", torch.ones(3).long()), {}, "expected two numbers"),
    "words too few": (
        put("weight_packed", torch.zeros(N, 7, dtype=torch.int32)),
        {},
        f"weight_packed is [{N}, 7]; expected [{N}, 8] for 4-bit [{N}, {K}]",
    ),
    "packed in floats": (put("weight_packed", torch.zeros(N, 8)), {}, "is F32; expected I32"),
    "NaN scale": (put("weight_scale", spoiled(float("nan"))), {}, "holds nan at element 3"),
    "infinite scale": (put("weight_scale", spoiled(float("inf"))), {}, "holds inf at element 3"),
    "integer scales": (
        put("weight_scale", torch.ones(N, 2, dtype=torch.int32)),
        {},
        "weight_scale is I32; expected F16 or BF16 or F32",
    ),
    "scales too many": (
        put("weight_scale", torch.ones(N, 3)),
        {},
        f"weight_scale is [{N}, 3]; expected [{N}, 2] (4-bit g32 sym)",
    ),
    "groups that do not divide": (
        lambda parts: None,
        {"group_size": 48},
        f"groups of 48 do not divide K = {K}",
    ),
    "no zero points": (
        lambda parts: None,
        {"symmetric": False},
        "weight_zero_point is missing; the config says asymmetric",
    ),
    "zero points of the wrong shape": (
        put("weight_zero_point", torch.zeros(2, 2, dtype=torch.int32)),
        {"symmetric": False},
        "weight_zero_point is [2, 2]; expected [1, 2]",
    ),
    "zero points in symmetric weights": (
        put("weight_zero_point", torch.full((1, 2), 0x11111111, dtype=torch.int32)),
        {},
        "holds -7, but the config says that weights are symmetric",
    ),
    "order missing": (
        lambda parts: None,
        {"actorder": "group"},
        "weight_g_idx is missing; group group_0 has actorder by groups",
    ),
    "order too short": (
        put("weight_g_idx", ORDER[:-1].clone()),
        {"actorder": "group"},
        f"weight_g_idx is [{K - 1}]; expected [{K}]",
    ),
    "group that does not exist": (
        put("weight_g_idx", torch.where(ORDER == 1, 2, 0).int()),
        {"actorder": "group"},
        "weight_g_idx holds 2; expected groups from 0 to 1",
    ),
    "order set in part": (
        put("weight_g_idx", ORDER - 1),
        {"actorder": "group"},
        "weight_g_idx holds -1; expected groups from 0 to 1",
    ),
    "bits of the config": (
        lambda parts: None,
        {"num_bits": 8},
        f"weight_packed is [{N}, 8]; expected [{N}, 16] for 8-bit",
    ),
    "float in the config": (lambda parts: None, FP8, "group_0 of the config says float weights"),
    "stored twice": (put("weight", torch.zeros(N, K)), {}, "are both stored; expected one"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_packed_tensors(tmp_path, case):
    change, weights, part = TENSORS[case]
    parts = packed()
    change(parts)
    folder = llama_folder(tmp_path / "m", (N, K), parts, ct_config(PACKED | weights))
    refused(folder, CheckpointError, str(tmp_path / "m"), DOWN, part)


def nan_code() -> Tensor:
    raw = torch.full((N, K), 0x38, dtype=torch.uint8)
    raw[3, 5] = 0xFF
    return raw.view(torch.float8_e4m3fn)


SCALED: dict[str, tuple[dict[str, Tensor], dict[str, Any], Change, str]] = {
    "no scales": (scaled(), INT8, drop("weight_scale"), "weight_scale is missing"),
    "another shape": (
        scaled(),
        INT8,
        put("weight", torch.ones(N, K + 8, dtype=torch.int8)),
        f"weight is [{N}, {K + 8}]; expected [{N}, {K}] by the config",
    ),
    "scales by a wrong number of rows": (
        scaled(),
        INT8,
        put("weight_scale", torch.ones(N + 1, 1)),
        f"weight_scale is [{N + 1}, 1]; expected [{N}, 1]",
    ),
    "blocks": (
        scaled(torch.float8_e4m3fn),
        FP8 | {"strategy": "block", "block_structure": [4, 32]},
        lambda parts: None,
        f"weight_scale is [{N}, 1]; expected [2, 2] (FP8 4x32)",
    ),
    "no zero points": (
        scaled(),
        INT8 | {"symmetric": False},
        lambda parts: None,
        "weight_zero_point is missing; group group_0 is asymmetric",
    ),
    "zero points of another shape": (
        scaled(),
        INT8 | {"symmetric": False},
        put("weight_zero_point", torch.zeros(1, dtype=torch.int8)),
        f"weight_zero_point is [1]; expected [{N}, 1] like the scales",
    ),
    "codes beyond their bits": (
        scaled(),
        INT8 | {"num_bits": 4},
        put("weight", torch.full((N, K), 8, dtype=torch.int8)),
        "weight holds 8; expected -8 to 7 in 4 bits",
    ),
    "zero points beyond their bits": (
        scaled(),
        INT8 | {"num_bits": 4, "symmetric": False},
        put("weight_zero_point", torch.full((N, 1), -9, dtype=torch.int8)),
        "weight_zero_point holds -9; expected -8 to 7 in 4 bits",
    ),
    "integers for floats": (scaled(), FP8, lambda parts: None, "is I8, but group group_0 of"),
    "floats for integers": (
        scaled(torch.float8_e4m3fn),
        INT8,
        lambda parts: None,
        "is F8_E4M3, but group group_0 of the config says int weights",
    ),
    "FP8 that is no number": (
        scaled(),
        FP8,
        put("weight", nan_code()),
        "holds the FP8 code 0xFF, which is not a number",
    ),
    "weights in 64 bits": (
        scaled(),
        INT8,
        put("weight", torch.ones(N, K, dtype=torch.int64)),
        "weight is I64; expected I8 or F8_E4M3",
    ),
}


@pytest.mark.parametrize("case", SCALED)
def test_scaled_tensors(tmp_path, case):
    parts, weights, change, part = SCALED[case]
    parts = dict(parts)
    change(parts)
    config = ct_config(weights, format="naive-quantized")
    folder = llama_folder(tmp_path / "m", (N, K), parts, config)
    refused(folder, CheckpointError, str(tmp_path / "m"), DOWN, part)


@pytest.mark.parametrize(
    ("extra", "symmetric", "part"),
    [
        ({}, True, "input_scale is missing; group group_0 has static input scales"),
        ({"input_scale": torch.ones(2)}, True, "input_scale is [2]; expected one value"),
        ({"input_scale": torch.zeros(1)}, True, "input_scale holds 0.0; expected a positive"),
        ({"input_scale": torch.tensor([float("inf")])}, True, "input_scale holds inf"),
        ({"input_scale": torch.ones(1)}, False, "input_zero_point is missing; inputs of group"),
        (
            {"input_scale": torch.ones(1), "input_zero_point": torch.tensor([300])},
            False,
            "input_zero_point holds 300; expected -128 to 127",
        ),
        (
            {"input_scale": torch.ones(1), "input_zero_point": torch.tensor([3])},
            True,
            "input_zero_point holds 3; expected 0: the config says symmetric",
        ),
    ],
)
def test_static_inputs(tmp_path, extra, symmetric, part):
    inputs = STATIC | {"symmetric": symmetric}
    config = ct_config(INT8, input_activations=inputs, format="int-quantized")
    folder = llama_folder(tmp_path / "m", (N, K), scaled() | extra, config)
    refused(folder, CheckpointError, DOWN, part)


UNSUPPORTED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "2:4": ({}, {"format": "marlin-24"}, "format is 'marlin-24'; supported are dense"),
    "MXFP8": ({}, {"format": "mxfp8-quantized"}, "format is 'mxfp8-quantized'; supported are"),
    "sparsity": (
        {},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config.format is 'sparse-24-bitmask'",
    ),
    "transforms": (
        {},
        {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
        "transform_config is set: rotations",
    ),
    "outputs": ({}, {"output_activations": STATIC}, "output_activations is set"),
    "unknown key of a group": ({}, {"surprise": 1}, "group_0.surprise is 1: this key is not"),
    "unknown key of weights": ({"rotate": True}, {}, "weights.rotate is True: this key is not"),
    "FP6": ({"num_bits": 6, "type": "float"}, {}, "num_bits is 6 for float weights"),
    "groups of FP4": (
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 16},
        {},
        "strategy is 'group' with group_size 16 for 4-bit floats; supported are tensor_group with",
    ),
    "1 bit": ({"num_bits": 1}, {}, "num_bits is 1 for int weights; supported are 2 to 8"),
    "16 bits": ({"num_bits": 16}, {}, "num_bits is 16 for int weights; supported are 2 to 8"),
    "strategy": ({"strategy": "attn_head"}, {}, "strategy is 'attn_head'; supported for weights"),
    "blocks": ({"strategy": "block", "block_structure": [4, 4]}, {}, "with scales of blocks"),
    "4-bit inputs": ({}, {"input_activations": TOKEN | {"num_bits": 4}}, "num_bits is 4"),
    "one scale for a batch": (
        {},
        {"input_activations": TOKEN | {"strategy": "tensor"}},
        "input_activations.strategy is 'tensor'; supported for inputs are token",
    ),
    "static scales of columns": (
        {},
        {"input_activations": STATIC | {"strategy": "channel"}},
        "input_activations.strategy is 'channel'",
    ),
    "local": ({}, {"input_activations": TOKEN | {"dynamic": "local"}}, "dynamic is 'local'"),
    "preset": ({}, {"config_groups": {"MXFP8": ["Linear"]}}, "MXFP8 is a preset that is not"),
    "inputs alone": (
        {},
        {"config_groups": {"g": {"targets": ["Linear"], "input_activations": TOKEN}}},
        "weights is null but inputs are quantized",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_configs_that_are_not_implemented(tmp_path, case):
    weights, more, part = UNSUPPORTED[case]
    folder = llama_folder(tmp_path / "m", (N, K), packed(), ct_config(PACKED | weights, **more))
    refused(folder, UnsupportedModelError, str(tmp_path / "m"), part)


DAMAGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "status": ({}, {"quantization_status": "melted"}, "quantization_status is 'melted'"),
    "groups": ({}, {"config_groups": {"g": 7}}, "config_groups.g is 7; expected an object or"),
    "ignore": ({}, {"ignore": "lm_head"}, "ignore is 'lm_head'; expected a list of strings"),
    "targets": ({}, {"targets": [1]}, "group_0.targets is [1]; expected a list of strings"),
    "pattern": ({}, {"ignore": ["re:("]}, "ignore: pattern '(' is not a regular expression"),
    "group size": ({"group_size": 0}, {}, "group_size is 0; expected a positive number"),
    "type": ({"type": "complex"}, {}, "weights.type is 'complex'; expected int or float"),
    "order": ({"actorder": "random"}, {}, "weights.actorder is 'random'; expected weight"),
    "dynamic weights": ({"dynamic": True}, {}, "weights.dynamic is True; expected false"),
    "float zero points": (
        {"type": "float", "num_bits": 8, "symmetric": False},
        {},
        "weights.symmetric is False; expected true for float weights",
    ),
    "block": (
        {"strategy": "block", "block_structure": "0x4"},
        {},
        "weights.block_structure is [0, 4]; expected two positive whole numbers",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_configs(tmp_path, case):
    weights, more, part = DAMAGED[case]
    folder = llama_folder(tmp_path / "m", (N, K), packed(), ct_config(PACKED | weights, **more))
    refused(folder, CheckpointError, str(tmp_path / "m"), part)


@pytest.mark.parametrize(
    ("parts", "weights", "error", "part"),
    [
        (
            scaled(torch.float16),
            INT8,
            UnsupportedModelError,
            "weight is stored in float beside its weight_scale (quantization_status compressed)",
        ),
        (
            scaled(torch.float8_e5m2),
            FP8,
            UnsupportedModelError,
            "weight is F8_E5M2; supported are I8 and F8_E4M3",
        ),
        (
            {"weight_packed": torch.zeros(N, K // 2, dtype=torch.uint8)},
            PACKED,
            CheckpointError,
            "weight_packed is U8, as 4-bit floats are stored, but group group_0 of the config says",
        ),
    ],
)
def test_other_numbers(tmp_path, parts, weights, error: type[HalfbyteError], part):
    folder = llama_folder(tmp_path / "m", (N, K), parts, ct_config(weights))
    refused(folder, error, DOWN, part)


def test_unequal_groups_with_quantized_inputs(tmp_path):
    order = ORDER.clone()
    order[0] = 1
    config = ct_config(PACKED | {"actorder": "group"}, input_activations=TOKEN)
    parts = packed() | {"weight_g_idx": order}
    folder = llama_folder(tmp_path / "m", (N, K), parts, config)
    refused(folder, CheckpointError, DOWN, "columns are spread unevenly over groups")


def test_inputs_of_the_embedding_are_ids(tmp_path):
    config = ct_config(INT8, targets=["Embedding"], input_activations=TOKEN, format="int-quantized")
    module = "model.embed_tokens"
    parts = {"weight": torch.ones(6, N, dtype=torch.int8), "weight_scale": torch.ones(6, 1)}
    folder = llama_folder(tmp_path / "m", (N, K), parts, config, module)
    refused(folder, UnsupportedModelError, "rounds the inputs of model.embed_tokens", module=module)
