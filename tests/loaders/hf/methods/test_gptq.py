"""GPTQ tensors packed by hand, of every width and kind, load to the same numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from word_folders import DOWN, dequantized, gptq_parts, llama_folder

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.report import LoadReport


@dataclass
class Case:
    """A random weight and the folder's config that goes with it."""

    n: int
    k: int
    bits: int = 4
    group: int = 32
    sym: bool = True
    version: str = "v1"
    order: bool = False
    seed: int = 0
    dtype: Any = np.float16
    q: np.ndarray = field(init=False)
    scales: np.ndarray = field(init=False)
    zeros: np.ndarray = field(init=False)
    g_idx: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        group = self.k if self.group == -1 else min(self.group, self.k)
        groups = -(-self.k // group)
        top = 1 << self.bits
        self.q = rng.integers(0, top, (self.n, self.k))
        # Negative scales and scales of 0 are legal.
        self.scales = rng.normal(size=(self.n, groups)).astype(self.dtype)
        self.scales[0, 0] = 0
        self.zeros = np.full((groups, self.n), top // 2)
        if not self.sym:
            self.zeros = rng.integers(0, top, (groups, self.n))
            self.zeros[0, : min(3, self.n)] = [0, top - 1, 0][: min(3, self.n)]
        self.g_idx = np.arange(self.k) // group
        if self.order:
            rng.shuffle(self.g_idx)

    def config(self, **more: Any) -> dict[str, Any]:
        label = "gptq" if self.version == "v1" else "gptq_v2"
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.sym,
            "desc_act": self.order,
            "checkpoint_format": label,
            "meta": {"quantizer": ["gptqmodel:7.7.0"]},
            **more,
        }

    def parts(self, g_idx: bool = True) -> dict[str, Tensor]:
        parts = gptq_parts(self.q, self.scales, self.zeros, self.bits, self.version)
        if g_idx:
            parts["g_idx"] = torch.from_numpy(self.g_idx.astype(np.int32))
        return parts

    def values(self) -> Tensor:
        return dequantized(self.q, self.scales, self.zeros, self.g_idx)


def load(folder: Path, name: str = f"{DOWN}.weight") -> tuple[Any, LoadReport]:
    checkpoint = open_checkpoint(folder)
    weight = checkpoint.load(name)
    checkpoint.close()
    return weight, checkpoint.report()


def natural(weight: QuantizedLinear) -> Tensor:
    """Codes [N, K] in the input's own order of columns."""
    codes = weight.unpack()
    if weight.perm is None:
        return codes
    out = torch.empty_like(codes)
    out[:, weight.perm.long()] = codes
    return out


def check(case: Case, weight: Any) -> None:
    """Codes, scales, zeros and values are exactly those of the case."""
    assert isinstance(weight, QuantizedLinear)
    assert weight.shape == (case.n, case.k)
    assert weight.format.bits == case.bits
    assert torch.equal(natural(weight), torch.from_numpy(case.q).to(torch.uint8))
    assert torch.equal(weight.scales, torch.from_numpy(case.scales))
    if case.sym:
        assert (weight.format.zero, weight.zeros) == ("none", None)
    else:
        assert weight.format.zero == "int"
        assert weight.zeros is not None
        assert torch.equal(weight.zeros.long(), torch.from_numpy(case.zeros.T))
    assert torch.equal(weight.dequantize(), case.values())


@pytest.mark.parametrize("order", [False, True], ids=["in-order", "act-order"])
@pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_kind_loads_exactly(tmp_path, bits, version, sym, order):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for group in (-1, 16, rng.choice([32, 64, 128, 256])):
        # K is a multiple of the group, or not, or smaller.
        k = 32 * rng.randint(1, 10)
        n = 4 * rng.randint(1, 12)
        print(f"seed {seed}, group {group}, [N, K] = [{n}, {k}]")
        dtype = rng.choice([np.float16, np.float32])
        case = Case(n, k, bits, group, sym, version, order, rng.randrange(1 << 32), dtype)
        folder = llama_folder(tmp_path / str(group), (n, k), case.config(), {DOWN: case.parts()})
        weight, report = load(folder)
        check(case, weight)
        assert report.warnings == []
        moved = not np.array_equal(case.g_idx, np.sort(case.g_idx))
        assert weight.format.permuted == moved == (weight.perm is not None)
        assert weight.format.group_size == (-1 if case.scales.shape[1] == 1 else group)
        assert any("zeros: checkpoint_format" in text for text in report.decisions)
        assert any("act-order" in text for text in report.decisions) == moved


def test_rows_that_fill_no_whole_word(tmp_path):
    """K * bits is no multiple of 32, nor of 8: the last word is partly used."""
    for bits, k in ((4, 36), (2, 20), (3, 44), (8, 10)):
        case = Case(12, k, bits, 16, sym=False, seed=bits)
        folder = llama_folder(tmp_path / str(bits), (12, k), case.config(), {DOWN: case.parts()})
        check(case, load(folder)[0])


def test_more_rows_than_are_converted_at_once(tmp_path):
    case = Case(1044, 32, 3, 16, sym=False, order=True)
    folder = llama_folder(tmp_path / "m", (1044, 32), case.config(), {DOWN: case.parts()})
    check(case, load(folder)[0])


def test_g_idx_may_be_missing_and_flags_do_not_decide(tmp_path):
    case = Case(16, 96, group=32)
    # desc_act with static groups keeps the order of columns: the tensor decides.
    config = case.config(desc_act=True, static_groups=True)
    for g_idx in (True, False):
        folder = llama_folder(tmp_path / str(g_idx), (16, 96), config, {DOWN: case.parts(g_idx)})
        weight, _ = load(folder)
        check(case, weight)
        assert weight.perm is None
    case = Case(16, 96, group=32, order=True)
    folder = llama_folder(
        tmp_path / "m", (16, 96), case.config(desc_act=False), {DOWN: case.parts()}
    )
    weight, _ = load(folder)
    check(case, weight)
    assert weight.perm is not None


def test_groups_of_unequal_size_become_dense(tmp_path):
    case = Case(16, 96, group=32, sym=False)
    case.g_idx = np.sort(np.random.default_rng(1).integers(0, 3, 96))
    folder = llama_folder(tmp_path / "m", (16, 96), case.config(), {DOWN: case.parts()})
    weight, report = load(folder)
    assert isinstance(weight, Tensor)
    assert torch.equal(weight, case.values())
    assert any("unequal size" in text and DOWN in text for text in report.decisions)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_symmetric_zeros_of_the_other_version_are_taken_from_the_data(tmp_path, version):
    case = Case(16, 96, version=version)
    label = {"v1": "gptq_v2", "v2": "gptq"}[version]
    config = case.config(checkpoint_format=label)
    weight, report = load(llama_folder(tmp_path / "m", (16, 96), config, {DOWN: case.parts()}))
    check(case, weight)
    (warning,) = report.warnings
    assert f"zeros are those of {version}, not of checkpoint_format {label}" in warning
    assert DOWN in warning


def test_asymmetric_zeros_follow_the_label(tmp_path):
    case = Case(16, 96, sym=False, version="v2")
    config = case.config(checkpoint_format="gptq", meta=None)
    weight, report = load(llama_folder(tmp_path / "m", (16, 96), config, {DOWN: case.parts()}))
    case.zeros = (case.zeros + 1) % 16
    # Some field was 15: there the addition to whole words carries, as the writer would borrow.
    assert weight.format.zero == "int"
    assert float((weight.zeros.long() == torch.from_numpy(case.zeros.T)).float().mean()) > 0.8
    (warning,) = report.warnings
    assert "some writers destroyed its neighbours" in warning


def test_symmetric_by_label_but_not_by_data(tmp_path):
    case = Case(16, 96, sym=False)
    config = case.config(sym=True)
    weight, report = load(llama_folder(tmp_path / "m", (16, 96), config, {DOWN: case.parts()}))
    check(case, weight)
    assert any("sym is true but zeros are not constant" in text for text in report.warnings)


def test_asymmetric_by_label_but_constant_as_the_other_version(tmp_path):
    case = Case(16, 96, version="v2")
    config = case.config(sym=False, checkpoint_format="gptq")
    weight, report = load(llama_folder(tmp_path / "m", (16, 96), config, {DOWN: case.parts()}))
    assert bool((weight.zeros == 9).all())
    assert any("zeros look symmetric as v2; read as v1" in text for text in report.warnings)


def test_zeros_that_change_after_the_sample(tmp_path):
    case = Case(16, 512, group=32, version="v2")
    parts = case.parts()
    parts["qzeros"][1, 0] = 0
    config = case.config(checkpoint_format="gptq")
    folder = llama_folder(tmp_path / "m", (16, 512), config, {DOWN: parts})
    with pytest.raises(CheckpointError, match=r"qzeros begins as symmetric zeros of v2 but is not"):
        load(folder)


def test_side_file_without_a_method(tmp_path):
    """Old AutoGPTQ: only quantize_config.json, no quant_method, no format."""
    case = Case(16, 96, order=True)
    side = {"bits": 4, "group_size": 32, "sym": True, "desc_act": True, "damp_percent": 0.01}
    files = {"quantize_config.json": side}
    folder = llama_folder(tmp_path / "m", (16, 96), None, {DOWN: case.parts()}, files)
    weight, report = load(folder)
    check(case, weight)
    assert any("no checkpoint_format, which means gptq" in text for text in report.decisions)


def test_dynamic_overrides_and_a_quantized_head(tmp_path):
    down = Case(16, 96, 8, 32, seed=1)
    up, head = Case(96, 16, 3, 16, seed=2), Case(8, 16, 4, -1, sym=False, seed=3)
    dynamic = {
        r"+:.*\.(?:gate|up)_proj": {"bits": 3, "group_size": 16},
        r".*mlp\.down_proj": {"bits": 8},
        r"lm_head": {"group_size": -1, "sym": False},
        r"-:.*": {},
    }
    up_name = "model.layers.0.mlp.up_proj"
    folder = llama_folder(
        tmp_path / "m",
        (16, 96),
        Case(1, 1).config(dynamic=dynamic, lm_head=True),
        {DOWN: down.parts(), up_name: up.parts(), "lm_head": head.parts()},
    )
    for case, name in ((down, DOWN), (up, up_name), (head, "lm_head")):
        weight, report = load(folder, f"{name}.weight")
        check(case, weight)
        assert report.warnings == []
    assert set(report.formats) >= {
        "GPTQ 8-bit g32 sym",
        "GPTQ 3-bit per channel sym",
        "GPTQ 4-bit per channel asym",
    }


def test_tensors_win_over_bits_and_groups_and_negative_rules(tmp_path):
    case = Case(16, 96, 8, 48)
    config = case.config(bits=4, group_size=64, dynamic={"-:.*down": {}})
    weight, report = load(llama_folder(tmp_path / "m", (16, 96), config, {DOWN: case.parts()}))
    check(case, weight)
    assert weight.format.group_size == 48
    told = "\n".join(report.warnings)
    assert f"{DOWN} (4 by config, 8 by tensors)" in told
    assert f"{DOWN} (64 by config, 48 by tensors)" in told
    assert "quantized although the config says not" in told


def test_zero_biases_are_dropped_and_others_refused(tmp_path):
    case = Case(16, 96)
    parts = case.parts() | {"bias": torch.zeros(16, dtype=torch.float16)}
    folder = llama_folder(tmp_path / "m", (16, 96), case.config(), {DOWN: parts})
    weight, report = load(folder)
    check(case, weight)
    assert "zero biases that the model does not have dropped: 1" in report.decisions
    assert report.warnings == []
    parts["bias"][3] = 1
    folder = llama_folder(tmp_path / "m2", (16, 96), case.config(), {DOWN: parts})
    with pytest.raises(UnsupportedModelError, match=rf"{DOWN}.bias is not part of a llama model"):
        open_checkpoint(folder)


def test_biases_of_the_model_stay(tmp_path):
    case = Case(16, 16)
    name = "model.layers.0.self_attn.o_proj"
    zeros = {f"model.layers.0.self_attn.{p}_proj.bias": torch.zeros(16) for p in "qkvo"}
    folder = llama_folder(
        tmp_path / "m",
        (16, 16),
        case.config(),
        {name: case.parts()},
        extra=zeros,
        config={"attention_bias": True},
    )
    assert load(folder, f"{name}.bias")[0].shape == (16,)


def test_stacked_projections_with_act_order(tmp_path):
    """qkv in one tensor: its parts share the order of columns, so they may be stacked again."""
    case = Case(96, 32, 4, 16, sym=False, order=True)
    folder = llama_folder(tmp_path / "m", (32, 64), case.config(), {})
    layer = "model.layers.0.self_attn."
    tensors = load_file(folder / "model.safetensors")
    for p in "qkv":
        del tensors[f"{layer}{p}_proj.weight"]
    tensors |= {f"{layer}qkv_proj.{s}": t for s, t in case.parts().items()}
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    parts = [checkpoint.load(f"{layer}{p}_proj.weight") for p in "qkv"]
    assert all(isinstance(part, QuantizedLinear) for part in parts)
    whole = QuantizedLinear.concat([p for p in parts if isinstance(p, QuantizedLinear)])
    assert torch.equal(whole.dequantize(), case.values())


@pytest.mark.parametrize(
    ("packing", "version", "sym"),
    [
        ("auto_round:auto_gptq", "v1", True),
        ("auto_round:auto_gptq", "v1", False),
        ("auto_round:gptqmodel", "v2", True),
        ("auto_round:gptqmodel", "v2", False),
        ("auto_round:exllamav2", "v2", False),
        ("auto_round:exllamav2", "v1", True),
        ("auto_round:exllamav2", "v2", True),
        ("auto_round", "v2", False),
        ("autoround:gptq:exllamav2", "v1", True),
    ],
)
def test_auto_round_labels(tmp_path, packing, version, sym):
    case = Case(16, 96, sym=sym, version=version)
    for method, key in (("auto-round", "packing_format"), ("intel/auto-round", "backend")):
        config = {
            "quant_method": method,
            "bits": 4,
            "group_size": 32,
            "sym": sym,
            "data_type": "int",
            "act_bits": 16,
            key: packing,
        }
        parts = case.parts(g_idx=False)
        weight, report = load(llama_folder(tmp_path / method, (16, 96), config, {DOWN: parts}))
        check(case, weight)
        assert report.warnings == []


def test_auto_round_extra_config(tmp_path):
    down, gate = Case(16, 96, 8, 32, seed=1), Case(96, 16, 2, 16, sym=False, seed=2)
    config = {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "packing_format": "auto_round:auto_gptq",
        "extra_config": {
            "gate_proj$": {"bits": 2, "group_size": 16, "sym": False},
            DOWN: {"bits": 8, "data_type": "int"},
            "lm_head": {"bits": 16},
        },
    }
    gate_name = "model.layers.0.mlp.gate_proj"
    modules = {DOWN: down.parts(False), gate_name: gate.parts(False)}
    folder = llama_folder(tmp_path / "m", (16, 96), config, modules)
    for case, name in ((down, DOWN), (gate, gate_name)):
        weight, report = load(folder, f"{name}.weight")
        check(case, weight)
        assert report.warnings == []


def test_a_config_without_quantized_tensors_is_reported(tmp_path):
    folder = llama_folder(tmp_path / "m", (16, 96), Case(1, 1).config(), {})
    checkpoint = open_checkpoint(folder)
    assert any("no tensor is quantized" in text for text in checkpoint.report().warnings)
