"""``explain``: what it says is what the choosers and the packer do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from halfbyte.engine.advise.explain_triton import _linear_row, explain
from halfbyte.engine.advise.products import Product, groups
from halfbyte.engine.backends.triton_weights import TritonLinear, pack
from halfbyte.kernels.codebook import PackedCodebook
from halfbyte.kernels.device.gpus import gpu
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.kind import Conditions, MatrixSpec
from halfbyte.kernels.tables import Device, Entry, Table, Tables
from halfbyte.kernels.w4a16.config import BUCKETS, Problem, choose, table_key
from halfbyte.kernels.w4a16.layout import PackedW4
from halfbyte.kernels.w4a16.tuning import parse_key
from halfbyte.kernels.w8a16.op import PackedW8A16
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import TensorInfo
from halfbyte.loaders.gguf.types import CANONICAL, QUANTIZED_TYPES, SUPPORTED_TYPES
from halfbyte.loaders.model.config import ModelConfig

H100 = gpu("sm_90")


def kind_of(linear: Product, arch: int = 90) -> str:
    return linear.carrier(arch).kind.name


class Headers:
    """A checkpoint that has headers only."""

    def __init__(self, formats: dict[str, str], layers: int = 3, tied: bool = False) -> None:
        self.config = ModelConfig("llama", 512, 256, layers, 4, 2, 64, 384, 1e-5, 2048)
        object.__setattr__(self.config, "tie_word_embeddings", tied)
        sizes = {
            "self_attn.q_proj": (256, 256),
            "self_attn.k_proj": (128, 256),
            "self_attn.v_proj": (128, 256),
            "self_attn.o_proj": (256, 256),
            "mlp.gate_proj": (384, 256),
            "mlp.up_proj": (384, 256),
            "mlp.down_proj": (256, 384),
        }
        shapes = {
            f"model.layers.{i}.{name}": shape
            for i in range(layers)
            for name, shape in sizes.items()
        }
        shapes |= {"model.embed_tokens": (512, 256), "lm_head": (512, 256)}
        self.infos = []
        for name, shape in shapes.items():
            label = next((f for part, f in formats.items() if part in name), formats[""])
            form = CANONICAL.get(label)
            self.infos.append(TensorInfo(f"{name}.weight", shape, label, 1, format=form))

    def tensors(self) -> list[TensorInfo]:
        return self.infos


def headers(formats: dict[str, str], **options: Any) -> Any:
    """What stands in for a checkpoint here."""
    return Headers(formats, **options)


def test_the_tiny_model(tiny_gguf):
    checkpoint = open_checkpoint(tiny_gguf)
    rows = explain(checkpoint, H100)
    names = dict.fromkeys((r.module, r.family) for r in rows)
    assert list(names) == [
        ("q_proj + k_proj + v_proj", "w4a16"),
        ("o_proj", "w4a16"),
        ("gate_proj + up_proj", "w4a16"),
        ("down_proj", "w4a16"),
        ("lm_head", "w8a16"),
        ("attention, decode", "attention"),
        ("attention, prefill", "attention"),
    ]
    assert {r.layers for r in rows} == {(), (0, 1)}
    assert all(r.rejected and r.kernel not in r.rejected for r in rows)
    assert [r.m for r in rows if r.module == "o_proj"] == list(BUCKETS)


def test_mixed_formats_group_their_layers():
    formats = {"layers.1.self_attn.v": "Q6_K", "lm_head": "Q6_K", "down": "Q8_0", "": "Q4_K"}
    found = {(x.module, layers): kind_of(x) for x, layers in groups(headers(formats))}
    assert found == {
        ("q_proj + k_proj + v_proj", (0, 2)): "w4a16",
        ("o_proj", (0, 1, 2)): "w4a16",
        ("gate_proj + up_proj", (0, 1, 2)): "w4a16",
        ("down_proj", (0, 1, 2)): "w8a16",
        ("q_proj", (1,)): "w4a16",
        ("k_proj", (1,)): "w4a16",
        ("v_proj", (1,)): "w8a16",
        ("lm_head", ()): "w8a16",
    }


@pytest.mark.parametrize("label", ["Q4_0", "Q8_0", "Q6_K"])
def test_a_tied_head_is_packed_as_the_table_is(label):
    (head,) = [x for x, layers in groups(headers({"": label}, tied=True)) if not layers]
    form = CANONICAL.get(label)
    assert form is not None
    table = pack(_quantized(form, 128, 256), None, torch.float16, torch.device("cpu"), table=True)
    assert isinstance(table.packed, PackedW8A16)
    assert kind_of(head) == "w8a16"


@pytest.mark.parametrize("floating", [False, True])
def test_w8a8_names_its_tile(floating):
    act = ActivationFormat("e4m3" if floating else "int8")
    form = WeightFormat(8, -1, "e4m3" if floating else "none", act=act)
    linear = Product("w", "W8A8", MatrixSpec(4096, 4096, form))
    assert kind_of(linear) == ("fp8" if floating else "w8a8")
    assert kind_of(linear, 80) == ("w8a16" if floating else "w8a8")
    row = _linear_row(linear, (0,), 16, Conditions(H100, exact=True))
    assert row.source == "exact" and row.config["bn"] > 0 and row.config["splits"] > 0
    other = _linear_row(linear, (0,), 700, Conditions(H100, exact=True))
    assert (other.config == row.config) == floating  # sums of int8 are exact with any tile


@pytest.mark.parametrize("label", SUPPORTED_TYPES)
def test_formats_are_carried_as_the_packer_does(label):
    form = CANONICAL.get(label)
    assert (form is not None) == (label in QUANTIZED_TYPES)
    linear = Product("w", label, MatrixSpec(192, 256, form))
    if form is None:
        assert kind_of(linear) == "dense"
        return
    weight = _quantized(form, 192, 256)
    packed = pack(weight, None, torch.float16, torch.device("cpu")).packed
    kinds = {
        "w4a16": PackedW4,
        "w8a16": PackedW8A16,
        "codebook": PackedCodebook,
        "dense": torch.Tensor,
    }
    assert type(packed) is kinds[kind_of(linear)]
    if isinstance(packed, PackedW4):
        problem = linear.problem(8, Conditions(H100, True))
        assert isinstance(problem, Problem)
        assert (problem.rows, problem.k) == (packed.units.shape[0] * 64, packed.features)
        assert problem.group == packed.group
    if isinstance(packed, PackedW8A16):
        assert (packed.offsets is not None) == (form.zero != "none" or form.bits != 8)


def test_gated_rows_are_padded_as_the_packer_does():
    form = WeightFormat(4, -1)
    linear = Product("gate_proj + up_proj", "int4", MatrixSpec(2 * 96, 256, form, gated=True))
    weight: TritonLinear = pack(
        _quantized(form, 192, 256), None, torch.float16, torch.device("cpu"), gated=True
    )
    assert isinstance(weight.packed, PackedW4)
    problem = linear.problem(1, Conditions(H100, True))
    assert isinstance(problem, Problem)
    assert (problem.rows, problem.group) == (weight.packed.units.shape[0] * 64, 0)


def _quantized(form: WeightFormat, n: int, k: int) -> QuantizedLinear:
    count = 1 if form.group_size == -1 else k // form.group_size
    codes = torch.zeros(n, k, dtype=torch.uint8)
    zeros = None if form.zero == "none" else torch.full((n, count), 0.5)
    packed = pack_codes(codes, form.bits)
    return QuantizedLinear("w", form, packed, torch.ones(n, count), zeros, k)


def test_rows_repeat_the_chooser_and_its_reasons():
    checkpoint = headers({"": "Q4_0"})
    device = Device("small", 80, 20)
    rows = [r for r in explain(checkpoint, device, fp16=True) if r.module == "down_proj"]
    (linear,) = [x for x, _ in groups(checkpoint) if x.module == "down_proj"]
    for row in rows:
        problem = linear.problem(row.m, Conditions(device, True))
        assert isinstance(problem, Problem)
        choice = choose(problem, partial_bytes=32 << 20, counters=8192)
        assert (row.kernel, row.source) == (choice.kernel, "formula")
        assert row.rejected == choice.rejected
        assert row.kernel == "dequantize" or row.config == asdict(choice.config)


def test_tables_and_neighbours_are_named():
    checkpoint = headers({"": "Q4_0"})
    (linear,) = [x for x, _ in groups(checkpoint) if x.module == "o_proj"]
    problem = linear.problem(16, Conditions(H100))
    assert isinstance(problem, Problem)
    text = table_key(problem)
    key = parse_key(text)
    assert key is not None
    values = {"kernel": "late", "bm": 16, "bn": 128, "warps": 2, "stages": 5, "splits": 2}
    table = Table("H100", 90, 132, {text: Entry(key, values, {})})
    tables = Tables(H100, [("yours", table)])
    rows = {r.module: r for r in explain(checkpoint, H100, tables=tables) if r.m == 16}
    own, near = rows["o_proj"], rows["down_proj"]
    assert (own.source, own.detail, own.kernel) == ("table", "yours", "late")
    assert own.config == {"bm": 16, "bn": 128, "warps": 2, "stages": 5, "splits": 2}
    assert (near.source, near.detail) == ("neighbour", f"yours: {text}")
    exact = explain(checkpoint, H100, tables=tables, exact=True)
    assert {r.source for r in exact} == {"exact"}


def test_experts_are_one_entry_and_the_router_another() -> None:
    checkpoint = headers({"": "Q4_K", "mlp.gate": "F32"}, layers=2)
    kept = [info for info in checkpoint.infos if ".mlp." not in info.name]
    for layer in range(2):
        block = f"model.layers.{layer}.mlp"
        kept.append(TensorInfo(f"{block}.gate.weight", (3, 256), "F32", 1))
        for expert in range(3):
            for name, shape in {"gate": (64, 256), "up": (64, 256), "down": (256, 64)}.items():
                full = f"{block}.experts.{expert}.{name}_proj.weight"
                kept.append(TensorInfo(full, shape, "Q4_K", 1, format=CANONICAL["Q4_K"]))
    checkpoint.infos = kept
    found = {linear.module: (linear, layers) for linear, layers in groups(checkpoint)}
    router, gate_up = found["gate"], found["gate_proj + up_proj"]
    assert (router[0].spec.n, router[0].spec.k, router[1]) == (3, 256, (0, 1))
    assert (gate_up[0].spec.n, gate_up[0].spec.gated, gate_up[1]) == (128, True, (0, 1))
    assert (found["down_proj"][0].spec.k, found["down_proj"][1]) == (64, (0, 1))


def test_a_gelu_gate_is_a_kernel_of_its_own() -> None:
    checkpoint = headers({"": "Q4_K"})
    assert [linear.spec.gated for linear, _ in groups(checkpoint) if "gate" in linear.module] == [
        True
    ]
    object.__setattr__(checkpoint.config, "activation", "gelu_tanh")
    assert [linear.spec.gated for linear, _ in groups(checkpoint) if "gate" in linear.module] == [
        False
    ]
