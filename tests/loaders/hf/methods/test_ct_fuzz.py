"""Configs and tensors changed at random: a typed error or a weight, and never long."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from computing_time import computes_within
from scaled_folders import ct_config, llama_folder, load_from, packed_parts
from torch import Tensor

from halfbyte.errors import HalfbyteError

N, K = 8, 64
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": None}
INPUTS = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False, "symmetric": True}
FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "ch_axis": 0}
VALUES: list[Any] = [None, True, 0, 1, -1, 3, 1.5, 1 << 60, "", "int", "group", "block", "token"]
VALUES += ["re:(a*)*", "re:(", "x" * 3000, [], [1], ["Linear"], ["re:("], {}, {"a": 1}, [[[]]]]
VALUES += ["8x8", "64x", [8, 8], [0, 0], [1 << 19, 1 << 19], "float", "pack-quantized", "dense"]


def packed() -> dict[str, Tensor]:
    parts = packed_parts(np.zeros((N, K), dtype=int), torch.ones(N, 2), 4)
    return parts | {"weight_g_idx": torch.arange(K, dtype=torch.int32) // 32}


def scaled(dtype: torch.dtype) -> dict[str, Tensor]:
    one = torch.ones(1)
    return {"weight": torch.ones(N, K).to(dtype), "weight_scale": one, "input_scale": one.clone()}


int8 = {**WEIGHTS, "num_bits": 8, "strategy": "tensor", "group_size": None}
CASES: list[tuple[dict[str, Tensor], dict[str, Any]]] = [
    (packed(), ct_config(WEIGHTS)),
    (scaled(torch.int8), ct_config(int8, input_activations=INPUTS, sparsity_config={})),
    (
        scaled(torch.float8_e4m3fn),
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    ),
    (
        scaled(torch.float8_e4m3fn),
        {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "ignore": ["a*"]}},
    ),
    (
        scaled(torch.float8_e4m3fn),
        {"quant_method": "quark", "global_quant_config": {"weight": FP8, "input_tensors": FP8}},
    ),
]


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from places(tree[key])


def outcome(folder: Path) -> bool:
    """Whether the folder loads; it may only fail with an error of ours, within a second."""
    with computes_within(1):
        try:
            load_from(folder)
        except HalfbyteError:
            return False
    return True


@pytest.mark.parametrize("case", range(len(CASES)))
def test_configs(tmp_path, case):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng, (parts, config) = random.Random(seed), CASES[case]
    folder = llama_folder(tmp_path / "m", (N, K), parts, config)
    whole = json.loads((folder / "config.json").read_text())
    assert outcome(folder)
    refused = 0
    for _ in range(60):
        changed = copy.deepcopy(config)
        for _ in range(rng.randrange(1, 4)):
            container, key = rng.choice(list(places(changed)) or [({0: 0}, 0)])
            container[key] = copy.deepcopy(rng.choice(VALUES))
        text = json.dumps(whole | {"quantization_config": changed})
        (folder / "config.json").write_text(text)
        refused += not outcome(folder)
    assert refused > 3


DTYPES = [torch.int8, torch.int32, torch.int64, torch.uint8, torch.float16, torch.float32]
DTYPES += [torch.float8_e4m3fn, torch.bfloat16]
SHAPES = [
    (),
    (1,),
    (2,),
    (N,),
    (K,),
    (N, 1),
    (1, N),
    (N, 2),
    (2, N),
    (N, 8),
    (N, K),
    (K, N),
    (1, 1),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_tensors(tmp_path, case):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng, (parts, config) = random.Random(seed), CASES[case]
    names = [*parts, "weight_zero_point", "input_zero_point", "weight_scale_inv", "weight_packed"]
    refused = 0
    for i in range(40):
        changed = dict(parts)
        for name in rng.sample(names, rng.randrange(1, 3)):
            changed.pop(name, None)
            if rng.random() < 0.85:
                value = torch.full(rng.choice(SHAPES), rng.choice([0, 1, 7, 300, -1]))
                changed[name] = value.to(rng.choice(DTYPES))
        refused += not outcome(llama_folder(tmp_path / str(i), (N, K), changed, config))
    assert refused > 3
