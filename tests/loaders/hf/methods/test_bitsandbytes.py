"""bitsandbytes' tensors mean what an unpacker in plain numpy says, or are refused by name."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bnb_support import BASE, Opened, four_bit, meaning, named, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.hf.methods.bitsandbytes import BitsAndBytes

FIXTURE = Path(__file__).parents[3] / "fixtures" / "bnb-nf4-dq-llama"
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"load_in_8bit": True}
STATE = "weight.quant_state.bitsandbytes__nf4"


def opened(found: dict[str, Tensor], n: int, k: int, config: dict[str, Any] = FOUR) -> Opened:
    return Opened(BitsAndBytes, config, named(found), {f"{BASE}.weight": (n, k)})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 9),
    k=st.one_of(st.integers(1, 70), st.integers(1, 8).map(lambda i: 32 * i)),
    blocksize=st.sampled_from([32, 64, 128, 256, 512, 1024, 2048, 4096]),
    kind=st.sampled_from(["nf4", "fp4"]),
    nested=st.sampled_from([0, 64, 256]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_every_shape_means_what_the_tensors_say(seed, n, k, blocksize, kind, nested, dtype):
    found = four_bit(np.random.default_rng(seed), n, k, blocksize, kind, nested, dtype)
    model = opened(found, n, k)
    weight, want = model.load(), torch.from_numpy(meaning(found))
    if math.gcd(blocksize, k) % 32:
        assert isinstance(weight, Tensor) and weight.dtype == getattr(torch, dtype)
        assert any(f"dense in {dtype}" in text for text in model.report.decisions)
    else:
        assert isinstance(weight, QuantizedLinear)
        assert weight.format.group_size == math.gcd(blocksize, k)
        assert weight.format.rounds == ("" if dtype == "float32" else dtype)
        weight = weight.dequantize()
    # The same product of two float32 numbers, rounded as the tool does.
    rounded = want.to(getattr(torch, dtype))
    assert torch.equal(weight, rounded.to(weight.dtype))


def test_weights_that_the_rounding_would_make_infinite_are_refused():
    found = four_bit(np.random.default_rng(4), 2, 64, 64, dtype="float16")
    found["weight.absmax"] = torch.tensor([1.0, 70000.0])
    with pytest.raises(CheckpointError, match="values up to 70000, which float16"):
        opened(found, 2, 64).load()


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float32])
def test_the_same_bytes_stored_under_another_type(storage):
    found = four_bit(np.random.default_rng(5), 4, 64, 64)
    want = opened(found, 4, 64).codes().dequantize()
    found["weight"] = found["weight"].reshape(-1).view(storage)[:, None]
    config = FOUR | {"bnb_4bit_quant_storage": str(storage).removeprefix("torch.")}
    model = opened(found, 4, 64, config)
    assert torch.equal(model.codes().dequantize(), want)
    assert model.report.warnings == []


def test_the_table_of_the_file_counts_and_scales_may_be_negative():
    found = four_bit(np.random.default_rng(6), 2, 64, 64)
    found["weight.quant_map"] = torch.linspace(-3, 7, 16)
    found["weight.absmax"] = torch.tensor([-2.0, 0.0])
    got = opened(found, 2, 64).codes().dequantize()
    assert torch.equal(got, torch.from_numpy(meaning(found)).half().float())
    assert bool((got[1] == 0).all())


def with_state(found: dict[str, Tensor], **changes: Any) -> None:
    values = json.loads(bytes(found[STATE].tolist()))
    for key, value in changes.items():
        values.pop(key) if value is None else values.update({key: value})
    found[STATE] = state_bytes(values)


BAD_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "another type than its name": ({"quant_type": "fp4"}, "quant_type is 'fp4'"),
    "transposed": ({"shape": [128, 4]}, r"shape is \[128, 4\]; expected \[4, 128\]"),
    "another product": ({"shape": [4, 129]}, r"expected \[4, 128\]"),
    "no shape": ({"shape": None}, "shape is None"),
    "a block of 0": ({"blocksize": 0}, "blocksize is 0"),
    "a block of 48": ({"blocksize": 48}, "power of two"),
    "a float block": ({"blocksize": 64.0}, "blocksize is 64.0"),
    "a missing block": ({"blocksize": None}, "blocksize is missing"),
    "a strange dtype": ({"dtype": "float8"}, "dtype is 'float8'"),
    "a wrong number of scales": ({"blocksize": 128}, r"absmax is U8 \[8\]; expected U8 \[4\]"),
    "nested block missing": ({"nested_blocksize": None}, "nested_blocksize is missing"),
    "nested offset missing": ({"nested_offset": None}, "nested_offset is missing"),
    "nested offset a text": ({"nested_offset": "1"}, "nested_offset is '1'"),
    "nested scales of half": ({"nested_dtype": "float16"}, "nested_dtype is 'float16'"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_states_that_do_not_fit(case):
    found = four_bit(np.random.default_rng(1), 4, 128, 64, nested=256)
    changes, message = BAD_STATES[case]
    with_state(found, **changes)
    with pytest.raises(HalfbyteError, match=message):
        opened(found, 4, 128)


NO_JSON = {
    "text": b"not json",
    "a list": b"[1]",
    "NaN": b'{"quant_type": "nf4", "nested_offset": NaN}',
    "twice": b'{"quant_type": "nf4", "quant_type": "fp4"}',
    "bytes": b"\xff\xfe",
    "empty": b"",
    "large": b" " * (1 << 15),
}


@pytest.mark.parametrize("case", NO_JSON)
def test_states_that_are_no_object(case):
    found = four_bit(np.random.default_rng(1), 4, 128, 64)
    found[STATE] = torch.tensor(list(NO_JSON[case]), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=f"folder: tensor {BASE}.{STATE}"):
        opened(found, 4, 128)


PARTS = ["weight", "weight.absmax", "weight.quant_map", STATE]
PARTS += ["weight.nested_absmax", "weight.nested_quant_map"]


@pytest.mark.parametrize("part", PARTS)
def test_missing_parts_are_named(part):
    found = four_bit(np.random.default_rng(1), 4, 128, 64, nested=256)
    del found[part]
    with pytest.raises(CheckpointError, match=f"{BASE}.{part} is missing"):
        opened(found, 4, 128)


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_another_shape_or_dtype(part):
    for change in (lambda t: t[:-1], lambda t: t.to(torch.int64)):
        found = four_bit(np.random.default_rng(1), 4, 128, 64, nested=256)
        found[part] = change(found[part])
        with pytest.raises(CheckpointError, match=f"tensor {BASE}.{part}"):
            opened(found, 4, 128)


def test_nested_scales_without_their_state():
    found = four_bit(np.random.default_rng(1), 4, 128, 64)
    found["weight.nested_absmax"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="no nested_blocksize"):
        opened(found, 4, 128)


def test_two_states_and_unknown_kinds():
    found = four_bit(np.random.default_rng(1), 4, 128, 64)
    found["weight.quant_state.bitsandbytes__fp4"] = found[STATE]
    with pytest.raises(CheckpointError, match="expected one"):
        opened(found, 4, 128)
    found = four_bit(np.random.default_rng(1), 4, 128, 64)
    found["weight.quant_state.bitsandbytes__af4"] = found.pop(STATE)
    with pytest.raises(CheckpointError, match="bitsandbytes__af4; expected one"):
        opened(found, 4, 128)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["absmax", "quant_map", "nested_absmax", "nested_quant_map"])
def test_numbers_that_are_not_finite(part, value):
    nested = 256 if part.startswith("nested") else 0
    for k in (128, 33):  # codes, and the dense way
        found = four_bit(np.random.default_rng(1), 4, k, 64, nested=nested)
        found[f"weight.{part}"][-1] = value
        with pytest.raises(CheckpointError, match=rf"{BASE}.weight.{part} holds -?(nan|inf)"):
            opened(found, 4, k).load()


def test_what_the_config_says_of_4_bits_is_checked():
    found = four_bit(np.random.default_rng(1), 4, 64, 64, kind="fp4", nested=256)
    config = {"load_in_8bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "int8"}
    warnings = opened(found, 4, 64, config).report.warnings
    keys = ["load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"]
    assert [text.split(" is ")[0] for text in warnings] == [*keys, "bnb_4bit_quant_storage"]
    assert all("tensors are followed" in text for text in warnings)


def int8(rng: np.random.Generator, n: int, k: int) -> dict[str, Tensor]:
    return {
        "weight": torch.from_numpy(rng.integers(-128, 128, (n, k)).astype(np.int8)),
        "SCB": torch.from_numpy(rng.random(n, dtype=np.float32)),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def test_int8_means_row_scales_over_127():
    found = int8(np.random.default_rng(7), 5, 33)
    model = opened(found, 5, 33, EIGHT | {"llm_int8_threshold": 5.0})
    want = found["weight"].double() * found["SCB"].double()[:, None] / 127
    # Two roundings to float32, of the scale and of the product.
    torch.testing.assert_close(model.codes().dequantize().double(), want, rtol=2**-23, atol=0)
    assert any("no column is rounded" in text for text in model.report.decisions)
    assert any("beyond 5" in text for text in model.report.decisions)
    del found["weight_format"]
    assert torch.equal(opened(found, 5, 33, EIGHT).codes().unpack(), model.codes().unpack())


@pytest.mark.parametrize(
    "change,kind,message",
    [
        ({"weight_format": torch.tensor(2, dtype=torch.uint8)}, UnsupportedModelError, "col_tur"),
        ({"weight_format": torch.tensor(9, dtype=torch.uint8)}, UnsupportedModelError, "unknown"),
        ({"weight_format": torch.zeros(2, dtype=torch.uint8)}, CheckpointError, "weight_format"),
        ({"SCB": None}, CheckpointError, "SCB is missing"),
        ({"weight": None}, CheckpointError, "weight is missing"),
        ({"SCB": torch.ones(4)}, CheckpointError, r"SCB is F32 \[4\]; expected F32 \[5\]"),
        ({"weight": torch.zeros(5, 32, dtype=torch.int8)}, CheckpointError, r"\[5, 32\]"),
        ({"weight": torch.zeros(5, 33)}, CheckpointError, "is F32"),
    ],
)
def test_int8_that_does_not_fit(change, kind, message):
    found = int8(np.random.default_rng(7), 5, 33)
    for key, value in change.items():
        found.pop(key) if value is None else found.update({key: value})
    with pytest.raises(kind, match=message):
        opened(found, 5, 33, EIGHT)


def test_int8_scale_that_is_not_finite():
    found = int8(np.random.default_rng(7), 5, 33)
    found["SCB"][3] = math.nan
    with pytest.raises(CheckpointError, match="SCB holds nan at element 3"):
        opened(found, 5, 33, EIGHT).load()


def test_modules_without_a_state_stay_dense():
    found = named(four_bit(np.random.default_rng(1), 4, 64, 64))
    found["lm_head.weight"] = torch.zeros(6, 64, dtype=torch.float16)
    shapes = {f"{BASE}.weight": (4, 64), "lm_head.weight": (6, 64)}
    model = Opened(BitsAndBytes, FOUR, found, shapes)
    assert [module.module for module in model.modules] == [BASE]


PLAIN: dict[str, tuple[int, ...]] = {
    f"{BASE}.weight": (6, 160),
    "model.layers.0.mlp.down_proj.weight": (160, 6),
    "lm_head.weight": (9, 160),
    "model.layers.0.input_layernorm.weight": (160,),
}


def plain(config: dict[str, Any], seed: int = 3) -> Opened:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).half() for name, shape in PLAIN.items()
    }
    return Opened(BitsAndBytes, config, tensors, PLAIN)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_plain_folder_is_quantized_at_load(kind):
    model = plain({"load_in_4bit": True, "bnb_4bit_quant_type": kind})
    assert [m.module for m in model.modules] == [BASE, "model.layers.0.mlp.down_proj"]
    assert any(
        f"2 linear layers are rounded to {kind.upper()}" in t for t in model.report.decisions
    )
    weight = model.codes()
    assert (weight.format.zero, weight.format.group_size, weight.scales.shape) == (
        "table",
        64,
        (6, 3),
    )
    error = (weight.dequantize() - model.tensors[f"{BASE}.weight"].float()).abs()
    # Half of the widest step of the table times the largest scale.
    table = sorted(weight.format.table)
    step = max(b - a for a, b in itertools.pairwise(table))
    assert float(error.max()) <= step / 2 * float(weight.scales.max()) * (1 + 1e-6)


def test_a_plain_folder_in_8_bits_and_modules_to_skip():
    model = plain(EIGHT | {"llm_int8_skip_modules": ["lm_head", "down_proj"]})
    assert [m.module for m in model.modules] == [BASE]
    assert model.codes().format.group_size == -1
    assert plain({"load_in_4bit": False}).modules == []


@pytest.mark.parametrize(
    "config,kind,message",
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "af4"}, UnsupportedModelError, "--quantize"),
        (EIGHT | {"llm_int8_skip_modules": ["(a+)+$"]}, UnsupportedModelError, "plain names"),
        (EIGHT | {"llm_int8_skip_modules": "lm_head"}, CheckpointError, "a list of module names"),
        ({"load_in_4bit": True, "load_in_8bit": True}, CheckpointError, "both true"),
        ({"load_in_4bit": "yes"}, CheckpointError, "load_in_4bit is 'yes'"),
    ],
)
def test_configs_that_cannot_be_followed(config, kind, message):
    with pytest.raises(kind, match=message):
        plain(config)


def test_a_damaged_folder_names_folder_and_tensor(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURE, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight.nested_quant_map"
    tensors[name] = tensors[name][:255].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{folder}: tensor {name} is F32 \[255\]"):
        open_checkpoint(folder)


def test_the_fixture_reads_as_numpy_does():
    checkpoint = open_checkpoint(FIXTURE)
    stored = load_file(FIXTURE / "model.safetensors")
    base = "model.layers.1.self_attn.k_proj"
    parts = {n.removeprefix(f"{base}."): t for n, t in stored.items() if n.startswith(f"{base}.")}
    weight = checkpoint.load(f"{base}.weight")
    assert isinstance(weight, QuantizedLinear)
    assert weight.format.rounds == "float16"
    weight.format = replace(weight.format, rounds="")
    # The nested offset is the state's double, added in float32: one rounding apart at most.
    torch.testing.assert_close(
        weight.dequantize(), torch.from_numpy(meaning(parts)), rtol=2**-22, atol=1e-9
    )
    assert checkpoint.load("lm_head.weight").dtype == torch.float16  # type: ignore[union-attr]
    assert checkpoint.report().warnings == []
