"""Damaged, crafted and unimplemented GPTQ folders: each refused by a message of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_gptq import Case
from torch import Tensor
from word_folders import DOWN, llama_folder

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.loaders import open_checkpoint

Parts = dict[str, Tensor]


def refused(tmp_path, config: dict[str, Any], parts: Parts, kind: type[HalfbyteError], *told: str):
    """Opening or loading the folder raises ``kind`` with every text in its message."""
    folder = llama_folder(tmp_path / "m", (16, 96), config, {DOWN: parts})
    with pytest.raises(kind) as caught:
        checkpoint = open_checkpoint(folder)
        checkpoint.load(f"{DOWN}.weight")
    for text in (*told, str(folder)):
        assert text in str(caught.value)


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[name][index] = value

    return change


def replace(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[name] = make(parts[name])

    return change


def drop(name: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        del parts[name]

    return change


DAMAGE: dict[str, tuple[Callable[[Parts], None], str, str]] = {
    "g_idx too large": (put("g_idx", (5,), 3), "g_idx holds 3", "group numbers from 0 to 2"),
    "g_idx negative": (put("g_idx", (5,), -1), "g_idx holds -1", "group numbers from 0 to 2"),
    "g_idx too short": (replace("g_idx", lambda t: t[:95].clone()), "is [95]", "expected [96]"),
    "g_idx a float": (replace("g_idx", Tensor.float), "g_idx is F32", "I32 or I64"),
    "scale NaN": (
        put("scales", (1, 2), np.nan),
        "scales holds nan at element 18",
        "expected finite",
    ),
    "scale infinite": (put("scales", (0, 0), np.inf), "scales holds inf at element 0", ""),
    "scales missing": (drop("scales"), f"{DOWN} has g_idx, qweight, qzeros but no scales", ""),
    "qzeros missing": (drop("qzeros"), "but no qzeros", "download is incomplete"),
    "qweight missing": (drop("qweight"), "but no qweight", "download is incomplete"),
    "qweight long": (replace("qweight", Tensor.long), "qweight is I64", "expected I32"),
    "qzeros half": (replace("qzeros", Tensor.half), "qzeros is F16", "expected I32"),
    "scales integer": (replace("scales", Tensor.int), "scales is I32", "F16 or BF16 or F32"),
    "rows of no width": (
        replace("qweight", lambda t: t[:11].clone()),
        "has qweight [11, 16] and qzeros [3, 2]; expected 12 rows and 2 columns for 4 bits",
        "no number of bits",
    ),
    "rows of another width": (
        replace("qweight", lambda t: t.repeat(2, 1)),
        "has qweight [24, 16] and qzeros [3, 2]; expected 12 rows and 2 columns for 4 bits",
        "no number of bits",
    ),
    "columns": (
        replace("qweight", lambda t: t[:, :8].clone()),
        "qweight is [12, 8]; expected [12, 16]",
        "16 output features",
    ),
    "one dimension": (
        replace("qweight", lambda t: t.flatten()),
        "qweight is [192]; expected a matrix",
        "",
    ),
    "no group at all": (
        replace("scales", lambda t: t[:0].clone()),
        "scales is [0, 16]; expected a matrix",
        "",
    ),
    "groups": (
        replace("scales", lambda t: t.repeat(3, 1)[:7]),
        "scales is [7, 16]; expected [3, 16] (groups of 32 over K=96)",
        "",
    ),
    "groups of zeros": (
        replace("qzeros", lambda t: t[:2].clone()),
        "qzeros is [2, 2]; expected [3, 2]",
        "3 groups as in scales",
    ),
    "scales too narrow": (
        replace("scales", lambda t: t[:, :8].clone()),
        "scales is [3, 8]; expected [3, 16]",
        "16 output features",
    ),
    "twice": (
        lambda parts: parts.update(weight=torch.zeros(16, 96, dtype=torch.float16)),
        f"{DOWN} is stored twice, as weight and as qweight",
        "",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors(tmp_path, damage):
    change, *told = DAMAGE[damage]
    case = Case(16, 96)
    parts = case.parts()
    change(parts)
    refused(tmp_path, case.config(), parts, CheckpointError, *told)


BAD_CONFIG: dict[str, tuple[dict[str, Any], type[HalfbyteError], str]] = {
    "unknown format": (
        {"checkpoint_format": "gptq_v3"},
        UnsupportedModelError,
        "checkpoint_format is 'gptq_v3'; supported are gptq, gptq_v2",
    ),
    "marlin": (
        {"checkpoint_format": None, "format": "marlin"},
        UnsupportedModelError,
        "format is 'marlin'",
    ),
    "contradiction": (
        {"format": "gptq_v2"},
        CheckpointError,
        "checkpoint_format is 'gptq' but format is 'gptq_v2'; expected the same value",
    ),
    "marlin by flag": (
        {"is_marlin_format": True},
        UnsupportedModelError,
        "is_marlin_format is True; it changes the numbers",
    ),
    "rotation": ({"rotation": "hadamard"}, UnsupportedModelError, "rotation is 'hadamard'"),
    "adapter": ({"adapter": {"rank": 8}}, UnsupportedModelError, "adapter is {'rank': 8}"),
    "words of 64 bits": ({"pack_dtype": "int64"}, UnsupportedModelError, "pack_dtype is 'int64'"),
    "bits": ({"bits": 5}, UnsupportedModelError, "has 5 bits; supported are 2, 3, 4 and 8"),
    "bits a text": ({"bits": "4"}, CheckpointError, "bits is '4'; expected a whole number"),
    "group": ({"group_size": 0}, CheckpointError, "group_size is 0; expected -1 or a positive"),
    "negative group": ({"group_size": -2}, CheckpointError, "group_size is -2; expected"),
    "sym a text": ({"sym": "yes"}, CheckpointError, "sym is 'yes'; expected true or false"),
    "dynamic a list": ({"dynamic": ["a"]}, CheckpointError, "dynamic is ['a']; expected an object"),
    "override a number": ({"dynamic": {"a": 4}}, CheckpointError, "dynamic['a'] is 4; expected"),
    "override of bits": (
        {"dynamic": {".*down": {"bits": 6}}},
        UnsupportedModelError,
        "has 6 bits; supported are 2, 3, 4 and 8",
    ),
    "override that changes numbers": (
        {"dynamic": {".*": {"adapter": {"rank": 1}}}},
        UnsupportedModelError,
        "dynamic['.*'].adapter is {'rank': 1}; it changes the numbers",
    ),
    "no expression": (
        {"dynamic": {"+:(": {}}},
        CheckpointError,
        "dynamic: pattern '(' is not a regular expression",
    ),
    "evil expression": (
        {"dynamic": {r"-:(.*.*)+\1x$": {}}},
        UnsupportedModelError,
        "uses groupref, which is not supported in module names",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIG)
def test_configs_that_are_refused(tmp_path, name):
    change, kind, told = BAD_CONFIG[name]
    case = Case(16, 96)
    config = {k: v for k, v in case.config(**change).items() if v is not None}
    refused(tmp_path, config, case.parts(), kind, told, "quantization_config")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"act_bits": 8}, "act_bits is 8; it changes the numbers"),
        ({"data_type": "mx_fp"}, "data_type is 'mx_fp'"),
        ({"super_bits": 6}, "super_bits is 6"),
        ({"packing_format": "auto_round:llm_compressor"}, "is 'auto_round:llm_compressor'"),
        ({"extra_config": {"lm_head": {"data_type": "fp8"}}}, "extra_config['lm_head'].data_type"),
    ],
)
def test_auto_round_settings_that_are_refused(tmp_path, change, told):
    case = Case(16, 96)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True} | change
    refused(tmp_path, config, case.parts(False), UnsupportedModelError, told)


def test_auto_round_label_that_cannot_tell(tmp_path):
    case = Case(16, 96, sym=False)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True}
    config["packing_format"] = "auto_round:exllamav2"
    told = "sym is true but", "qzeros is not constant as symmetric zeros are"
    refused(tmp_path, config, case.parts(False), CheckpointError, *told)


def test_repacked_layouts_are_refused_by_their_method(tmp_path):
    for method in ("marlin", "bitblas"):
        config = {"quant_method": method, "bits": 4}
        folder = llama_folder(tmp_path / method, (16, 96), config, {})
        with pytest.raises(UnsupportedModelError, match=f"quantized with {method}, which is not"):
            open_checkpoint(folder)


def test_a_quantized_module_that_is_none_of_the_models(tmp_path):
    case = Case(16, 96)
    extra = {f"model.layers.7.mlp.down_proj.{s}": t for s, t in case.parts().items()}
    folder = llama_folder(tmp_path / "m", (16, 96), case.config(), {}, extra=extra)
    with pytest.raises(UnsupportedModelError, match=r"layers\.7\.mlp\.down_proj\.g_idx"):
        open_checkpoint(folder)
