"""MLX: bit streams of words, scales and biases, MXFP4, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bnb_support import BASE, Opened, named
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders.hf.methods.mlx import MLX

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
KINDS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def words(codes: np.ndarray, bits: int) -> Tensor:
    """Rows of codes as words: a number of k * bits bits, cut from its low end."""
    rows = []
    for row in codes.tolist():
        stream = sum(code << (i * bits) for i, code in enumerate(row))
        rows.append([stream >> (32 * w) & 0xFFFFFFFF for w in range(len(row) * bits // 32)])
    return torch.from_numpy(np.array(rows, dtype=np.uint32))


def affine(
    seed: int, n: int, k: int, bits: int, group: int, kind: torch.dtype = torch.float16
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Tensors of random codes, and the float32 matrix that they mean."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (n, k))
    scales, biases = (
        torch.from_numpy(rng.standard_normal((n, k // group), dtype=np.float32)).to(kind)
        for _ in range(2)
    )
    s, b = (t.float().numpy().repeat(group, axis=1) for t in (scales, biases))
    want = codes.astype(np.float32) * s + b
    return {"weight": words(codes, bits), "scales": scales, "biases": biases}, want


def config(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"bits": bits, "group_size": group, **more}


def opened(found: dict[str, Tensor], n: int, k: int, **values: Any) -> Opened:
    return Opened(MLX, values, named(found), {f"{BASE}.weight": (n, k)})


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    groups=st.integers(1, 3),
    group=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    kind=st.sampled_from(list(KINDS)),
)
def test_affine_codes_mean_what_they_say(seed, n, groups, group, bits, kind):
    found, want = affine(seed, n, groups * group, bits, group, KINDS[kind])
    model = opened(found, n, groups * group, **config(bits, group))
    assert model.modules[0].label == f"MLX {bits}-bit g{group}"
    assert np.array_equal(model.codes().dequantize().numpy(), want)


def test_mxfp4_is_codes_and_exponents():
    rng = np.random.default_rng(5)
    codes, bytes_ = rng.integers(0, 16, (3, 64)), rng.integers(100, 150, (3, 2))
    found = {"weight": words(codes, 4), "scales": torch.from_numpy(bytes_.astype(np.uint8))}
    want = np.array(E2M1)[codes] * 2.0 ** (bytes_ - 127).repeat(32, axis=1)
    weight = opened(found, 3, 64, **config(4, 32, mode="mxfp4")).codes()
    assert np.array_equal(weight.dequantize().numpy(), want.astype(np.float32))


def test_experts_are_slices_of_stacks_with_settings_of_their_own():
    made = [affine(seed, 4, 64, 3, 32) for seed in range(3)]
    stacked = {key: torch.stack([parts[key] for parts, _ in made]) for key in made[0][0]}
    stem = "model.layers.0.block_sparse_moe"
    shapes = {f"{stem}.experts.{i}.w2.weight": (4, 64) for i in range(3)}
    values = config(4, 64) | {f"{stem}.switch_mlp.down_proj": config(3, 32)}
    tensors = named(stacked, f"{stem}.switch_mlp.down_proj")
    model = Opened(MLX, values, tensors, shapes)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    assert sum(module.nbytes for module in model.modules) == total
    for i, (_, want) in enumerate(made):
        assert np.array_equal(model.codes(i).dequantize().numpy(), want)


def broken(change: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found, _ = affine(1, 4, 64, 4, 32)
    values = config(4, 32)
    if change == "bits":
        values["bits"] = 3
    elif change == "group":
        values["group_size"] = 64
    elif change == "dtype":
        found["weight"] = found["weight"].view(torch.int32)
    elif change == "mixed":
        found["biases"] = found["biases"].float()
    elif change == "plain":
        values[BASE] = False
    elif change == "key":
        values["sym"] = 3
    elif change == "width":
        values["bits"] = 7
    elif change == "mode":
        values["mode"], found["scales"] = "mxfp4", torch.zeros(4, 2, dtype=torch.uint8)
    elif change == "rows":
        found["biases"] = found["biases"][:2]
    else:
        del found[change]
    return found, values


@pytest.mark.parametrize(
    "change,said",
    [
        ("bits", r"up_proj\.weight is \[4, 8\]; expected \[4, 6\] \(3 bits of \[4, 64\] by folder"),
        ("group", r"up_proj\.scales is \[4, 2\]; expected \[4, 1\] \(groups of 64"),
        ("dtype", r"up_proj\.weight is I32; expected U32"),
        ("mixed", r"up_proj\.biases is F32; expected F16"),
        ("mode", r"up_proj\.biases is stored; expected none in mode mxfp4"),
        ("rows", r"up_proj\.biases is \[2, 2\]; expected \[4, 2\]"),
        ("plain", r"up_proj is false, but tensor .*up_proj\.scales is stored"),
        ("key", r"'sym' is 3; expected group_size"),
        ("width", r"bits is 7; expected one of 2, 3, 4, 5, 6, 8 in mode affine"),
        ("weight", r"up_proj\.weight is missing"),
        ("scales", r"up_proj\.scales is missing"),
        ("biases", r"up_proj\.biases is missing; mode affine"),
    ],
)
def test_what_disagrees_is_named(change, said):
    found, values = broken(change)
    with pytest.raises(CheckpointError, match=said):
        opened(found, 4, 64, **values)


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_numbers_that_are_not_finite_are_named(part):
    found, _ = affine(1, 4, 64, 4, 32)
    found[part][2, 1] = float("inf")
    with pytest.raises(CheckpointError, match=rf"up_proj\.{part} holds inf at element 5"):
        opened(found, 4, 64, **config(4, 32)).load()


def test_refusals_by_name():
    found, _ = affine(1, 4, 64, 4, 32)
    with pytest.raises(UnsupportedModelError, match="mode is 'nvfp4'; supported are affine"):
        opened(found, 4, 64, **config(4, 16, mode="nvfp4"))
    with pytest.raises(UnsupportedModelError, match="no module has a scales"):
        Opened(MLX, config(4, 32), {}, {f"{BASE}.weight": (4, 64)})
