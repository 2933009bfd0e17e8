"""pack-quantized weights: every width, both layouts, act-order, against a naive packer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scaled_folders import (
    DOWN,
    codes,
    ct_config,
    field_words,
    fresh_rng,
    llama_folder,
    load_from,
    packed_parts,
    quantized,
)

from halfbyte.kernels.formats.canonical import pack_codes
from halfbyte.loaders.files.safetensors_index import StoredTensor
from halfbyte.loaders.hf.methods.base import FolderTensors
from halfbyte.loaders.hf.methods.compressed_tensors import CompressedTensors
from halfbyte.loaders.hf.methods.packed import fields, words
from halfbyte.loaders.model.report import LoadReport

# [N, K]: N fills no word and K no word either, at any width.
N, K, GROUP = 20, 96, 32


_DTYPES = {torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}


def scales_of(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(0.01, 0.2, shape).astype(np.float32))


def weights(bits: int, **more: Any) -> dict[str, Any]:
    given = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group"}
    return given | {"group_size": GROUP} | more


def expanded(values: np.ndarray, group_of: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)[:, group_of])


@pytest.mark.parametrize("dense", [True, False], ids=["stream", "whole fields"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_in_both_layouts(tmp_path, bits, symmetric, dense):
    rng = fresh_rng()
    n, k = N, 192  # wide enough for the width to tell the layouts apart
    q_NK, s_NG = codes(rng, n, k, bits), scales_of(rng, n, k // GROUP)
    z_NG = None if symmetric else codes(rng, n, k // GROUP, bits)
    parts = packed_parts(q_NK, s_NG, bits, dense, z_NG)
    config = ct_config(weights(bits, symmetric=symmetric))
    linear = quantized(llama_folder(tmp_path / "m", (n, k), parts, config))
    group_of = np.arange(k) // GROUP
    zeros = np.zeros((n, k // GROUP)) if z_NG is None else z_NG
    want = (torch.from_numpy(q_NK.astype(np.float32)) - expanded(zeros, group_of)) * expanded(
        s_NG.numpy(), group_of
    )
    assert (linear.format.bits, linear.format.group_size) == (bits, GROUP)
    assert linear.format.zero == ("none" if symmetric else "int")
    assert linear.format.act is None
    assert torch.equal(linear.dequantize(), want)
    assert torch.equal(linear.codes, pack_codes(linear.unpack().contiguous(), bits))


@pytest.mark.parametrize("dense", [True, False], ids=["stream", "whole fields"])
@pytest.mark.parametrize("count", [1, 7, 10, 20, 30, 64, 100, 192])
@pytest.mark.parametrize("bits", range(2, 9))
def test_fields_of_any_number(bits, count, dense):
    rng = fresh_rng()
    values = rng.integers(0, 1 << bits, (3, count))
    rows = [field_words(row.tolist(), bits, dense) for row in values]
    assert len(rows[0]) == words(count, bits, dense)
    raw = torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32).copy())
    want = pack_codes(torch.from_numpy(values.astype(np.uint8)), bits)
    assert torch.equal(fields(raw, count, bits, dense), want)


@pytest.mark.parametrize("dense", [True, False], ids=["stream", "whole fields"])
def test_short_rows_whose_width_tells_nothing(tmp_path, dense):
    rng = fresh_rng()
    n, k = N, 60  # 6 words of 3-bit fields either way
    assert words(k, 3, True) == words(k, 3, False)
    q_NK, s_NG = codes(rng, n, k, 3), scales_of(rng, n, 1)
    config = ct_config(weights(3, strategy="channel", group_size=None))
    folder = llama_folder(tmp_path / "m", (n, k), packed_parts(q_NK, s_NG, 3, dense), config)
    want = torch.from_numpy(q_NK.astype(np.float32)) * s_NG
    assert torch.equal(quantized(folder).dequantize(), want)


@pytest.mark.parametrize(
    ("shape", "strategy", "size"),
    [((N, 1), "channel", -1), ((1,), "tensor", None), ((N, 1), "group", 2 * K)],
)
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_wider_scales(tmp_path, shape, strategy, size, symmetric):
    rng = fresh_rng()
    q_NK, scale = codes(rng, N, K, 4), scales_of(rng, *shape)
    zero = None if symmetric else codes(rng, N, 1, 4)
    parts = packed_parts(q_NK, scale, 4, True, zero)
    if strategy == "tensor" and zero is not None:  # kept as it is, not packed
        zero = zero[:1]
        parts["weight_zero_point"] = torch.from_numpy(zero[0].astype(np.int8))
    config = ct_config(weights(4, strategy=strategy, group_size=size, symmetric=symmetric))
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    q = torch.from_numpy(q_NK.astype(np.float32))
    want = (q - (0 if zero is None else torch.from_numpy(zero.astype(np.float32)))) * scale
    assert linear.format.group_size == -1 and linear.scales.shape == (N, 1)
    assert torch.equal(linear.dequantize(), want)


def test_scales_keep_their_own_type_and_tensors_beat_the_config(tmp_path):
    rng = fresh_rng()
    q_NK, scale = codes(rng, N, K, 8), scales_of(rng, N, 1).bfloat16()
    folder = llama_folder(
        tmp_path / "m", (N, K), packed_parts(q_NK, scale, 8), ct_config(weights(8))
    )
    linear, decisions, _ = load_from(folder)
    assert linear.scales.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert any("per channel where the config says group" in text for text in decisions)


def act_order(rng: np.random.Generator, regular: bool) -> np.ndarray:
    group_of = np.repeat(np.arange(K // GROUP), GROUP)
    rng.shuffle(group_of)
    if not regular:  # one column changes its group
        group_of[0] = (group_of[0] + 1) % (K // GROUP)
    return group_of


@pytest.mark.parametrize("regular", [True, False], ids=["equal groups", "unequal groups"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_act_order(tmp_path, bits, regular):
    rng = fresh_rng()
    q_NK, s_NG = codes(rng, N, K, bits), scales_of(rng, N, K // GROUP)
    z_NG = codes(rng, N, K // GROUP, bits)
    group_of = act_order(rng, regular)
    parts = packed_parts(q_NK, s_NG, bits, True, z_NG)
    parts["weight_g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    config = ct_config(weights(bits, symmetric=False, actorder="group"))
    weight, decisions, _ = load_from(llama_folder(tmp_path / "m", (N, K), parts, config))
    want = (torch.from_numpy(q_NK.astype(np.float32)) - expanded(z_NG, group_of)) * expanded(
        s_NG.numpy(), group_of
    )
    if regular:
        assert weight.format.permuted and weight.perm.dtype == torch.int32  # type: ignore
        assert sorted(weight.perm.tolist()) == list(range(K))  # type: ignore[union-attr]
        assert torch.equal(weight.dequantize(), want)  # type: ignore[union-attr]
    else:
        assert isinstance(weight, torch.Tensor) and weight.dtype == torch.float32
        assert torch.equal(weight, want)
        assert any(f"{DOWN}: act-order with groups of unequal size" in text for text in decisions)


@pytest.mark.parametrize(
    "group_of", [np.full(K, -1), np.arange(K) // GROUP], ids=["unset", "plain"]
)
def test_act_order_that_changes_nothing(tmp_path, group_of):
    rng = fresh_rng()
    q_NK, s_NG = codes(rng, N, K, 4), scales_of(rng, N, K // GROUP)
    parts = packed_parts(q_NK, s_NG, 4)
    parts["weight_g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    config = ct_config(weights(4, actorder="group"))
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, config))
    assert linear.perm is None and not linear.format.permuted


@pytest.mark.parametrize("form", ["int8", "packed"])
def test_zero_points_of_symmetric_weights_may_be_stored_when_they_are_zero(tmp_path, form):
    rng = fresh_rng()
    q_NK, s_NG = codes(rng, N, K, 4), scales_of(rng, N, K // GROUP)
    zeros = np.zeros((N, K // GROUP), dtype=np.int64)
    parts = packed_parts(q_NK, s_NG, 4, True, zeros)
    if form == "int8":
        parts["weight_zero_point"] = torch.from_numpy(zeros.astype(np.int8))
    linear = quantized(llama_folder(tmp_path / "m", (N, K), parts, ct_config(weights(4))))
    assert linear.format.zero == "none" and linear.zeros is None


@pytest.mark.parametrize("dense", [True, False])
def test_what_was_checked_is_said(tmp_path, dense):
    rng = fresh_rng()
    n, k = N, 192
    parts = packed_parts(codes(rng, n, k, 3), scales_of(rng, n, 6), 3, dense)
    parts["weight_g_idx"] = torch.arange(k, dtype=torch.int32) // GROUP
    folder = llama_folder(tmp_path / "m", (n, k), parts, ct_config(weights(3)))
    stored = {
        f"{DOWN}.{name}": StoredTensor(
            f"{DOWN}.{name}", _DTYPES[value.dtype], tuple(value.shape), 0, 0, value.nbytes
        )
        for name, value in parts.items()
    }
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    method = CompressedTensors("m: config.json", config, LoadReport("safetensors"))
    shapes = {f"{DOWN}.weight": (n, k)}
    (module,) = method.modules(
        FolderTensors(stored, shapes, lambda tensor: parts[tensor.name.split(".")[-1]])
    )
    layout = "fields cross words" if dense else "whole fields in each word (older layout)"
    assert module.checks == (
        "weight_shape is that of the config",
        layout,
        "groups of columns are listed (act-order)",
    )
    assert module.label == "3-bit g32 sym" and set(module.parts) == set(parts)


def test_inputs_of_eight_bits(tmp_path):
    rng = fresh_rng()
    q_NK, s_NG = codes(rng, N, K, 4), scales_of(rng, N, K // GROUP)
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    config = ct_config(weights(4), input_activations=inputs)
    linear = quantized(llama_folder(tmp_path / "m", (N, K), packed_parts(q_NK, s_NG, 4), config))
    assert linear.format.act is not None and linear.format.act.top == 127.5
