"""Matrix products and look-ups of the C kernels against float64, for every weight kind."""

from __future__ import annotations

import random

import pytest
import torch
from cpu_support import (
    BF16,
    F32,
    Case,
    Kind,
    all_kinds,
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
from halfbyte.kernels.formats.canonical import QuantizedLinear

pytestmark = needs_compiler

# What a rounding of a float32 below 2**-126 may be off by, however small the number; scales that
# are powers of two (e8m0) come down to 2**-127.
SUBNORMAL = 2.0**-150

# Up to 8 rows are read directly, 4 or 6 side by side from a panel, which serves 64.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 24, 33, 70]


def assert_float32(got: Tensor, x: Tensor, case: Case, start: Tensor | float = 0.0) -> None:
    """Within the classic bound of a float32 sum: (K + 16) roundings of the sum of magnitudes."""
    want = x.double() @ case.values.T + start
    size = x.double().abs() @ case.size.T + abs(start)
    excess = (got.double() - want).abs() - (x.shape[1] + 16) * (F32 * size + SUBNORMAL)
    assert not got.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"


def assert_panels(got: Tensor, x: Tensor, case: Case, start: Tensor | float = 0.0) -> None:
    """Within float32 sums over inputs rounded to bfloat16.

    The float32 value of a weight may be off by roundings of its code's and offset's part before it
    is rounded, which now and then turns it to the other neighbour: two such elements of a row are
    allowed for.
    """
    x16 = x.to(torch.bfloat16).double()
    w16 = case.values.float().to(torch.bfloat16).double()
    want = x16 @ w16.T + start
    size = x16.abs() @ (w16.abs() + 2 * case.size / (x.shape[1] + 16)).T + abs(start)
    flip = (x16.abs().amax(1, keepdim=True) * w16.abs().amax(1)) * 2 * BF16
    roundings = 2 * (x.shape[1] + 16) * (F32 * size + SUBNORMAL)
    excess = (got.double() - want).abs() - roundings - 2 * flip
    assert not got.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_linear_of_every_kind(kind: Kind) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    for exact in modes():
        ops = make_ops(exact=exact)
        for turn in range(2):
            n, k = sizes(rng)
            case = make_case(kind, n, k, seed + turn)
            packed = ops.pack(case.weight)
            assert packed.shape == (n, k)
            for t in ROWS:
                x = tokens(seed + t, t, k)
                got = run(ops, ops.linear, x, packed)
                assert got.shape == (t, n)
                large = t >= ops.gemm_rows
                (assert_panels if large else assert_float32)(got, x, case)


@pytest.mark.parametrize("t", [1, 3, 8, 40])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    "kind",
    [Kind(4, 32, "float"), Kind(6, 32), Kind(4, 32, "table", perm=True), Kind(dtype=torch.float16)],
    ids=str,
)
def test_bias_and_adding(kind: Kind, add: bool, t: int) -> None:
    seed = fresh_seed()
    for exact in modes():
        ops = make_ops(exact=exact)
        case = make_case(kind, 41, 72, seed)
        bias = tokens(seed + 1, 1, 41)[0]
        packed, x = ops.pack(case.weight, bias), tokens(seed + 2, t, 72)
        before = tokens(seed + 3, t, 41)
        if add:
            residual = before.clone()
            run(ops, ops.linear_add, x, packed, residual)
            got = residual
        else:
            got = run(ops, ops.linear, x, packed)
        start = bias.double() + (before.double() if add else 0)
        check = assert_panels if t >= ops.gemm_rows else assert_float32
        check(got, x, case, start)


@pytest.mark.parametrize("t", [1, 5, 33])
@pytest.mark.parametrize("n", [16, 30, 33])
def test_strided_rows_in_and_out(t: int, n: int) -> None:
    """Parts of wider matrices: what lies beside them is neither read nor written."""
    seed = fresh_seed()
    for exact in modes():
        ops = make_ops(exact=exact)
        case = make_case(Kind(4, 32, "int"), n, 64, seed)
        packed = ops.pack(case.weight)
        wide = torch.full((t, 64 + 9), torch.nan)
        x = wide[:, 5:69].copy_(tokens(seed + 1, t, 64))
        target = torch.full((t, n + 7), 7.25)
        run(ops, ops.linear, x, packed, target[:, 3 : n + 3])
        assert (target[:, :3] == 7.25).all() and (target[:, n + 3 :] == 7.25).all()
        check = assert_panels if t >= ops.gemm_rows else assert_float32
        check(target[:, 3 : n + 3].contiguous(), x.contiguous(), case)


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_embed_gives_the_rows_of_the_matrix(kind: Kind) -> None:
    """One multiplication and one addition: each element is within two roundings."""
    seed = fresh_seed()
    rng = random.Random(seed)
    ops = make_ops(exact=True)
    n, k = sizes(rng)
    case = make_case(kind, n, k, seed)
    packed = ops.pack(case.weight)
    for t in (1, 2, 7, 40):
        ids = torch.tensor([rng.randrange(n) for _ in range(t)])
        got = run(ops, ops.embed, ids, packed).double()
        assert ((got - case.values[ids]).abs() <= 4 * F32 * case.size[ids]).all()


def test_embed_scales_what_it_finds() -> None:
    """By one more multiplication of the float32 element."""
    seed = fresh_seed()
    ops = make_ops(exact=True)
    ids = torch.tensor([3, 0, 40, 3])
    for kind in (Kind(4, 32, "int"), Kind(4, 32, "table", perm=True), Kind(dtype=torch.bfloat16)):
        packed = ops.pack_embedding(make_case(kind, 41, 72, seed).weight)
        plain = run(ops, ops.embed, ids, packed)
        assert torch.equal(run(ops, ops.embed, ids, packed, 23.96875), plain * 23.96875), kind


def test_codes_are_kept() -> None:
    """What one pass over a matrix reads: as many bits as codes have, and scales."""
    n, k, group = 64, 320, 32
    for kind in all_kinds():
        if kind.dtype is not None or kind.group not in (group, 20):
            continue
        made = make_ops().pack(make_case(kind, n, k, 5).weight)
        point = 0.5 if kind.bits <= 4 else 1
        beside = {"int": point, "float": kind.scale.itemsize}.get(kind.zero, 0)
        most = n * (k * {7: 8}.get(kind.bits, kind.bits) // 8)
        most += n * (k // group) * (kind.scale.itemsize + beside)
        if kind.compact and kind.scale == torch.float8_e4m3fn:
            most += n * 4  # a factor a row
        if kind.group == 20:  # no kernel reads such groups
            most = n * k * 4
        # The heads of a tile's last spans are filled up to a line of the cache.
        assert 0 <= made.nbytes - most < 64 * n // 32, kind


def test_an_order_applies_to_inputs_in_bfloat16() -> None:
    """A norm hands a large product bfloat16: gathering that gives what gathering floats gives."""
    seed = fresh_seed()
    for exact in modes():
        ops = make_ops(exact=exact)
        case = make_case(Kind(4, 32, "int", perm=True), 50, 72, seed)
        packed, x, gain = ops.pack(case.weight), tokens(seed, 40, 72), tokens(seed + 1, 1, 72)[0]

        ops.begin_record()
        normed = ops.rms_norm(x, gain, 1e-5)
        got = ops.linear(normed, packed)
        ops.end_record().run()
        assert (normed.dtype == torch.bfloat16) == (ops.gemm_rows <= 40)
        assert torch.equal(got, run(ops, ops.linear, normed.float(), packed))


def test_an_order_that_changes_nothing_is_dropped() -> None:
    case = make_case(Kind(4, 32, "int", perm=True), 16, 64, 1)
    assert isinstance(case.weight, QuantizedLinear)
    ops = make_ops()
    assert ops.pack(case.weight).order is not None
    case.weight.perm = torch.arange(64, dtype=torch.int32)
    assert ops.pack(case.weight).order is None


def test_dequantize_agrees_with_the_codes() -> None:
    """The definition that loaders and the reference backend use, against the same values."""
    seed = fresh_seed()
    rng = random.Random(seed)
    for kind in all_kinds():
        n, k = sizes(rng)
        case = make_case(kind, n, k, seed)
        if isinstance(case.weight, QuantizedLinear):
            error = (case.weight.dequantize().double() - case.values).abs()
            assert (error <= 2 * F32 * case.size).all(), kind


def rows_alone(ops: CompiledOps, x: Tensor, packed: object) -> Tensor:
    return torch.cat([run(ops, ops.linear, x[i : i + 1], packed) for i in range(len(x))])


@pytest.mark.exact
@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_exact_bits_do_not_depend_on_the_batch_or_threads(kind: Kind) -> None:
    seed = fresh_seed()
    n, k = sizes(random.Random(seed))
    n = max(n, 100)
    one, two = make_ops(exact=True, threads=1), make_ops(exact=True, threads=2)
    case = make_case(kind, n, k, seed)
    bias = tokens(seed + 1, 1, n)[0]
    packed = {id(ops): ops.pack(case.weight, bias) for ops in (one, two)}
    x = tokens(seed + 2, 70, k)
    alone = rows_alone(two, x, packed[id(two)])
    for t in (2, 3, 5, 8, 9, 11, 23, 24, 40, 65, 70):
        for ops in (one, two):
            got = run(ops, ops.linear, x[-t:], packed[id(ops)])
            assert torch.equal(got, alone[-t:]), (t, ops.library.threads)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
    got = run(two, two.linear, x[order].contiguous(), packed[id(two)])
    assert torch.equal(got, alone[order])


@pytest.mark.exact
@pytest.mark.parametrize("t", [3, 8, 20])
def test_what_is_no_number_stays_in_its_row(t: int) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    ops = make_ops(exact=True)
    for kind in (Kind(4, 16, "int"), Kind(8), Kind(8, 32, "e4m3"), Kind(dtype=torch.bfloat16)):
        packed, x = ops.pack(make_case(kind, 40, 72, seed).weight), tokens(seed + 1, t, 72)
        want = run(ops, ops.linear, x, packed)
        row = rng.randrange(t)
        x[row, rng.randrange(72)] = torch.nan
        got = run(ops, ops.linear, x, packed)
        assert got[row].isnan().all()
        rest = [i for i in range(t) if i != row]
        assert torch.equal(got[rest], want[rest])


@pytest.mark.parametrize("exact", modes())
def test_products_do_not_depend_on_threads(exact: bool) -> None:
    seed = fresh_seed()
    x = tokens(seed, 70, 576)
    case = make_case(Kind(4, 32, "float"), 130, 576, seed)
    got = []
    for threads in (1, 2):
        ops = make_ops(exact=exact, threads=threads)
        packed = ops.pack(case.weight)
        got.append(run(ops, ops.linear, x, packed))
    assert torch.equal(*got)
