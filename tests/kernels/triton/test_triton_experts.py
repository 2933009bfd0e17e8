"""Routing, sorted rows and products over all experts, against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from halfbyte.errors import KernelInputError
from halfbyte.kernels.device.expert_tiles import ExpertLoad
from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.experts import add_shares, arrange, gather_rows, route
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import E2M1, NF4
from halfbyte.kernels.formats.compact import ByteScales
from halfbyte.kernels.formats.weight_format import TOKEN_RULE
from halfbyte.kernels.kind import MatrixSpec, ProductContext, carrier
from halfbyte.kernels.kinds import KINDS

CPU = torch.device("cpu")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("tokens", "count", "per_token"), [(1, 8, 2), (70, 8, 2), (5, 60, 4), (9, 3, 3), (40, 128, 8)]
)
def test_each_token_has_its_best_experts(rng, tokens, count, per_token, normalize):
    scores = torch.randn(tokens, count, generator=rng).half()
    made = route(scores, per_token, normalize)
    shares, experts = scores.float().softmax(-1), made.experts.long()
    # Scores in float16 are often equal: the lower number comes first.
    order = torch.sort(scores.float(), dim=-1, descending=True, stable=True).indices[:, :per_token]
    assert torch.equal(experts, order)
    want = shares.gather(1, order)
    if normalize:
        want = want / want.sum(-1, keepdim=True)
    torch.testing.assert_close(made.shares, want, rtol=2e-6, atol=1e-7)
    counts = torch.bincount(experts.flatten(), minlength=made.counts.shape[1])
    assert torch.equal(made.counts.sum(0), counts.int())


@pytest.mark.parametrize(
    ("tokens", "count", "per_token", "rows"),
    [(1, 8, 2, 64), (70, 8, 2, 8), (70, 8, 2, 64), (5, 60, 4, 8), (40, 128, 8, 8), (200, 4, 1, 64)],
)
def test_rows_of_an_expert_stand_in_tiles_of_their_own(rng, tokens, count, per_token, rows):
    scores = torch.randn(tokens, count, generator=rng)
    scores[:, count // 2] += 2.0  # a busy one, and others that nobody wants
    routes = route(scores, per_token, True)
    where = arrange(routes, rows)
    experts, places = routes.experts.flatten(), where.places.flatten().long()
    tiles = where.tiles
    assert len(set(places.tolist())) == tokens * per_token
    assert torch.equal(tiles.experts[places // rows], experts)
    assert torch.equal(where.pairs[places], torch.arange(tokens * per_token, dtype=torch.int32))
    # In the order of pairs, without gaps, and no tile more than needed.
    used = 0
    for expert in range(count):
        mine = places[experts == expert]
        assert mine.tolist() == list(range(used, used + len(mine)))
        used += -(-len(mine) // rows) * rows
    assert (tiles.experts[used // rows :] == -1).all()
    assert tiles.load == ExpertLoad.of(tokens, per_token, count)

    x = torch.randn(tokens, 200, generator=rng).half()
    sorted_rows = gather_rows(x, where)
    assert torch.equal(sorted_rows[places], x.repeat_interleave(per_token, 0))
    rest = torch.ones(used, dtype=torch.bool)
    rest[places] = False
    assert not sorted_rows[:used][rest].any()

    residual = torch.randn(tokens, 200, generator=rng).half()
    y = sorted_rows.clone()
    y[used:] = torch.nan
    want = residual.double() + x.double() * routes.shares.double().sum(-1, keepdim=True)
    add_shares(y, where, routes.shares, residual)
    torch.testing.assert_close(residual.double(), want, rtol=2e-3, atol=1e-3)


def test_equal_scores_and_none_at_all():
    made = route(torch.zeros(2, 6), 3, True)
    assert made.experts.tolist() == [[0, 1, 2]] * 2
    torch.testing.assert_close(made.shares, torch.full((2, 3), 1 / 3))
    bad = torch.zeros(3, 6)
    bad[1] = torch.nan
    made = route(bad, 2, True)
    assert made.experts[[0, 2]].tolist() == [[0, 1]] * 2 and int(made.experts.max()) < 6
    assert made.shares[1].isnan().all() and made.shares[[0, 2]].isfinite().all()
    assert arrange(route(torch.zeros(0, 6), 2, True), 8).tiles.padded == 0


def test_bad_mixtures_are_refused_with_numbers():
    with pytest.raises(KernelInputError, match="7 of 6 experts"):
        route(torch.zeros(1, 6), 7, True)
    with pytest.raises(KernelInputError, match="at most 1024"):
        route(torch.zeros(1, 2000), 2, True)
    with pytest.raises(KernelInputError, match="tiles of 12; expected a power of 2"):
        arrange(route(torch.zeros(1, 6), 2, True), 12)


FORMATS = [
    (WeightFormat(4, 32, "int"), "w4a16", True),
    (WeightFormat(4, 128), "w4a16", False),
    (WeightFormat(4, 64, "int", act=TOKEN_RULE), "w4a8", True),
    (WeightFormat(4, 32, act=TOKEN_RULE), "w4a8", False),
    (WeightFormat(8, 32, "float"), "w8a16", False),
    (WeightFormat(4, 64, "table", NF4), "codebook", False),
    (WeightFormat(4, 32, "table", E2M1), "codebook", False),
    (WeightFormat(4, 16, "table", E2M1), "codebook", False),
    (WeightFormat(8, -1, act=ActivationFormat(symmetric=False)), "w8a8", False),
    (WeightFormat(8, -1, "e4m3", act=ActivationFormat("e4m3", top=448.0)), "fp8", False),
]


def random_weight(rng, n: int, k: int, form: WeightFormat) -> QuantizedLinear:
    groups = 1 if form.group_size == -1 else -(-k // form.group_size)
    codes = torch.randint(0, 1 << form.bits, (n, k), generator=rng, dtype=torch.uint8)
    if form.zero == "e4m3":
        codes = (torch.randn(n, k, generator=rng)).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = (torch.rand(n, groups, generator=rng) + 0.5).half() / 64
    zeros = compact = None
    if form.table == E2M1:
        kind = {32: torch.float8_e8m0fnu, 16: torch.float8_e4m3fn}[form.group_size]
        factors = torch.rand(n, generator=rng) + 0.5 if form.group_size == 16 else None
        compact = ByteScales(scales.float().to(kind), factors)
        scales = compact.numbers()[0]
    if form.zero == "int":
        zeros = torch.randint(0, 1 << form.bits, (n, groups), generator=rng).float()
    elif form.zero == "float":
        zeros = (torch.randn(n, groups, generator=rng) / 16).half()
    return QuantizedLinear("w", form, pack_codes(codes, form.bits), scales, zeros, k, None, compact)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("form", "name", "gated"), FORMATS, ids=range(len(FORMATS)))
def test_a_product_over_experts_is_each_experts_own(rng, form, name, gated, exact):
    """The same bits in exact mode; else sums in another order."""
    tokens, count, per_token, n, k, dtype = 11, 5, 2, 160, 256, torch.float16
    weights = [random_weight(rng, n, k, form) for _ in range(count)]
    kind = carrier(KINDS, MatrixSpec.of(weights[0], gated), 90).kind
    assert kind.name == name
    packed = [kind.pack(weight, dtype, CPU, gated) for weight in weights]
    bias = torch.randn(count, n, generator=rng).to(dtype)
    context = ProductContext(Workspace(CPU), exact)
    stacked = kind.stack(packed)
    assert stacked is not None
    scores = torch.randn(tokens, count, generator=rng)
    scores[:, 3] = -9.0  # nobody's
    routes = route(scores, per_token, True)
    rows = 2 * kind.tile_rows(stacked, ExpertLoad.of(tokens, per_token, count), dtype, context)
    where = arrange(routes, rows)
    x = torch.randn(tokens, k, generator=rng).to(dtype)
    got = kind.grouped_linear(gather_rows(x, where), stacked, bias, where.tiles, context)
    assert not context.workspace.counters.any()
    for t in range(tokens):
        for i in range(per_token):
            e = int(routes.experts[t, i])
            one: Tensor = x[t : t + 1].contiguous()
            want = kind.linear(one, packed[e], bias[e].contiguous(), None, None, context)[0]
            row = got[int(where.places[t, i])]
            if exact:
                assert torch.equal(row, want), (t, e)
            else:
                torch.testing.assert_close(row, want, rtol=4e-3, atol=4e-3)
