"""HQQ: halves of a matrix in the nibbles of a byte, float zeros, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from bnb_support import BASE, Opened, named
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.loaders.hf.methods.hqq import HQQ


def text(value: str) -> Tensor:
    return torch.tensor([ord(c) for c in value], dtype=torch.uint8)


def module(
    seed: int, n: int, k: int, group: int, bits: int
) -> tuple[dict[str, Tensor], np.ndarray]:
    """The stored tensors of random codes, and the matrix that they mean."""
    rng = np.random.default_rng(seed)
    rows = n * k // group
    codes = rng.integers(0, 1 << bits, (rows, group))
    scale = rng.random((rows, 1), dtype=np.float32).astype(np.float16)
    zero = (rng.random((rows, 1), dtype=np.float32) * 15).astype(np.float16)
    packed = codes if bits != 4 else codes[: rows // 2] << 4 | codes[rows // 2 :]
    found = {
        "W_q": torch.from_numpy(packed.astype(np.uint8)),
        "scale": torch.from_numpy(scale),
        "zero": torch.from_numpy(zero),
        "nbits": torch.tensor(bits, dtype=torch.int32),
        "group_size": torch.tensor(group, dtype=torch.int32),
        "axis": torch.tensor(1, dtype=torch.int32),
        "shape": torch.tensor([n, k]),
        "packing": text("4bit_u8" if bits == 4 else "8bit_u8"),
        "view_as_float": torch.tensor(0, dtype=torch.uint8),
        "quant_scale": torch.tensor(0, dtype=torch.uint8),
        "quant_zero": torch.tensor(0, dtype=torch.uint8),
        "encoded_state_dict": torch.tensor(1, dtype=torch.uint8),
        "compute_dtype": text("torch.float16"),
    }
    want = (codes - zero.astype(np.float64)) * scale.astype(np.float64)
    return found, want.reshape(n, k)


def opened(found: dict[str, Tensor], n: int, k: int) -> Opened:
    return Opened(HQQ, {}, named(found), {f"{BASE}.weight": (n, k)})


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6).map(lambda i: 2 * i),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 32, 64, 128]),
    bits=st.sampled_from([4, 5, 6, 8]),
)
def test_codes_mean_what_they_say(seed, n, groups, group, bits):
    found, want = module(seed, n, groups * group, group, bits)
    weight = opened(found, n, groups * group).codes()
    assert (weight.format.zero, weight.format.group_size) == ("float", group)
    # Offset, product and sum are rounded to float32, of terms up to 255 scales.
    np.testing.assert_allclose(weight.dequantize().numpy(), want, rtol=0, atol=255 * 2**-22)


def test_groups_that_cross_rows_are_cut_where_rows_end():
    found, want = module(3, 4, 96, 64, 4)
    model = opened(found, 4, 96)
    assert model.codes().format.group_size == 32
    np.testing.assert_allclose(model.codes().dequantize().numpy(), want, rtol=0, atol=1e-5)
    assert "read as groups of 32" in model.report.decisions[0]


def test_codes_viewed_as_float16():
    found, want = module(4, 4, 64, 64, 4)
    found["W_q"] = found["W_q"].view(torch.float16)
    found["view_as_float"] = torch.tensor(1, dtype=torch.uint8)
    np.testing.assert_allclose(
        opened(found, 4, 64).codes().dequantize().numpy(), want, rtol=0, atol=1e-5
    )


ONE = torch.tensor(1, dtype=torch.uint8)
CASES: list[tuple[dict[str, Any], type[HalfbyteError], str]] = [
    ({"axis": torch.tensor(0, dtype=torch.int32)}, UnsupportedModelError, "axis 0"),
    ({"packing": text("3bit_32")}, UnsupportedModelError, "packing '3bit_32'"),
    ({"packing": text("8bit_u8")}, CheckpointError, "nbits is 4"),
    ({"packing": text("x" * 100)}, CheckpointError, "at most 64 characters"),
    ({"quant_zero": ONE}, UnsupportedModelError, "quantized themselves"),
    ({"scale_q": ONE}, UnsupportedModelError, "quantized themselves"),
    ({"zero": None}, CheckpointError, f"{BASE}.zero is missing"),
    ({"nbits": None}, CheckpointError, f"{BASE}.nbits is missing"),
    ({"shape": torch.tensor([128, 4])}, CheckpointError, r"shape is \[128, 4\]"),
    ({"shape": torch.tensor([4, 128, 1])}, CheckpointError, r"shape is I64 \[3\]"),
    ({"group_size": torch.tensor(0, dtype=torch.int32)}, CheckpointError, "group_size is 0"),
    ({"group_size": torch.tensor(-1, dtype=torch.int32)}, CheckpointError, "group_size is -1"),
    ({"group_size": torch.tensor(48, dtype=torch.int32)}, CheckpointError, "group_size is 48"),
    ({"group_size": torch.tensor(4, dtype=torch.int32)}, UnsupportedModelError, "groups of 4"),
    ({"group_size": torch.tensor([64, 64], dtype=torch.int32)}, CheckpointError, "group_size is I"),
    ({"scale": torch.ones(9, 1)}, CheckpointError, r"scale is F32 \[9, 1\]"),
    ({"zero": torch.ones(8, 1, dtype=torch.int32)}, CheckpointError, "zero is I32"),
    ({"W_q": torch.zeros(4, 63, dtype=torch.uint8)}, CheckpointError, "252 bytes; expected 256"),
    ({"W_q": None}, UnsupportedModelError, "no module has a W_q"),
]


@pytest.mark.parametrize("change,kind,message", CASES)
def test_what_does_not_fit(change, kind, message):
    found, _ = module(5, 4, 128, 64, 4)
    for key, value in change.items():
        found.pop(key) if value is None else found.update({key: value})
    with pytest.raises(kind, match=message):
        opened(found, 4, 128)


@pytest.mark.parametrize("part", ["scale", "zero"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(part, value):
    found, _ = module(6, 4, 128, 64, 4)
    found[part][5] = value
    with pytest.raises(CheckpointError, match=rf"{BASE}.{part} holds (nan|inf) at element 5"):
        opened(found, 4, 128).load()
