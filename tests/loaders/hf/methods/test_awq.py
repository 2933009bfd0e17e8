"""AWQ tensors packed by hand, in the three packings, load to the same numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from word_folders import DOWN, dequantized, int32, llama_folder, stream_words

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint

# Column 8c + ORDER[i] is in nibble i of word c.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def gemm_words(rows: np.ndarray) -> Tensor:
    return int32(
        [
            [
                sum(int(row[8 * c + ORDER[i]]) << (4 * i) for i in range(8))
                for c in range(len(row) // 8)
            ]
            for row in rows
        ]
    )


def padded_groups(k: int, group: int) -> int:
    multiple = {64: 2, 32: 4}.get(group, 1)
    width = -(-(k // group) // 8)
    return 8 * (-(-width // multiple) * multiple)


def fast_words(q_NK: np.ndarray) -> Tensor:
    """The description's four steps, with one index computed at a time."""
    n, k = q_NK.shape
    out = np.zeros((n // 4, k), dtype=np.uint16)
    pairs = np.arange(32).reshape(4, 4, 2).swapaxes(0, 1).reshape(32)
    for r in range(n // 4):
        for block in range(k // 64):
            flat = []
            for row in range(4 * r, 4 * r + 4):
                for half in range(2):
                    run = [q_NK[row, 64 * block + 32 * half + int(p)] for p in pairs]
                    for eight in range(4):
                        flat += [run[8 * eight + j] for j in ORDER]
            for i in range(64):
                word = sum(int(flat[4 * i + j]) << (4 * j) for j in range(4))
                out[r, 64 * block + i] = word
    return torch.from_numpy(out.view(np.int16))


class Case:
    """A random weight and its tensors in every packing."""

    def __init__(self, n: int, k: int, group: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape = n, k
        self.said_group = group
        group = k if group == -1 else group
        self.groups, self.padded = k // group, padded_groups(k, group)
        self.q = rng.integers(0, 16, (n, k))
        self.scales = rng.normal(size=(n, self.groups)).astype(np.float16)
        self.zeros = rng.integers(0, 16, (self.groups, n))
        self.g_idx = np.arange(k) // group

    def parts(self, packing: str, zeros: bool = True) -> dict[str, Tensor]:
        missing = self.padded - self.groups
        scales_GN, z_GN = self.scales.T, self.zeros
        if packing == "gemm":
            parts: dict[str, Any] = {"qweight": gemm_words(self.q.T), "scales": scales_GN.copy()}
            parts["qzeros"] = gemm_words(z_GN)
        elif packing == "gemv":
            parts = {"qweight": int32([stream_words(row, 4) for row in self.q])}
            parts["scales"] = np.pad(self.scales, ((0, 0), (0, missing)))
            rows = np.pad(z_GN.T, ((0, 0), (0, missing)))
            parts["qzeros"] = int32([stream_words(row, 4) for row in rows])
        else:
            parts = {"qweight": fast_words(self.q)}
            parts["scales"] = np.pad(scales_GN, ((0, missing), (0, 0)))
            parts["qzeros"] = np.pad(self.offsets(), ((0, missing), (0, 0)))
        if not zeros:
            del parts["qzeros"]
        return {
            name: part if isinstance(part, Tensor) else torch.from_numpy(np.ascontiguousarray(part))
            for name, part in parts.items()
        }

    def offsets(self) -> np.ndarray:
        """-zero * scale, rounded to float16 as the files hold it: [G, N]."""
        return (-self.zeros * self.scales.T.astype(np.float32)).astype(np.float16)

    def config(self, **more: Any) -> dict[str, Any]:
        group = self.said_group
        known = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
        return known | more


def load(folder) -> tuple[QuantizedLinear, list[str]]:
    checkpoint = open_checkpoint(folder)
    weight = checkpoint.load(f"{DOWN}.weight")
    checkpoint.close()
    assert isinstance(weight, QuantizedLinear)
    return weight, checkpoint.report().warnings


def check(case: Case, weight: QuantizedLinear, packing: str) -> None:
    assert torch.equal(weight.unpack(), torch.from_numpy(case.q).to(torch.uint8))
    assert torch.equal(weight.scales, torch.from_numpy(case.scales))
    assert weight.zeros is not None
    if packing == "gemv_fast":
        assert weight.format.zero == "float"
        assert torch.equal(weight.zeros, torch.from_numpy(case.offsets().T.copy()))
        return
    assert weight.format.zero == "int"
    want = dequantized(case.q, case.scales, case.zeros, case.g_idx)
    assert torch.equal(weight.dequantize(), want)


@pytest.mark.parametrize("group", [128, 64, 32, -1])
@pytest.mark.parametrize("packing", ["gemm", "gemv", "gemv_fast"])
def test_every_packing_loads_exactly(tmp_path, packing, group):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    k = 128 * rng.randint(1, 5)
    case = Case(8 * rng.randint(1, 5), k, group, seed)
    print(f"seed {seed}, [N, K] = {case.shape}")
    config = case.config(version=packing)
    folder = llama_folder(tmp_path / "m", case.shape, config, {DOWN: case.parts(packing)})
    weight, warnings = load(folder)
    check(case, weight, packing)
    assert warnings == []
    assert weight.format.group_size == (-1 if group in (-1, k) else group)


def test_other_group_sizes_with_gemm_and_more_columns_than_fit_at_once(tmp_path):
    case = Case(1032, 48, 16)
    folder = llama_folder(tmp_path / "m", case.shape, case.config(), {DOWN: case.parts("gemm")})
    check(case, load(folder)[0], "gemm")


def test_gemv_fast_in_several_blocks(tmp_path):
    case = Case(520, 64, 64)
    config = case.config(version="gemv_fast")
    folder = llama_folder(tmp_path / "m", case.shape, config, {DOWN: case.parts("gemv_fast")})
    check(case, load(folder)[0], "gemv_fast")


@pytest.mark.parametrize("label", ["exllama", "exllamav2", "ipex", "GEMM"])
def test_names_of_kernels_that_use_the_gemm_packing(tmp_path, label):
    case = Case(16, 128, 64)
    config = case.config(version=label)
    folder = llama_folder(tmp_path / "m", case.shape, config, {DOWN: case.parts("gemm")})
    check(case, load(folder)[0], "gemm")


def test_old_spellings_and_a_side_file(tmp_path):
    case = Case(16, 128, 64)
    side = {"quant_config.json": {"w_bit": 4, "q_group_size": 64, "zero_point": True}}
    folder = llama_folder(tmp_path / "m", case.shape, None, {DOWN: case.parts("gemm")}, side)
    weight, warnings = load(folder)
    check(case, weight, "gemm")
    assert warnings == []


def test_llm_awq_names(tmp_path):
    case = Case(16, 128, 64)
    parts = case.parts("gemv_fast")
    parts["scaled_zeros"] = parts.pop("qzeros")
    folder = llama_folder(tmp_path / "m", case.shape, case.config(backend="llm-awq"), {DOWN: parts})
    check(case, load(folder)[0], "gemv_fast")


@pytest.mark.parametrize("packing", ["gemm", "gemv", "gemv_fast"])
def test_a_wrong_label_does_no_harm(tmp_path, packing):
    case = Case(16, 256, 128)
    label = {"gemm": "gemv", "gemv": "gemv_fast", "gemv_fast": "gemm"}[packing]
    config = case.config(version=label)
    folder = llama_folder(tmp_path / "m", case.shape, config, {DOWN: case.parts(packing)})
    weight, (warning,) = load(folder)
    check(case, weight, packing)
    assert f"the label says {label} but the tensors are packed as {packing}" in warning


@pytest.mark.parametrize("packing", ["gemm", "gemv", "gemv_fast"])
def test_zero_points_may_be_missing(tmp_path, packing):
    for key, value in (("zero_point", False), ("sym", True)):
        case = Case(16, 128, 64)
        case.zeros[:] = 8
        config = case.config(version=packing) | {key: value}
        parts = case.parts(packing, zeros=False)
        weight, _ = load(llama_folder(tmp_path / key, case.shape, config, {DOWN: parts}))
        assert (weight.format.zero, weight.zeros) == ("none", None)
        want = dequantized(case.q, case.scales, case.zeros, case.g_idx)
        assert torch.equal(weight.dequantize(), want)


def test_constant_zero_points_are_symmetric(tmp_path):
    case = Case(16, 128, 64)
    case.zeros[:] = 8
    for packing in ("gemm", "gemv"):
        config = case.config(version=packing)
        folder = llama_folder(tmp_path / packing, case.shape, config, {DOWN: case.parts(packing)})
        assert load(folder)[0].format.zero == "none"


def test_zero_biases_and_modules_not_to_convert(tmp_path):
    case = Case(16, 128, 64)
    parts = case.parts("gemm") | {"bias": torch.zeros(16, dtype=torch.float16)}
    config = case.config(modules_to_not_convert=["lm_head", "self_attn"])
    weight, warnings = load(llama_folder(tmp_path / "m", case.shape, config, {DOWN: parts}))
    check(case, weight, "gemm")
    assert warnings == []
    config = case.config(modules_to_not_convert=["mlp"])
    weight, (warning,) = load(llama_folder(tmp_path / "m2", case.shape, config, {DOWN: parts}))
    check(case, weight, "gemm")
    assert f"{DOWN} is quantized although the config says not" in warning


def test_auto_round_with_awq_packing(tmp_path):
    case = Case(16, 128, 64)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": False}
    config |= {"packing_format": "auto_round:auto_awq", "data_type": "int", "act_bits": 16}
    config["extra_config"] = {"down_proj": {"group_size": 64}}
    folder = llama_folder(tmp_path / "m", case.shape, config, {DOWN: case.parts("gemm")})
    check(case, load(folder)[0], "gemm")


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[HalfbyteError], str]] = {
    "marlin": ({"version": "marlin"}, {}, UnsupportedModelError, "version is 'marlin'; supported"),
    "unknown": ({"version": "x"}, {}, UnsupportedModelError, "version is 'x'; supported are gemm"),
    "two labels": (
        {"version": "gemm", "format": "gemv"},
        {},
        CheckpointError,
        "version means gemm but format means gemv",
    ),
    "bits": ({"bits": 3}, {}, UnsupportedModelError, "has 3 bits; AWQ is supported with 4"),
    "group": ({"group_size": 48}, {}, UnsupportedModelError, "no multiple of group_size 48"),
    "large group": (
        {"group_size": 256},
        {},
        UnsupportedModelError,
        "no multiple of group_size 256",
    ),
    "wrong group": ({"group_size": 32}, {}, CheckpointError, "expected I32 [128, 2], [4, 16]"),
    "no zeros": ({}, {"qzeros": None}, CheckpointError, "no qzeros; expected them unless"),
    "no scales": ({}, {"scales": None}, CheckpointError, "has qweight, qzeros but no scales"),
    "nan": ({}, {"scales": float("nan")}, CheckpointError, "scales holds nan at element 17"),
    "dtype": ({}, {"qweight": "long"}, CheckpointError, "qweight is I64; expected I32"),
    "zeros dtype": ({}, {"qzeros": "half"}, CheckpointError, "qzeros is F16; expected I32"),
    "shape": ({}, {"qweight": "t"}, CheckpointError, "qweight I32 [2, 128], scales [2, 16]"),
    "names": ({"modules_to_not_convert": "a"}, {}, CheckpointError, "expected a list of names"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(tmp_path, name):
    change, damage, kind, told = BAD[name]
    case = Case(16, 128, 64)
    parts = case.parts("gemm")
    for part, value in damage.items():
        if value is None:
            del parts[part]
        elif isinstance(value, str):
            parts[part] = getattr(parts[part], value)().contiguous()
        else:
            parts[part][1, 1] = value
    folder = llama_folder(tmp_path / "m", case.shape, case.config(**change), {DOWN: parts})
    with pytest.raises(kind) as caught:
        open_checkpoint(folder).load(f"{DOWN}.weight")
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)
