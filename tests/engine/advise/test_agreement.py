"""Plan, explain and the engine: one kind and one size for each weight, on each architecture.

Formats are drawn over all that ``WeightFormat`` allows, kernels or not.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halfbyte.engine.advise.capacity import DeviceMemory, capacity, packed
from halfbyte.engine.advise.explain_triton import _linear_row, explain
from halfbyte.engine.advise.products import Product
from halfbyte.engine.backends.triton_ops import TritonOps
from halfbyte.engine.backends.triton_weights import pack
from halfbyte.errors import UnsupportedWeightError
from halfbyte.kernels.device.gpus import GPUS, Device
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    Weight,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import E2M1
from halfbyte.kernels.formats.compact import ByteScales
from halfbyte.kernels.formats.weight_format import BYTE_SCALES, CompactForm
from halfbyte.kernels.kind import Conditions, MatrixSpec
from halfbyte.kernels.kinds import KINDS
from halfbyte.kernels.w8a8.layout import PackedW8A8
from halfbyte.loaders import open_checkpoint

ARCHS = sorted({0, *(card.arch for card in GPUS)})
GROUPS = (-1, 8, 16, 24, 32, 48, 64, 96, 128, 256, 1024)
ACTS = (
    None,
    *(ActivationFormat(symmetric=symmetric) for symmetric in (True, False)),
    *(ActivationFormat("e4m3", symmetric, 448.0) for symmetric in (True, False)),
)
USES = ("", "gated", "table")
CPU = torch.device("cpu")
FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(1 << 31)
    logging.getLogger(__name__).info("seed %d", seed)
    torch.manual_seed(seed)
    return random.Random(seed)


def formats() -> Iterator[WeightFormat | None]:
    """Every combination, sixteen hundred of them."""
    yield None
    for group in GROUPS:
        for act in ACTS:
            yield WeightFormat(8, group, "e4m3", act=act)
            for bits in range(2, 9):
                for zero in ("none", "int", "float"):
                    yield WeightFormat(bits, group, zero, act=act)
                table = tuple(i / (1 << bits) for i in range(1 << bits))
                yield WeightFormat(bits, group, "table", table, act)


def spec_of(rng: random.Random, form: WeightFormat | None, use: str = "") -> MatrixSpec:
    """A matrix of few elements, any K: whole groups or not."""
    n, k = 2 * rng.randint(1, 90), rng.choice((rng.randint(1, 600), 32 * rng.randint(1, 16)))
    half = rng.random() < 0.5
    compact = None
    if form is not None:
        form = replace(form, permuted=rng.random() < 0.2)
        if form.zero == "table" and form.group_size > 0 and rng.random() < 0.5:
            compact = CompactForm(rng.choice(BYTE_SCALES))
            if form.bits == 4:
                form = replace(form, table=E2M1)
    kind = {"gated": use == "gated", "table": use == "table", "compact": compact}
    return MatrixSpec(n, k, form, half=half and compact is None, **kind)


def weight_of(spec: MatrixSpec) -> Weight:
    """A random weight of which everything holds that the headers tell."""
    form, n, k = spec.format, spec.n, spec.k
    if form is None:
        return torch.randn(n, k).half()
    groups = 1 if form.group_size == -1 else -(-k // form.group_size)
    codes = torch.randint(0, 1 << form.bits, (n, k), dtype=torch.uint8)
    if form.zero == "e4m3":
        codes = torch.randn(n, k).to(torch.float8_e4m3fn).view(torch.uint8)
    scales, zeros = torch.rand(n, groups) + 0.1, None
    scales[0, 0] = 1 / 3
    if form.zero == "int":
        zeros = torch.randint(0, 1 << form.bits, (n, groups)).float()
        zeros[0, 0] = 1  # a third times 127 is no number of float16
    elif form.zero == "float":
        zeros = torch.randn(n, groups)
        zeros[0, 0] = 1 / 3
    if spec.half:
        scales = scales.half()
        zeros = None if zeros is None else zeros.half()
    perm, compact = torch.randperm(k).int() if form.permuted else None, None
    if spec.compact is not None:
        compact = byte_scales(spec.compact.dtype, n, groups)
        scales, _ = compact.numbers()
    packed = pack_codes(codes, form.bits)
    return QuantizedLinear("w", form, packed, scales, zeros, k, perm, compact)


def byte_scales(dtype: str, n: int, groups: int) -> ByteScales:
    """Random ones, which float16 does not hold."""
    raw = torch.randint(1, 100, (n, groups), dtype=torch.uint8)
    raw[0, 0] = 0xC8  # a negative e4m3
    if dtype == "F8_E8M0":
        return ByteScales(raw.view(torch.float8_e8m0fnu))
    return ByteScales(raw.view(torch.float8_e4m3fn), torch.rand(n) / 3 + 1e-3)


def engine_packs(spec: MatrixSpec, arch: int) -> tuple[str, int]:
    """Kind and bytes of a weight as the engine packs it."""
    held = pack(
        weight_of(spec), None, torch.float16, CPU, gated=spec.gated, table=spec.table, arch=arch
    )
    size = held.nbytes
    if isinstance(held.packed, PackedW8A8):
        size += held.packed.colsum.nbytes  # which few products read
    return held.kind.name, size


def test_plan_explain_and_engine_agree_on_every_format_and_architecture(rng: random.Random):
    seen: set[str] = set()
    for form, use in [(form, use) for form in formats() for use in USES]:
        spec = spec_of(rng, form, use)
        linear, m = Product("w", "label", spec), rng.choice((1, 7, 16, 33, 100, 700))
        # The kernels of every format in 16 bits, and of some others.
        often = 0.3 if form is None or form.act is None else 0.02
        own = rng.choice(ARCHS) if rng.random() < often else None
        for arch in ARCHS:
            where = Conditions(Device("card", arch, 100), exact=rng.random() < 0.3)
            try:
                plan = packed(linear, "triton", arch)
            except UnsupportedWeightError as error:
                assert form is not None and form.act is not None and not spec.table
                assert all(kind.name in error.message for kind in KINDS)
                with pytest.raises(UnsupportedWeightError):
                    _linear_row(linear, (), m, where)
                continue
            row = _linear_row(linear, (), m, where)
            assert row.family == plan[0], (form, arch)
            assert row.rejected and row.detail, (form, arch)
            seen.add(plan[0])
            if arch == own:
                assert engine_packs(spec, arch) == plan, (spec, arch)
    assert seen == {kind.name for kind in KINDS}


def test_the_engine_gives_the_reason_for_which_plan_refuses(rng: random.Random):
    ops = TritonOps(CPU, torch.float16, exact=False)
    for form in rng.sample(list(formats()), 100):
        spec = spec_of(rng, form)
        reason = ops.supports(weight_of(spec))
        if reason is None:
            assert packed(Product("w", "label", spec), "triton", 0)[1] > 0
            continue
        with pytest.raises(UnsupportedWeightError) as raised:
            packed(Product("w", "label", spec), "triton", 0)
        assert raised.value.message == reason


@pytest.mark.parametrize("arch", ARCHS)
def test_a_float8_model_is_planned_as_it_is_explained(arch: int):
    checkpoint = open_checkpoint(FIXTURES / "ct-fp8-dynamic-gemma3")
    memory = DeviceMemory("card", 80 << 30, 1 << 30, 3e12, arch)
    planned = capacity(checkpoint, memory, 0, 1, "bfloat16", "triton").need.by_family
    rows = explain(checkpoint, Device("card", arch, 100))
    kinds = {row.family for row in rows} - {"attention"}
    others = {"embedding and head", "embedding", "norms and biases"}
    assert set(planned) - others == {row.family for row in rows if row.layers} - {"attention"}
    assert ("fp8" in kinds) == ("fp8" in planned) == (arch == 0 or arch >= 89)


# Of a folder each: what its headers tell of the size of its weights is what they have.
FOLDERS = [
    *("autoround-4b-g64-asym-mixed-mistral", "awq-gemm-g32-keep-qwen2", "bnb-fp4-dq-mistral"),
    *("awq-gemvfast-g128-llama", "bnb-int8-llama", "bnb-nf4-gemma2", "ct-fp8-dynamic-gemma3"),
    *("ct-mixed-w4a16-w8a8-phi3", "ct-w3a16-g32-asym-mistral", "ct-w8a16-channel-gemma2"),
    *("gptq-v1-3b-g32-sym-mistral", "gptq-v1-8b-channel-qwen3", "hqq-8b-g32-qwen3"),
    *("ct-nvfp4-llama", "ct-mxfp4-qwen3", "modelopt-nvfp4-qwen2", "gguf-mxfp4-nvfp4-qwen3"),
    *("gguf-q5-bf16-ropefreqs-llama", "gguf-q3_k-q4_1-gemma3", "gguf-q2_k-iq4-phi3"),
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_headers_tell_the_size_of_loaded_weights(folder: str):
    path = FIXTURES / folder
    checkpoint = open_checkpoint(next(iter(sorted(path.glob("*.gguf"))), path))
    matrices = [info for info in checkpoint.tensors() if len(info.shape) == 2]
    firsts = {(info.label, info.format, info.dtype): info for info in matrices}
    for info in firsts.values():
        weight = checkpoint.load(info.name)
        dtype = weight.scales.dtype if isinstance(weight, QuantizedLinear) else weight.dtype
        assert {"F32": 4, "F16": 2, "BF16": 2}[info.dtype] == dtype.itemsize, info
        n, k = info.shape
        byte = info.compact is not None and info.compact.byte
        compact = info.compact if byte else None
        spec = MatrixSpec(n, k, info.format, info.dtype, info.half, compact=compact)
        held = pack(weight, None, torch.float16, CPU)
        size = held.nbytes
        if isinstance(held.packed, PackedW8A8):
            size += held.packed.colsum.nbytes
        assert packed(Product("w", info.label, spec), "triton") == (held.kind.name, size), info
    checkpoint.close()
