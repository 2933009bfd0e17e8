"""Lengths, groups, splits and tails drawn from their whole legal range, in pairs.

Faults that the chosen sizes of the other tests let through: a phase of groups that are longer than
a slice, behind splits of K; zero points behind splits; pages that are full but for one token;
partial sums that are rounded.
"""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from triton_w4a16_support import check, make, poisoned, tile

from halfbyte.kernels.attention import (
    build_prefill_table,
    decode_attention,
    prefill_attention,
    prefill_block,
)
from halfbyte.kernels.attention import op as attention_op
from halfbyte.kernels.attention.config import EXACT_CHUNK, JOIN_TOGETHER
from halfbyte.kernels.attention.paged import paged_cache
from halfbyte.kernels.attention.reference import paged_attention
from halfbyte.kernels.codebook import codebook_linear, pack_codebook
from halfbyte.kernels.codebook import reference as codebook_reference
from halfbyte.kernels.device.input_rounding import InputRounding
from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.formats.code_tables import NF4
from halfbyte.kernels.fragments import config as fragment_config
from halfbyte.kernels.fragments import product
from halfbyte.kernels.w4a16 import op as w4a16_op
from halfbyte.kernels.w4a16.cases import Always
from halfbyte.kernels.w4a16.reference import w4a16_linear_reference
from halfbyte.kernels.w8a8 import op as w8a8_op
from halfbyte.kernels.w8a8 import pack_w8a8, quantize_rows, w8a8_linear
from halfbyte.kernels.w8a8 import reference as w8a8_reference
from halfbyte.kernels.w8a8.config import GemmConfig
from halfbyte.kernels.w8a16 import pack_w8a16, w8a16_linear
from halfbyte.kernels.w8a16 import reference as w8a16_reference

SLICE = 128


@pytest.fixture
def draw() -> random.Random:
    seed = random.randrange(1 << 31)
    print("draws", seed)
    return random.Random(seed)


def tail(draw: random.Random, slices: int, size: int = SLICE) -> int:
    """A K of so many slices, the last of which may have any number of columns."""
    return (slices - 1) * size + draw.choice([size, draw.randint(1, size)])


@pytest.mark.parametrize("splits", ["two", "some", "all"])
@pytest.mark.parametrize("group", [32, 64, 128, 256, 384, 512, -1])
@pytest.mark.parametrize("kernel", ["late", "direct"])
def test_w4a16_groups_by_splits(draw, kernel, group, splits):
    """A group that is longer than a slice begins before the split that uses it."""
    slices = draw.randint(3, 7)
    if group > SLICE and splits == "two":
        # The second half begins inside of a group, and another ends inside of it.
        half = draw.choice([n for n in (3, 4, 5) if n % (group // SLICE)])
        slices = 2 * half - draw.randint(0, 1)
    count = {"two": 2, "some": draw.randint(2, slices), "all": slices}[splits]
    zero = draw.choice(["none", "int", "float"])
    weight = make(draw.randint(1, 128), tail(draw, slices), group, zero, gated=False)
    bm = 8 if kernel == "late" else 16
    check(
        weight,
        draw.randint(1, 2 * bm),
        draw.choice([torch.float16, torch.bfloat16]),
        bias=draw.random() < 0.5,
        residual=draw.random() < 0.5,
        overrides=tile(kernel, bm, count),
    )


@pytest.mark.parametrize("kernel", ["late", "direct"])
def test_w4a16_partial_sums_are_not_rounded(draw, kernel):
    """With the sum's own rounding taken off, what is left shows 22 bits of the sum."""
    slices = draw.randint(3, 6)
    weight = make(draw.randint(1, 128), tail(draw, slices), draw.choice([64, 128, 256]), "int")
    x = torch.randn(draw.randint(1, 8), weight.features).half()
    want = w4a16_linear_reference(x, weight)
    residual = -want.half()
    parts = []
    for splits in (1, draw.randint(2, slices)):
        options = {"overrides": Always(tile(kernel, 16, splits)), "workspace": poisoned()}
        parts.append(w4a16_op.w4a16_linear(x, weight, residual=residual, **options).double())
    assert_same_sums(parts[0], parts[1], size_of(x, want))


def size_of(x, want):
    """A bound of the terms of a product [M, N], whatever their signs."""
    return want.abs().max() + x.double().abs().sum(1, keepdim=True) * 0.05


def assert_same_sums(whole, split, size):
    """float32 sums of some hundred terms in another order: 2^-20 of what is added up.

    A partial sum of 16 bits would be off by 2^-12 of itself. The results themselves are rounded
    to 11 bits of what is left of them.
    """
    rounded = 2.0**-11 * torch.maximum(whole.abs(), split.abs())
    error = (whole - split).abs()
    assert bool((error <= 2.0**-20 * size + 2 * rounded).all()), float((error / size).max())


@pytest.mark.parametrize("splits", [2, 3, 5])
@pytest.mark.parametrize("form", ["w8a16", "codebook"])
def test_fragments_by_splits(draw, rng, monkeypatch, form, splits):
    slices = draw.randint(splits, 2 * splits + 1)
    n, m = draw.randint(1, 128), draw.randint(1, 20)
    workspace = Workspace(torch.device("cpu"), partial_bytes=1 << 20, counters=64)
    workspace.partials.fill_(float("nan"))
    if form == "w8a16":
        k = tail(draw, slices, 64)
        group, zero = draw.choice([16, 32, 64, 96, 128, 256, -1]), draw.choice(["none", "int"])
        codes = torch.randint(0, 256, (n, k), generator=rng, dtype=torch.uint8)
        shape = (n, 1 if group == -1 else -(-k // group))
        scales = torch.rand(shape, generator=rng) * 0.01 + 0.001
        zeros = torch.randint(0, 256, shape, generator=rng).float() if zero == "int" else None
        packed = pack_w8a16(codes, scales, zeros, zero=zero, group=group)
        w = w8a16_reference.dequantize(codes, scales, zeros, zero, group)
        run = partial(w8a16_linear, weight=packed)
    else:
        block = draw.choice([32, 64, 128, 256])
        k = slices * 128 if block > 32 else slices * 128 - 32 * draw.randint(0, 3)
        codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
        scales = torch.rand(-(-n * k // block), generator=rng) + 0.1
        packed = pack_codebook(codes, scales, torch.tensor(NF4), block=block)
        w = codebook_reference.dequantize(
            codes, scales, torch.tensor(NF4), block, torch.float16
        ).double()
        run = partial(codebook_linear, weight=packed)
    x = torch.randn(m, k, generator=rng).half()
    want = w8a16_reference.linear(x, w)
    residual = -want.half()
    results = []
    for count in (1, splits):
        chosen = fragment_config.FragmentConfig(16, 128, 2, 4, count)
        monkeypatch.setattr(product, "choose", lambda *a, chosen=chosen, **k: chosen)
        results.append(run(x, bias=None, residual=residual, out=None, workspace=workspace).double())
        assert not workspace.counters.any()
    # Codes enter as q - 128, and what that adds comes off again.
    size = x.double().abs() @ (w.abs() + w.abs().amax()).T
    # One rounding of the reference, and float32 sums.
    assert bool((results[0] - (want + residual.double())).abs().le(2e-6 * size + 1e-7).all())
    assert_same_sums(results[0], results[1], size)


@pytest.mark.parametrize("splits", [2, 4, 8, 16])
@pytest.mark.parametrize("zero", ["none", "row", "static"])
def test_w8a8_zero_points_by_splits(draw, rng, monkeypatch, splits, zero):
    """Sums of integers are exact: what is left is one rounding."""
    tile = GemmConfig(16, 32, 32, 4, 1, True)
    monkeypatch.setattr(w8a8_op.cfg, "choose", lambda *a, **k: tile)
    monkeypatch.setattr(w8a8_op.cfg, "choose_split", lambda *a, **k: splits)
    m, n, k = draw.randint(1, 33), draw.randint(1, 65), draw.randint(1, 32 * 2 * splits)
    dtype = draw.choice([torch.float16, torch.bfloat16])
    codes = torch.randint(-128, 128, (n, k), generator=rng, dtype=torch.int8)
    packed = pack_w8a8(codes, torch.rand(n, generator=rng) * 0.01 + 0.001, dtype=dtype)
    x = (torch.randn(m, k, generator=rng) + draw.uniform(-4, 4)).to(dtype)
    static = torch.tensor([0.04]), torch.tensor([11], dtype=torch.int32)
    rounding = {
        "none": InputRounding(),
        "row": InputRounding(asymmetric=True),
        "static": InputRounding(torch.int8, True, 127.5, *static),
    }[zero]
    made = quantize_rows(x, rounding)
    bias = torch.randn(n, generator=rng).to(dtype) if draw.random() < 0.5 else None
    workspace = Workspace(torch.device("cpu"))
    workspace.partials.fill_(float("nan"))
    out = torch.full((m, n), float("nan"), dtype=dtype)
    y = w8a8_linear(made, packed, bias, None, out, workspace)
    q = made.codes[:, :k]
    want = w8a8_reference.w8a8_linear(q, made.scale, codes, packed.scales, made.zero, bias)
    # The interpreter cuts bfloat16 off where a GPU rounds; the bias is added in float32.
    eps = torch.finfo(dtype).eps * (0.51 if dtype == torch.float16 else 1.01)
    size = want.abs() + (0 if bias is None else bias.double().abs())
    error = (y.double() - want).abs()
    assert bool((error <= eps * want.abs() + 2e-6 * size + 1e-6).all()), float(error.max())
    assert not workspace.counters.any()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("page", [16, 32, 64])
def test_decode_at_every_place_of_a_page(draw, rng, page, exact, monkeypatch):
    """Lengths that end at each place of a page, among them all but one and exactly all."""
    monkeypatch.setattr(attention_op, "decode_splits", lambda *a: splits)
    splits = draw.choice([1, 2, 3, 7]) if not exact else 3
    ends = [page - 1, page, 1, *draw.sample(range(2, page - 1), 5)]
    lengths = [draw.randint(0, 640 // page) * page + end for end in ends]
    cache = paged_cache(rng, lengths, 1, page, 64, torch.float32)
    q = torch.randn(len(lengths), 2, 64, generator=rng)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    rows = torch.arange(len(lengths), dtype=torch.int32)
    window = draw.choice([0, 0, draw.randint(1, 300)])
    out = decode_attention(
        q, cache.k, cache.v, cache.tables, positions, max_length=768, scale=0.125, window=window,
        exact=exact, debug=True,
    )  # fmt: skip
    expected = paged_attention(
        q.double(), cache.true_k, cache.true_v, cache.tables, positions, rows, 0.125, window
    )
    # float32: the order of the sums, and exp2.
    assert bool(((out.double() - expected).abs() <= 3e-6 * expected.abs().max()).all())


def test_more_splits_than_are_joined_at_once(draw, rng):
    """What was joined before counts less when a larger score comes."""
    length = draw.randint(JOIN_TOGETHER * EXACT_CHUNK + 1, 2 * JOIN_TOGETHER * EXACT_CHUNK)
    cache = paged_cache(rng, [length], 1, 128, 64, torch.float32)
    # Scores that rise on the way, whatever is drawn: the last splits have the largest.
    q = torch.randn(1, 2, 64, generator=rng)
    last = int(cache.tables[0, (length - 1) // 128])
    cache.k[last, 0, (length - 1) % 128] = q[0, 0] * 2
    cache.true_k[last, 0, (length - 1) % 128] = q[0, 0].double() * 2
    positions = torch.tensor([length - 1], dtype=torch.int32)
    out = decode_attention(
        q, cache.k, cache.v, cache.tables, positions, max_length=length, scale=0.02, exact=True
    )
    rows = torch.zeros(1, dtype=torch.int32)
    expected = paged_attention(
        q.double(), cache.true_k, cache.true_v, cache.tables, positions, rows, 0.02
    )
    # float32: the order of the sums, and exp2.
    assert bool(((out.double() - expected).abs() <= 1e-5 * expected.abs().max()).all())


@pytest.mark.parametrize("page", [16, 64])
def test_prefill_from_every_place_of_a_page(draw, rng, page):
    begins = [0, page - 1, page, draw.randint(0, 3 * page)]
    counts = [draw.choice([1, page - 1, page, page + 1, draw.randint(1, 90)]) for _ in begins]
    lengths = [begin + count for begin, count in zip(begins, counts, strict=True)]
    cache = paged_cache(rng, lengths, 1, page, 64, torch.float32)
    spans, positions, rows, at = [], [], [], 0
    for row, (begin, count) in enumerate(zip(begins, counts, strict=True)):
        spans.append((at, at + count, begin))
        positions += range(begin, begin + count)
        rows += [row] * count
        at += count
    q = torch.randn(at, 2, 64, generator=rng)
    window = draw.choice([0, draw.randint(1, 2 * page)])
    block_q = prefill_block(0, 2, 1, page, 64, 4)
    table = build_prefill_table(spans, block_q)
    out = torch.full_like(q, float("nan"))
    prefill_attention(
        q, cache.k, cache.v, cache.tables, table, block_q=block_q, scale=0.125, window=window,
        out=out, debug=True,
    )  # fmt: skip
    expected = paged_attention(
        q.double(), cache.true_k, cache.true_v, cache.tables, torch.tensor(positions),
        torch.tensor(rows), 0.125, window,
    )  # fmt: skip
    assert bool(((out.double() - expected).abs() <= 3e-6 * expected.abs().max()).all())
