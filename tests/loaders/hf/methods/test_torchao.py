"""torchao: int8 tensors under the names that its safetensors support writes; others refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from bnb_support import BASE, Opened
from torch import Tensor

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import ActivationFormat
from halfbyte.loaders.hf.methods.torchao import TorchAO

N, K = 6, 64
WEIGHT_ONLY = "Int8WeightOnlyConfig"
DYNAMIC = "Int8DynamicActivationInt8WeightConfig"


def config(kind: str, **data: Any) -> dict[str, Any]:
    """As transformers writes it."""
    inner = {"_type": kind, "_version": 2, "_data": {"granularity": {"_type": "PerRow"}, **data}}
    return {"quant_method": "torchao", "quant_type": {"default": inner}}


def module(groups: int = 1, rows: int = N, zeros: bool = False, seed: int = 1) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    found = {
        "qdata": torch.from_numpy(rng.integers(-128, 128, (N, K)).astype(np.int8)),
        "scale": torch.from_numpy(rng.random((rows, groups), dtype=np.float32)).bfloat16(),
        "zero_point": torch.zeros(rows, groups, dtype=torch.int8),
    }
    if zeros:
        points = rng.integers(-128, 128, (rows, groups)).astype(np.int8)
        found["zero_point"] = torch.from_numpy(points)
    return found


def opened(found: dict[str, Tensor], values: dict[str, Any]) -> Opened:
    tensors = {f"{BASE}._weight_{part}": tensor for part, tensor in found.items()}
    return Opened(TorchAO, values, tensors, {f"{BASE}.weight": (N, K)})


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("groups,rows", [(1, N), (2, N), (4, N), (1, 1)])
def test_codes_mean_what_they_say(groups, rows, zeros):
    found = module(groups, rows, zeros)
    weight = opened(found, config(WEIGHT_ONLY)).codes()
    codes, scale = found["qdata"].double(), found["scale"].double()
    zero = found["zero_point"].double()
    want = torch.empty(N, K, dtype=torch.float64)
    for n in range(N):
        for k in range(K):
            at = (n if rows == N else 0), k // (K // groups)
            want[n, k] = (codes[n, k] - zero[at]) * scale[at]
    # Codes and bfloat16 scales multiply exactly in float32.
    assert torch.equal(weight.dequantize().double(), want)
    assert weight.format.act is None
    assert weight.format.zero == ("int" if zeros else "none")


def test_dynamic_inputs_are_part_of_the_format():
    model = opened(module(), config(DYNAMIC, act_mapping_type={"_data": "SYMMETRIC"}))
    assert model.codes().format.act == ActivationFormat("int8", True, 127.5)
    assert "one symmetric scale for each token" in model.report.decisions[0]


@pytest.mark.parametrize(
    "values,message",
    [
        (config("Int4WeightOnlyConfig"), "quant_type is 'Int4WeightOnlyConfig'"),
        (config("Float8WeightOnlyConfig"), "quant_type is 'Float8WeightOnlyConfig'"),
        ({"quant_type": "int4_weight_only"}, "quant_type is 'int4_weight_only'"),
        ({"quant_type": {"a": {}, "b": {}}}, "quant_type is None"),
        ({}, "quant_type is None"),
        (config(DYNAMIC, act_mapping_type={"_data": "ASYMMETRIC"}), "act_mapping_type"),
        (config(DYNAMIC, reduce_range=True), "reduce_range is true"),
        (config(DYNAMIC, weight_only_decode=True), "weight_only_decode is true"),
        (config(DYNAMIC, granularity=[{"_type": "PerTensor"}]), "granularity"),
    ],
)
def test_configs_that_are_not_implemented(values, message):
    with pytest.raises(UnsupportedModelError, match=message):
        opened(module(), values)


CASES: list[tuple[dict[str, Any], type[HalfbyteError], str]] = [
    ({"act_pre_scale": torch.ones(1)}, UnsupportedModelError, "stored with act_pre_scale"),
    ({"scale_and_zero": torch.ones(1)}, UnsupportedModelError, "stored with scale_and_zero"),
    ({"qdata": torch.zeros(N, K // 2, dtype=torch.int8)}, UnsupportedModelError, r"\[6, 32\]"),
    ({"qdata": torch.zeros(N, K, dtype=torch.int32)}, UnsupportedModelError, "is I32"),
    ({"qdata": None}, CheckpointError, "_weight_qdata is missing"),
    ({"scale": None}, CheckpointError, "_weight_scale is missing"),
    ({"scale": torch.ones(N)}, CheckpointError, r"scale is F32 \[6\]"),
    ({"scale": torch.ones(N, 3)}, CheckpointError, r"scale is F32 \[6, 3\]"),
    ({"scale": torch.ones(N, 0)}, CheckpointError, r"scale is F32 \[6, 0\]"),
    ({"scale": torch.ones(5, 1)}, CheckpointError, r"scale is F32 \[5, 1\]"),
    ({"scale": torch.ones(1, 2)}, UnsupportedModelError, "one row for 6 rows"),
    ({"zero_point": torch.zeros(N, 2)}, CheckpointError, r"zero_point is F32 \[6, 2\]"),
]


@pytest.mark.parametrize("change,kind,message", CASES)
def test_tensors_that_do_not_fit(change, kind, message):
    found = module()
    for key, value in change.items():
        found.pop(key) if value is None else found.update({key: value})
    with pytest.raises(kind, match=message):
        opened(found, config(WEIGHT_ONLY))


def test_numbers_that_are_not_finite_and_plain_folders():
    found = module()
    found["scale"][2] = math.nan
    with pytest.raises(CheckpointError, match="_weight_scale holds nan at element 2"):
        opened(found, config(WEIGHT_ONLY)).load()
    with pytest.raises(UnsupportedModelError, match=r"not quantized.*--quantize"):
        opened({}, config(WEIGHT_ONLY))
