"""W8A8 on the C kernels: quantized inputs against the reference, products against float64."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from activation_support import RULES, hard_rows
from cpu_support import (
    F32,
    Case,
    Kind,
    make_case,
    make_ops,
    modes,
    needs_compiler,
    run,
    sizes,
    tokens,
)
from seeds import fresh_seed
from torch import Tensor

from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.engine.backends.cpu_torch import TorchOps
from halfbyte.engine.backends.plain import PlainOps
from halfbyte.engine.backends.reference import ReferenceOps
from halfbyte.kernels.formats.activations import quantize_activations
from halfbyte.kernels.formats.canonical import ActivationFormat, QuantizedLinear, WeightFormat

pytestmark = needs_compiler

INT8 = ActivationFormat()
rules = pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))


def quantize(
    ops: CompiledOps, x: Tensor, rule: ActivationFormat, dtype: torch.dtype
) -> list[Tensor]:
    """Codes less zero and scales, from poisoned buffers."""
    ops.begin_record()
    q, scales = ops._quantize(x, rule, dtype)
    program = ops.end_record()
    scales.fill_(torch.nan)
    q.fill_(99 if dtype == torch.int8 else torch.nan)
    program.run()
    return [q.clone(), scales.clone()]


def types_of(rule: ActivationFormat) -> list[torch.dtype]:
    """Types of the products: float32 for few rows, the others for many."""
    wide = [torch.float32, torch.bfloat16]
    return [*wide, torch.int8] if rule.kind == "int8" and rule.symmetric else wide


@rules
@pytest.mark.parametrize("width", [1, 15, 16, 17, 96, 577])
def test_inputs_are_quantized_bit_for_bit(rule: ActivationFormat, width: int) -> None:
    seed = fresh_seed()
    x = hard_rows(seed, width)
    want, scale = quantize_activations(x, rule)
    assert torch.equal(want.bfloat16().float(), want)
    for dtype in types_of(rule):
        q, scales = quantize(make_ops(), x, rule, dtype)
        assert q.dtype == dtype
        assert torch.equal(q.float(), want)
        assert torch.equal(scales, scale.squeeze(1))


def test_float8_between_two_codes_goes_to_the_even_one() -> None:
    """All codes, what lies in the middle of two neighbours, and just beside that."""
    codes = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    beside = torch.cat([middles * (1 - 2.0**-20), middles * (1 + 2.0**-20)])
    # The largest, 448, makes the scale of the row 1.
    x = torch.cat([codes, middles, beside])[None]
    x = torch.cat([x, -x])
    q, scales = quantize(make_ops(), x, RULES["e4m3-token"], torch.float32)
    assert scales.tolist() == [1.0, 1.0]
    at = len(codes)
    assert torch.equal(q[0, :at], codes)
    even = torch.where(torch.arange(at - 1) % 2 == 0, codes[:-1], codes[1:])
    assert torch.equal(q[0, at : 2 * at - 1], even)
    assert torch.equal(q[0, 2 * at - 1 :], torch.cat([codes[:-1], codes[1:]]))
    assert torch.equal(q[1], -q[0])


@rules
def test_what_pads_large_inputs_is_zero(rule: ActivationFormat) -> None:
    for dtype in types_of(rule)[1:]:
        ops = make_ops()
        ops.begin_record()
        q, _ = ops._quantize(tokens(1, 40, 50), rule, dtype)
        program = ops.end_record()
        whole = q.as_strided((64, 64), (64, 1)).fill_(99)
        program.run()
        whole[:40, :50] = 0
        assert (whole == 0).all()


def test_not_a_number_stays_so() -> None:
    x = tokens(1, 3, 40)
    x[1, 7] = torch.nan
    for rule in RULES.values():
        q, scales = quantize(make_ops(), x, rule, torch.float32)
        assert q[1, 7].isnan() and not q[0].isnan().any() and not q[2].isnan().any()
        assert scales.isnan().tolist() == [False, True, False]
        ops = make_ops()
        packed = ops.pack(make_case(Kind(8, act=rule), 20, 40, 1).weight)
        got = run(ops, ops.linear, x.repeat(10, 1), packed).view(10, 3, 20).isnan()
        assert got[:, 1].all() and not got[:, 0].any() and not got[:, 2].any()


def assert_product(
    got: Tensor,
    x: Tensor,
    case: Case,
    rule: ActivationFormat,
    bias: Tensor,
    before: Tensor | None = None,
) -> None:
    """A float32 sum of exact products, then the scales: (K + 16) roundings of the magnitudes."""
    start = torch.zeros(1) if before is None else before
    q, scale = (t.double() for t in quantize_activations(x, rule))
    want = scale * (q @ case.values.T) + bias + start
    size = scale * (q.abs() @ case.size.T) + bias.abs() + start.abs()
    excess = (got.double() - want).abs() - (x.shape[1] + 16) * F32 * size
    assert not got.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"


@rules
@pytest.mark.parametrize("kind", [Kind(8), Kind(8, zero="e4m3"), Kind(4, perm=True)], ids=str)
def test_products_with_a_scale_for_each_row(kind: Kind, rule: ActivationFormat) -> None:
    """Both forms: the large one multiplies bare codes, exact in bfloat16, and scales at last."""
    seed = fresh_seed()
    rng = random.Random(seed)
    for exact in modes():
        ops = make_ops(exact=exact)
        n, k = sizes(rng)
        case = make_case(replace(kind, act=rule), n, k, seed)
        bias = tokens(seed + 1, 1, n)[0]
        packed = ops.pack(case.weight, bias)
        for t in (1, 3, 8, 23, 24, 70):
            x = tokens(seed + t, t, k)
            got = run(ops, ops.linear, x, packed)
            assert_product(got, x, case, rule, bias.double())
            wide = torch.full((t, n + 5), 7.25)
            residual = wide[:, 2 : n + 2].copy_(tokens(seed + 3, t, n))
            before = residual.double()
            run(ops, ops.linear_add, x, packed, residual)
            assert_product(residual, x, case, rule, bias.double(), before)
            assert (wide[:, :2] == 7.25).all() and (wide[:, n + 2 :] == 7.25).all()


@pytest.mark.parametrize(
    "kind",
    [
        Kind(8, 32),
        Kind(8, -1, "int"),
        Kind(4, 32, "float"),
        Kind(8, 128, "e4m3"),
        Kind(8, 32, "table"),
    ],
    ids=str,
)
def test_products_with_groups_and_zero_points(kind: Kind) -> None:
    seed = fresh_seed()
    for exact in modes():
        ops = make_ops(exact=exact)
        case = make_case(replace(kind, act=RULES["token-asym"]), 41, 200, seed)
        packed = ops.pack(case.weight)
        x = tokens(seed + 1, 40, 200)
        few = run(ops, ops.linear, x[:5], packed)
        assert_product(few, x[:5], case, RULES["token-asym"], torch.zeros(1).double())
        # A large product rounds scaled weights to bfloat16: 2**-9 of each, at the worst.
        q, scale = (t.double() for t in quantize_activations(x, RULES["token-asym"]))
        got, want = run(ops, ops.linear, x, packed).double(), scale * (q @ case.values.T)
        slack = scale * (q.abs() @ (case.values.abs() * 2.0**-8 + case.size * 2.0**-15).T)
        assert ((got - want).abs() <= slack).all()


@pytest.mark.parametrize("rule", [INT8, RULES["tensor-asym"]], ids=["sym", "asym"])
def test_sums_below_2_to_the_24_are_exact(rule: ActivationFormat) -> None:
    """With scales that are powers of two nothing at all is rounded."""
    seed = fresh_seed()
    rule = replace(rule, scale=2.0**-5)
    for exact in modes():
        ops = make_ops(exact=exact)
        weight = make_case(Kind(8, act=rule), 40, 400, seed).weight
        assert isinstance(weight, QuantizedLinear)
        weight.scales.fill_(0.25)
        codes = weight.unpack().double() - 128
        for t in (2, 33):
            x = tokens(seed + t, t, 400)
            q, _ = quantize_activations(x, rule)
            sums = q.double() @ codes.T
            assert sums.abs().max() < 2**24
            got = run(ops, ops.linear, x, ops.pack(weight))
            assert torch.equal(got.double(), sums * 2.0**-7)


@pytest.mark.skipif(False not in modes(), reason="no AMX")
def test_large_int8_products_are_exact_at_any_size() -> None:
    """Rounded once, from int32: here sums are odd and above 2**24, and beyond 2**25."""
    n, k, t = 33, 4097, 40
    ops = make_ops(exact=False)
    fmt = WeightFormat(8, -1, act=ActivationFormat(scale=1.0))
    codes = torch.full((n, k), 255, dtype=torch.uint8)
    weight = QuantizedLinear("w", fmt, codes, torch.ones(n, 1), None, k)
    x = torch.full((t, k), 126.0)
    x[:, ::2] = 127.0
    packed = ops.pack(weight)
    assert packed.takes_int8
    want = (x[0].long().sum() * 127).float()
    assert want > 2**25 and (run(ops, ops.linear, x, packed) == want).all()


def test_norms_do_not_round_what_is_quantized_later() -> None:
    """bfloat16 would change one code in six."""
    for exact in modes():
        ops = make_ops(exact=exact)
        assert ops.pack(make_case(Kind(8, act=INT8), 16, 64, 1).weight).act is INT8
        dense = ops.pack(tokens(2, 16, 64))
        x = tokens(3, 40, 64)
        assert run(ops, ops.rms_norm, x, torch.ones(64), 1e-5).dtype == torch.float32
        assert run(ops, ops.gated_mul, x).dtype == torch.float32
        assert run(ops, ops.linear, x, dense).shape == (40, 16)


@pytest.mark.exact
@rules
@pytest.mark.parametrize("kind", [Kind(8), Kind(8, 32, "int"), Kind(8, zero="e4m3")], ids=str)
def test_exact_bits_do_not_depend_on_the_batch_or_threads(
    kind: Kind, rule: ActivationFormat
) -> None:
    seed = fresh_seed()
    _, k = sizes(random.Random(seed))
    case = make_case(replace(kind, act=rule), 100, k, seed)
    bias, x = tokens(seed + 1, 1, 100)[0], tokens(seed + 2, 40, k)
    results = []
    for threads in (1, 2):
        ops = make_ops(exact=True, threads=threads)
        packed = ops.pack(case.weight, bias)
        alone = torch.cat([run(ops, ops.linear, x[i : i + 1], packed) for i in range(40)])
        for t in (2, 3, 5, 8, 9, 24, 40):
            assert torch.equal(run(ops, ops.linear, x[-t:], packed), alone[-t:]), t
        results.append(alone)
    assert torch.equal(*results)


@rules
def test_torch_backends_follow_the_same_rule(rule: ActivationFormat) -> None:
    seed = fresh_seed()
    case = make_case(Kind(8, act=rule), 33, 96, seed)
    bias, x = tokens(seed + 1, 1, 33)[0], tokens(seed + 2, 7, 96)
    backends: list[PlainOps[Any]] = [ReferenceOps(), TorchOps(torch.float32)]
    for ops in backends:
        packed = ops.pack(case.weight, bias)
        assert_product(ops.linear(x, packed), x, case, rule, bias.double())
    # bfloat16 products: weights and sums rounded, the codes of the inputs are exact.
    ops = TorchOps(torch.bfloat16)
    got = ops.linear(x, ops.pack(case.weight, bias)).double()
    q, scale = (t.double() for t in quantize_activations(x, rule))
    want, size = scale * (q @ case.values.T), scale * (q.abs() @ case.values.abs().T)
    assert ((got - want - bias).abs() <= size * 2.0**-8 + bias.abs() * F32).all()


def test_contradictory_rules_are_not_supported() -> None:
    case = make_case(Kind(8, act=replace(RULES["e4m3-token"], zero=3)), 16, 32, 1)
    for ops in (make_ops(), ReferenceOps()):
        assert ops.supports(case.weight) == "float8 activations with a zero point"
    case = make_case(Kind(8, act=replace(INT8, zero=3)), 16, 32, 1)
    assert make_ops().supports(case.weight) == "symmetric activations with the zero point 3"
    assert make_ops().supports(make_case(Kind(8, act=INT8), 16, 32, 1).weight) is None
