"""Every canonical format on the Triton backend, in the interpreter, against its own meaning."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.engine.backends.triton_ops import TritonOps
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import NF4
from halfbyte.kernels.kind import MatrixSpec, carrier
from halfbyte.kernels.kinds import KINDS
from halfbyte.kernels.w8a8 import kind as w8a8_kind

INT8 = ActivationFormat()
E4M3 = ActivationFormat("e4m3", top=448.0)
WEIGHT_ONLY = [
    (WeightFormat(4, 128), 256, "w4a16"),
    (WeightFormat(4, 32, "int"), 96, "w4a16"),
    (WeightFormat(3, 64, "float"), 128, "w4a16"),
    (WeightFormat(2, -1), 72, "w4a16"),
    (WeightFormat(4, 128, permuted=True), 256, "w4a16"),
    (WeightFormat(8, 32), 96, "w8a16"),
    (WeightFormat(5, 32, "float"), 64, "w8a16"),
    (WeightFormat(6, 16), 64, "w8a16"),
    (WeightFormat(2, 16, "float"), 256, "w8a16"),
    (WeightFormat(4, 64, "table", NF4), 128, "codebook"),
    (WeightFormat(4, 64, "table", NF4), 160, "codebook"),
    (WeightFormat(4, 64, "table", NF4), 100, "dense"),  # ragged
    (WeightFormat(8, -1, "e4m3"), 64, "w8a16"),
    (WeightFormat(8, 128, "e4m3", act=E4M3), 256, "w8a16"),
    (WeightFormat(4, 8), 64, "dense"),
]


@pytest.fixture
def rng() -> torch.Generator:
    seed = random.randrange(1 << 31)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def ops(request: Any) -> TritonOps:
    return TritonOps(torch.device("cpu"), request.param, exact=False)


def kind_of(form: WeightFormat, k: int, arch: int = 90) -> str:
    return carrier(KINDS, MatrixSpec(40, k, form), arch).kind.name


def random_weight(rng: torch.Generator, n: int, k: int, form: WeightFormat) -> QuantizedLinear:
    groups = 1 if form.group_size == -1 else -(-k // form.group_size)
    codes = torch.randint(0, 1 << form.bits, (n, k), generator=rng, dtype=torch.uint8)
    if form.zero == "e4m3":
        codes = (torch.randn(n, k, generator=rng)).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = (torch.rand(n, groups, generator=rng) + 0.5).half() / 64
    zeros = None
    if form.zero == "int":
        zeros = torch.randint(0, 1 << form.bits, (n, groups), generator=rng).float()
    elif form.zero == "float":
        zeros = torch.randn(n, groups, generator=rng) / 16
    perm = torch.randperm(k, generator=rng).int() if form.permuted else None
    return QuantizedLinear("w", form, pack_codes(codes, form.bits), scales, zeros, k, perm)


def close(y: Tensor, x: Tensor, w: Tensor, bias: Tensor, slack: float = 0.0) -> None:
    """One rounding of the result; two of a weight's value (dense, or a table) or of its scale."""
    want = x.double() @ w.double().T + bias.double()
    eps = torch.finfo(y.dtype).eps
    bound = eps * (want.abs() + 2 * (x.double().abs() @ w.double().abs().T)) + slack + 1e-6
    error = (y.double() - want).abs()
    assert (error <= bound).all(), float((error - bound).max())


@pytest.mark.parametrize(("form", "k", "kernels"), WEIGHT_ONLY)
def test_weight_only(
    ops: TritonOps, rng: torch.Generator, form: WeightFormat, k: int, kernels: str
) -> None:
    assert kind_of(form, k) == kernels
    n = 70
    weight = random_weight(rng, n, k, form)
    assert ops.supports(weight) is None
    bias = torch.randn(n, generator=rng).to(ops.dtype)
    packed = ops.pack(weight, bias)
    assert packed.shape == (n, k)
    for m in (1, 3):
        x = torch.randn(m, k, generator=rng).to(ops.dtype)
        close(ops.linear(x, packed), x, weight.dequantize(), bias)


@pytest.mark.parametrize(
    "act",
    [
        INT8,
        ActivationFormat(top=127.0),
        ActivationFormat(symmetric=False),
        ActivationFormat(scale=0.03),
        ActivationFormat(symmetric=False, scale=0.02, zero=-7),
    ],
)
def test_w8a8(ops: TritonOps, rng: torch.Generator, act: ActivationFormat) -> None:
    """The product of the rounded input; a code may differ by one where rounding meets a tie."""
    weight = random_weight(rng, 40, 96, WeightFormat(8, -1, act=act))
    assert kind_of(weight.format, 96) == "w8a8"
    bias = torch.randn(40, generator=rng).to(ops.dtype)
    x = torch.randn(5, 96, generator=rng).to(ops.dtype)
    rounded = _round(x.float(), act)
    step = ((rounded - x.float()).abs().max() * 2).item()
    w = weight.dequantize()
    got = ops.linear(x, ops.pack(weight, bias))
    close(got, rounded, w, bias, slack=1e-3 * step * float(w.abs().max()))


def test_float8(ops: TritonOps, rng: torch.Generator) -> None:
    """Three mantissa bits: input and weight are exact once rounded, so are the products."""
    weight = random_weight(rng, 40, 96, WeightFormat(8, -1, "e4m3", act=E4M3))
    assert kind_of(weight.format, 96, 0) == "fp8"
    assert kind_of(weight.format, 96, 80) == "w8a16"
    bias = torch.randn(40, generator=rng).to(ops.dtype)
    x = torch.randn(5, 96, generator=rng).to(ops.dtype)
    scale = x.float().abs().amax(1, keepdim=True) / 448
    rounded = (x.float() / scale).to(torch.float8_e4m3fn).float() * scale
    got = ops.linear(x, ops.pack(weight, bias))
    # A quotient that misses a tie by an ulp takes the neighbour, which is rare.
    w = weight.dequantize()
    off = (got.double() - (rounded.double() @ w.double().T + bias.double())).abs()
    step = 2.0**-3 * x.double().abs().amax(1, keepdim=True) * w.abs().max()
    rounding = torch.finfo(ops.dtype).eps * (got.double().abs() + 0.01)
    assert (off <= step + rounding).all()
    assert (off <= rounding).double().mean() > 0.9


def test_exact_float8_rows_do_not_see_each_other(rng: torch.Generator) -> None:
    ops = TritonOps(torch.device("cpu"), torch.float16, exact=True)
    packed = ops.pack(random_weight(rng, 40, 96, WeightFormat(8, -1, "e4m3", act=E4M3)))
    x = torch.randn(5, 96, generator=rng).half()
    together = ops.linear(x, packed)
    residual = torch.randn(5, 40, generator=rng).half()
    added = residual.clone()
    ops.linear_add(x, packed, added)
    for t in range(5):
        assert torch.equal(ops.linear(x[t : t + 1], packed)[0], together[t])
    close(added - residual, x, torch.zeros(40, 96), (added - residual)[0] * 0, slack=1e9)
    assert torch.allclose(added.float(), residual.float() + together.float(), atol=2e-3)


def test_unusual_w8a8_is_refused_with_the_reason(ops: TritonOps, rng: torch.Generator) -> None:
    plain = WeightFormat(8, -1, act=INT8)
    for form in (
        replace(plain, zero="int"),
        replace(plain, group_size=32),
        replace(plain, bits=5),
    ):
        reason = ops.supports(random_weight(rng, 4, 64, form))
        assert reason is not None
        assert f"weights of {form.bits} bits, group size {form.group_size}" in reason


def _round(x: Tensor, act: ActivationFormat) -> Tensor:
    """The docstring of ActivationFormat, in float64."""
    x = x.double()
    if act.scale is not None:
        scale, zero = torch.tensor(act.scale).double(), torch.tensor(float(act.zero))
    elif act.symmetric:
        scale, zero = x.abs().amax(1, keepdim=True) / act.top, torch.tensor(0.0)
    else:
        low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
        scale = (high - low) / 255
        zero = torch.round(-128 - low / scale)
    q = torch.round((x / scale + zero).clamp(-128, 127))
    return ((q - zero) * scale).float()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "act",
    [INT8, ActivationFormat(symmetric=False), ActivationFormat(scale=0.04), E4M3],
    ids=["row", "zero", "static", "e4m3"],
)
def test_norm_and_gate_round_for_their_readers(
    rng: torch.Generator, act: ActivationFormat, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as from products that round for themselves, which then have nothing to do."""
    ops = TritonOps(torch.device("cpu"), torch.float16, exact)
    form = WeightFormat(8, -1, "e4m3" if act is E4M3 else "none", act=act)
    # Two projections of one input, each with its own scale where that is static: rounded twice.
    readers = [ops.pack(random_weight(rng, n, 72, form)) for n in (40, 24)]
    down = ops.pack(random_weight(rng, 24, 40, form))
    x, gate_up = (torch.randn(3, k, generator=rng).half() for k in (72, 80))
    weight, residual = torch.randn(72, generator=rng), torch.randn(3, 24, generator=rng).half()

    def results(hint: bool) -> list[Tensor]:
        h = ops.rms_norm(x, weight, 1e-6, readers=readers if hint else ())
        made = [ops.linear(h, reader) for reader in readers]
        a, total = ops.gated_mul(gate_up, readers=[down] if hint else ()), residual.clone()
        ops.linear_add(a, down, total)
        return [*made, total]

    want = results(False)
    static = act.scale is not None
    rounded: list[int] = []
    quantize_rows = w8a8_kind.quantize_rows
    monkeypatch.setattr(
        w8a8_kind,
        "quantize_rows",
        lambda x, how: rounded.append(x.shape[1]) or quantize_rows(x, how),
    )
    for got, wanted in zip(results(True), want, strict=True):
        assert torch.equal(got, wanted)
    assert rounded == ([72, 72] if static else [])


def test_a_reader_in_16_bits_gets_values(rng: torch.Generator, ops: TritonOps) -> None:
    mixed = [
        ops.pack(random_weight(rng, 40, 64, form))
        for form in (WeightFormat(8, -1, act=INT8), WeightFormat(4, 32, "int"))
    ]
    x, weight = torch.randn(2, 64, generator=rng).to(ops.dtype), torch.randn(64, generator=rng)
    for readers in (mixed, mixed[::-1], mixed[1:]):
        assert ops.rms_norm(x, weight, 1e-6, readers=readers).dtype == ops.dtype
