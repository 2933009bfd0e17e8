"""W8A8: int8 and float8 products and the row quantizer against float64."""

from __future__ import annotations

import pytest
import torch

from halfbyte.errors import KernelInputError
from halfbyte.kernels.device.input_rounding import InputRounding, RoundedRows
from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.formats.activations import quantize_activations
from halfbyte.kernels.formats.canonical import ActivationFormat
from halfbyte.kernels.w8a8 import op, pack_w8a8, quantize_rows, w8a8_linear
from halfbyte.kernels.w8a8 import reference as ref
from halfbyte.kernels.w8a8.config import GemmConfig, choose, choose_split, square_tile, tiles_of

HALF = (torch.float16, torch.bfloat16)


def rounding(dtype: torch.dtype) -> float:
    """Sums are exact, so what is left is float32 arithmetic and one rounding to the dtype.

    The interpreter truncates to bfloat16 where a GPU rounds to the nearest.
    """
    return torch.finfo(dtype).eps * (0.51 if dtype == torch.float16 else 1.01) + 2e-6


def rounded(x, **how):
    """Codes, scales and zero points."""
    made = quantize_rows(x, InputRounding(**how))
    return made.codes, made.scale, made.zero


def product(codes, scale, packed, zx=None, **rest):
    return w8a8_linear(RoundedRows(codes, scale, zx), packed, **rest)


def random_weight(rng, n, k, dtype, kind=torch.int8):
    if kind == torch.int8:
        codes = torch.randint(-128, 128, (n, k), generator=rng, dtype=torch.int8)
    else:
        codes = torch.randn(n, k, generator=rng).to(kind)
    scales = torch.rand(n, generator=rng) * 0.01 + 0.001
    return codes, pack_w8a8(codes, scales, dtype=dtype)


def check(y, expected, dtype, extra=0.0):
    assert y.dtype == dtype
    error = (y.double() - expected).abs()
    bound = (rounding(dtype) + extra) * expected.abs() + extra * expected.abs().max() + 1e-6
    assert (error <= bound).all(), float((error - bound).max())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 32, 64), (5, 33, 48), (16, 70, 130), (17, 31, 97), (33, 40, 256), (2, 1, 1)],
)
def test_dynamic_symmetric_is_exact_up_to_rounding(rng, dtype, m, n, k):
    codes, packed = random_weight(rng, n, k, dtype)
    xq, sx, zx = rounded(torch.randn(m, k, generator=rng).to(dtype))
    assert zx is None
    out = torch.full((m, n), float("nan"), dtype=dtype)
    y = product(xq, sx, packed, out=out)
    assert y is out
    check(y, ref.w8a8_linear(xq[:, :k], sx, codes, packed.scales), dtype)
    # The same from activations that were not padded.
    again = product(xq[:, :k].contiguous(), sx, packed)
    assert torch.equal(again, y)


@pytest.mark.parametrize("dtype", HALF)
def test_zero_points_bias_and_residual(rng, dtype):
    m, n, k = 7, 45, 200
    codes, packed = random_weight(rng, n, k, dtype)
    x = (torch.randn(m, k, generator=rng) + 3).to(dtype)
    bias = torch.randn(n, generator=rng).to(dtype)
    residual = torch.randn(m, n, generator=rng).to(dtype)
    xq, sx, zx = rounded(x, asymmetric=True)
    expected = ref.w8a8_linear(xq[:, :k], sx, codes, packed.scales, zx, bias, residual)
    y = product(xq, sx, packed, zx=zx, bias=bias, residual=residual, out=residual)
    assert y is residual
    check(y, expected, dtype, extra=1e-6)


def test_static_scale_with_zero(rng):
    codes, packed = random_weight(rng, 20, 64, torch.float16)
    scale, zero = torch.tensor([0.05]), torch.tensor([-9], dtype=torch.int32)
    x = (torch.randn(6, 64, generator=rng) * 4).half()
    xq, sx, zx = rounded(x, asymmetric=True, top=127.5, scale=scale, zero=zero)
    assert sx is scale and zx is zero
    assert xq.min() == -128 and xq.max() == 127
    expected = ref.w8a8_linear(xq, sx, codes, packed.scales, zx)
    check(product(xq, sx, packed, zx=zx), expected, torch.float16, extra=1e-6)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_split_k_adds_exactly_once_and_leaves_counters_zero(rng, kind, monkeypatch):
    tile = GemmConfig(16, 32, 32, 4, 1, True)
    monkeypatch.setattr(op.cfg, "choose", lambda *a, **k: tile)
    codes, packed = random_weight(rng, 50, 300, torch.float16, kind)
    xq, sx, _ = rounded(torch.randn(19, 300, generator=rng), **of_kind(kind))
    monkeypatch.setattr(torch, "empty", poisoned_empty)
    workspace = Workspace(xq.device)
    results = []
    for split in (1, 2, 4, 16):
        monkeypatch.setattr(op.cfg, "choose_split", lambda *a, split=split, **k: split)
        results += [product(xq, sx, packed, workspace=workspace) for _ in range(2)]
        assert not workspace.counters.any()
    expected = ref.w8a8_linear(xq[:, :300], sx, codes, packed.scales)
    for y in results:
        check(y, expected, torch.float16, extra=0 if kind == torch.int8 else 1e-5)
    if kind == torch.int8:
        assert all(torch.equal(y, results[0]) for y in results)


def of_kind(kind):
    return {"dtype": kind, "top": 127.0 if kind == torch.int8 else 448.0}


def poisoned_empty(*args, **kwargs):
    x = torch.zeros(*args, **kwargs)
    return x.fill_(float("nan") if x.is_floating_point() else 77)


def test_float8_against_float64(rng):
    codes, packed = random_weight(rng, 37, 144, torch.bfloat16, torch.float8_e4m3fn)
    x = torch.randn(9, 144, generator=rng).bfloat16()
    xq, sx, _ = rounded(x, **of_kind(torch.float8_e4m3fn))
    bias = torch.randn(37, generator=rng).bfloat16()
    expected = ref.w8a8_linear(xq, sx, codes, packed.scales, None, bias)
    # 144 float32 additions of random order.
    check(product(xq, sx, packed, bias=bias), expected, torch.bfloat16, extra=1e-5)


@pytest.mark.exact
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("room", [1 << 23, 3 * 2 * 16 * 32], ids=["whole", "in parts"])
def test_exact_float8_rows_have_the_same_bits_in_any_company(rng, room, static, monkeypatch):
    """Drawn numbers of rows; programs that share a tile, in a workspace for 16 rows, too."""
    kind, n, k = torch.float8_e4m3fn, 70, 520
    _, packed = random_weight(rng, n, k, torch.float16, kind)
    space = Workspace(torch.device("cpu"), partial_bytes=4 * room)
    monkeypatch.setattr(op.runtime, "multiprocessors", lambda index: 2)
    launches = []
    real = op.gemm

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return real[grid]

    monkeypatch.setattr(op, "gemm", Counted())
    x = torch.randn(50, k, generator=rng).half()
    scale = torch.tensor([0.02]) if static else None
    q, s, _ = rounded(x, scale=scale, **of_kind(kind))
    residual = torch.randn(50, n, generator=rng).half()
    whole = product(q, s, packed, residual=residual, workspace=space, exact=True)
    assert launches[0][1] == 2 and (len(launches) > 1) == (room < 1 << 20)
    for _ in range(6):
        first, last = sorted(int(i) for i in torch.randint(0, 51, (2,), generator=rng))
        rows = slice(first, last + (first == last < 50))
        own = s if static else s[rows]
        part = product(q[rows], own, packed, residual=residual[rows], workspace=space, exact=True)
        assert torch.equal(part, whole[rows]), rows
    other = product(q, s, packed, residual=residual, workspace=space)
    assert torch.allclose(other.float(), whole.float(), rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("k", [1, 40, 513])
def test_quantizer_equals_its_rule(rng, k, asymmetric, monkeypatch):
    x = torch.randn(5, k, generator=rng).half()
    x[1] = 0
    x[2, k // 2] = 1000
    rule = ActivationFormat(symmetric=not asymmetric, top=127.0)
    want, want_s = quantize_activations(x, rule)
    for block in (1024, 64):
        monkeypatch.setattr(op.cfg, "quantize_block", lambda k, block=block: (block, 1))
        q, s, z = rounded(x, asymmetric=asymmetric)
        assert (z is None) == (not asymmetric)
        shifted = q.int() if z is None else q.int() - z[:, None]
        assert torch.equal(shifted[:, :k].float(), want)
        assert torch.equal(s, want_s[:, 0])
        assert not shifted[:, k:].any()


def test_ties_round_to_even_and_the_range_is_all_of_int8():
    # Scale 1 in effect: the largest is 127, and the rest are halves.
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]])
    q, s, _ = rounded(x)
    assert q[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, -127] and s.item() == 1.0
    q, _, _ = rounded(x * 3, scale=torch.tensor([1.0]))
    assert q[0, [0, 7]].tolist() == [127, -128]


def test_float8_rounds_to_the_nearest():
    x = torch.cat((torch.linspace(-448, 448, 4001), torch.linspace(-0.05, 0.05, 2001)))[None]
    q, s, _ = rounded(x, **of_kind(torch.float8_e4m3fn))
    assert s.item() == 1.0
    assert torch.equal(q[:, : x.shape[1]].float(), x.to(torch.float8_e4m3fn).float())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_not_hidden(bad):
    codes = torch.ones(4, 16, dtype=torch.int8)
    packed = pack_w8a8(codes, torch.ones(4))
    x = torch.ones(2, 16)
    x[1, 3] = bad
    q, s, _ = rounded(x)
    y = product(q, s, packed)
    assert y[0].isfinite().all() and y[1].isnan().all()


def test_uint8_codes_have_their_zero_at_128():
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128)
    packed = pack_w8a8(codes, torch.tensor([1.0, 0.5]))
    assert torch.equal(packed.codes.int(), codes.int() - 128)
    expected = (codes.float() - 128) * torch.tensor([[1.0], [0.5]])
    assert torch.equal(packed.dequantize(), expected)
    assert packed.colsum.tolist() == (codes.int() - 128).sum(1).tolist()
    assert packed.nbytes == 256 + 8


def test_input_errors_name_the_numbers():
    packed = pack_w8a8(torch.ones(4, 16, dtype=torch.int8), torch.ones(4))
    q, s = torch.ones(3, 16, dtype=torch.int8), torch.ones(3)
    with pytest.raises(KernelInputError, match="17 columns; expected 16"):
        product(torch.ones(3, 17, dtype=torch.int8), s, packed)
    with pytest.raises(KernelInputError, match="sx has 2 elements; expected 3 or 1"):
        product(q, torch.ones(2), packed)
    with pytest.raises(KernelInputError, match="xq is float32; expected int8"):
        product(q.float(), s, packed)
    with pytest.raises(KernelInputError, match="3 scales for 4 rows"):
        pack_w8a8(torch.ones(4, 16, dtype=torch.int8), torch.ones(3))
    with pytest.raises(KernelInputError, match="K is 131072"):
        pack_w8a8(torch.ones(1, 131072, dtype=torch.int8), torch.ones(1))
    with pytest.raises(KernelInputError, match="K is 70000; a zero point needs K below"):
        wide = pack_w8a8(torch.ones(1, 70000, dtype=torch.int8), torch.ones(1))
        x = torch.ones(1, 70000, dtype=torch.int8)
        product(x, torch.ones(1), wide, zx=torch.ones(1, dtype=torch.int32))
    assert product(q[:0], s[:0], packed).shape == (0, 4)


def test_sums_at_the_largest_k_do_not_wrap(monkeypatch):
    k = 131071
    monkeypatch.setattr(op.cfg, "choose", lambda *a, **k: GemmConfig(16, 32, 4096, 4, 1))
    packed = pack_w8a8(torch.full((1, k), -128, dtype=torch.int8), torch.ones(1) * 1e-6)
    x = torch.full((1, k), 127, dtype=torch.int8)
    y = product(x, torch.ones(1), packed)
    assert abs(y.item() + 128 * 127 * k * 1e-6) < 1.1  # half a step of float16 at 2130


def test_tiles_by_shape():
    for arch in (75, 80, 86, 89, 90, 100, 120):
        small = tiles_of(arch)
        assert [t.bm for t in small] == sorted(t.bm for t in small)
        for m in (1, 16, 17, 64):
            assert choose(arch, m, 4096).bm >= m
        assert choose(arch, 8192, 8192, residual=True) == square_tile(arch)
    assert choose_split(choose(90, 1, 4096), 1, 4096, 4096, 132) == 4
    assert choose_split(choose(90, 1, 152064), 1, 152064, 4096, 132) == 1
    assert choose_split(choose(90, 4096, 4096), 4096, 4096, 4096, 132) == 1
    tile = choose(90, 1, 4096)
    sums = 32 * tile.bm * tile.bn
    assert choose_split(tile, 1, 4096, 4096, 132, partials=3 * sums) == 2
    assert choose_split(tile, 1, 4096, 4096, 132, partials=2 * sums - 1) == 1
    assert choose_split(tile, 1, 4096, 4096, 132, counters=31) == 1
