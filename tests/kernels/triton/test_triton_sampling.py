"""Sampling kernels against the reference: the same token for the same seed and position."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from halfbyte.errors import KernelInputError
from halfbyte.kernels import reference as ref
from halfbyte.kernels.device import runtime
from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.sampling import (
    TokenChoice,
    argmax,
    pack_choices,
    reset_counts,
    sample,
    sample_workspace,
)
from halfbyte.kernels.sampling import reference as sampling_reference
from halfbyte.kernels.sampling.cases import allowed_tokens
from halfbyte.kernels.sampling.config import MOST_PARTS


@pytest.fixture
def seed():
    value = random.randrange(1 << 31)
    print("seed", value)
    return value


def logits_of(kind, rows, size, rng):
    """Logits with a peak, with ties, with forbidden tokens, or nearly flat."""
    x = torch.randn(rows, size, generator=rng)
    if kind == "peaked":
        return x * 4
    if kind == "tied":
        return (x * 3).round()
    if kind == "forbidden":
        x[:, torch.rand(size, generator=rng) < 0.6] = -math.inf
        x[:, size // 2] = 0.0
        return x * 2
    return x * 0.01


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        # Three blocks of 4096 only for one kind; two for all.
        pytest.param(size, kind, marks=[pytest.mark.slow] * (size == 9001 and kind != "tied"))
        for size in (2, 300, 4097, 9001)
        for kind in ("peaked", "tied", "forbidden", "flat")
    ],
)
def test_tokens_equal_the_references(seed, kind, size):
    rng, pick = torch.Generator().manual_seed(seed), random.Random(seed)
    rows = 5
    logits = logits_of(kind, rows, size, rng)
    counts = torch.full((2, size), -1, dtype=torch.int32)
    for slot, prompt in ((0, 10), (1, 25)):
        reset_counts(counts, slot, torch.randint(0, size + 3, (30,), generator=rng), prompt)
    choices = [
        TokenChoice(
            temperature=pick.choice([0.0, 0.3, 1.0, 1.7, 1e-40]),
            top_k=pick.choice([0, 0, 1, 5, 50, 4500, size]),
            top_p=pick.choice([1.0, 0.9, 0.5, 0.0, 0.999]),
            min_p=pick.choice([0.0, 0.0, 0.1, 0.01]),
            repetition=pick.choice([1.0, 1.3]),
            presence=pick.choice([0.0, 0.3]),
            frequency=pick.choice([0.0, 0.7]),
            seed=pick.randrange(-(2**63), 2**63),
            position=pick.randrange(10**6),
            slot=row if row < 2 else -1,
        )
        for row in range(rows)
    ]
    before = counts.clone()
    workspace = sample_workspace(rows, "cpu").fill_(-1)
    logprobs = torch.full((rows,), math.nan)
    out = torch.full((rows,), -7)
    floats, ints = pack_choices(choices)
    sample(logits, floats, ints, counts_PV=counts, workspace=workspace, out=out, logprobs=logprobs)
    for row, choice in enumerate(choices):
        token = int(out[row])
        line = before[choice.slot] if choice.slot >= 0 else None
        assert token in allowed_tokens(logits[row], choice, line), choice
        # float32 sum of up to 9001 terms.
        assert abs(sampling_reference.logprob(logits[row], token) - float(logprobs[row])) < 1e-4
        if choice.slot >= 0:
            before[choice.slot, token] += 1
    assert torch.equal(counts, before)


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_presence_counts_once_and_frequency_each_time(seed, temperature):
    """Token 0 came several times and is a little better than token 1, which never came."""
    pick = random.Random(seed)
    times, penalty = pick.randint(2, 9), pick.uniform(0.1, 2.0)
    # Between once and twice the penalty.
    logits = torch.tensor([[1.5 * penalty, 0.0, -90.0]])
    for name, token in (("presence", 0), ("frequency", 1)):
        counts = torch.zeros(1, 3, dtype=torch.int32)
        reset_counts(counts, 0, torch.tensor([2] + [0] * times), 1)
        choice = TokenChoice(temperature=temperature, slot=0, seed=seed)
        choice = replace(choice, **{name: penalty})
        assert sample(logits, *pack_choices([choice]), counts_PV=counts).item() == token, name


def test_kept_set_is_the_references(seed):
    """Draws at many positions stay inside of keep_mask, ties included."""
    rng = torch.Generator().manual_seed(seed)
    logits = (torch.randn(1, 40, generator=rng) * 2).round() / 2
    for top_k, top_p, min_p in ((7, 1.0, 0.0), (0, 0.8, 0.0), (9, 0.7, 0.0), (0, 1.0, 0.2)):
        keep = ref.keep_mask(logits[0] - logits.max(), top_k, top_p, min_p)
        choices = [TokenChoice(1.0, top_k, top_p, min_p, seed=seed, position=i) for i in range(10)]
        tokens = sample(logits.expand(10, 40), *pack_choices(choices))
        assert keep[tokens].all()
        wanted = [ref.sample(logits[0], 1.0, top_k, top_p, min_p, seed, i) for i in range(10)]
        assert tokens.tolist() == wanted


def test_a_row_does_not_see_the_batch(seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5000, generator=rng)
    choices = [TokenChoice(1.0, 40 * i, 0.95, seed=seed + i, position=i) for i in range(6)]
    together = sample(logits, *pack_choices(choices))
    for row in (0, 3, 5):
        alone = sample(logits[row : row + 1], *pack_choices(choices[row : row + 1]))
        assert alone[0] == together[row]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_argmax_takes_the_lowest_of_equals(seed, dtype):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4100, generator=rng).clamp(max=2.0).to(dtype)
    logits[:, 4099] = math.nan
    out = argmax(logits, valid=4099)
    tidy = logits[:, :4099].float()
    best = tidy.max(-1).values.unsqueeze(-1)
    assert out.tolist() == [
        int((row == top).nonzero()[0]) for row, top in zip(tidy, best, strict=True)
    ]
    greedy = sample(logits, *pack_choices([TokenChoice()] * 5), valid=4099)
    assert torch.equal(out, greedy)


def test_broken_rows_have_no_token_and_the_others_theirs(seed):
    """One NaN anywhere, nothing above -inf, or an infinite largest logit: -1, as the reference."""
    rng, pick = torch.Generator().manual_seed(seed), random.Random(seed)
    size = 4099
    logits = torch.randn(8, size, generator=rng)
    broken = logits.clone()
    broken[1, pick.randrange(size)] = math.nan
    broken[3] = math.nan
    broken[5] = -math.inf
    broken[6, pick.randrange(size)] = math.inf
    for choice in (
        TokenChoice(),
        TokenChoice(1.0, 0, 0.9),
        TokenChoice(1.0, repetition=1.5, slot=0),
    ):
        counts = torch.zeros(1, size, dtype=torch.int32) if choice.slot == 0 else None
        many = [replace(choice, seed=seed, position=i, slot=-1) for i in range(8)]
        want = sample(logits, *pack_choices(many)).tolist()
        for bad in (1, 3, 5, 6):
            want[bad] = -1
        assert sample(broken, *pack_choices(many)).tolist() == want
        for row in range(8):
            one = replace(many[row], slot=choice.slot)
            got = sample(broken[row : row + 1], *pack_choices([one]), counts_PV=counts).tolist()
            line = None if counts is None else torch.zeros(size, dtype=torch.int32)
            if counts is not None:
                assert int(counts.sum()) == int(got[0] >= 0), "no token, nothing counted"
                counts.zero_()
            assert got[0] in allowed_tokens(broken[row], one, line)
    assert argmax(broken).tolist() == [
        -1 if i in (1, 3, 5, 6) else int(logits[i].argmax()) for i in range(8)
    ]


@pytest.mark.parametrize("rows", [1, 2])
def test_programs_of_a_row_find_what_one_finds(seed, rows, monkeypatch):
    """Ties in other tiles, zeros of both signs, NaN, infinities; the counters are zero again."""
    rng, pick = torch.Generator().manual_seed(seed), random.Random(seed)
    size = 3 * 4096 + 17
    logits = torch.randn(9, size, generator=rng).clamp(max=2.0)
    logits[1] = -1.0
    zeros = [tile * 4096 + pick.randrange(4096) for tile in range(3)]
    logits[1, zeros] = torch.tensor([-0.0, 0.0, 0.0])
    logits[2] -= 100.0
    logits[3, pick.randrange(size)] = math.nan
    logits[4, pick.randrange(size)] = math.inf
    logits[5] = -math.inf
    logits[6] = -math.inf
    logits[6, pick.randrange(size)] = -3.0
    logits[7, -1] = 3.0
    logits[8] = 0.0
    want = argmax(logits, workspace=(space := Workspace(torch.device("cpu"), counters=9)))
    assert int((want < 0).sum()) == 3
    space.partials.fill_(math.nan)
    monkeypatch.setattr(runtime, "multiprocessors", lambda index: 8)
    for start in range(9):
        part = logits[start : start + rows]
        assert torch.equal(argmax(part, workspace=space), want[start : start + rows])
        assert int(space.counters.abs().sum()) == 0
        # Each program has written its own part.
        parts = space.partials.view(torch.int64).view(-1, MOST_PARTS)
        assert not (parts[: len(part), : 4 // len(part)] == parts[-1, -1]).any()


def test_valid_and_strided_rows(seed):
    rng = torch.Generator().manual_seed(seed)
    wide = torch.randn(3, 100, generator=rng)
    wide[:, 60:] = 50.0
    view = wide[:, :80]
    assert (argmax(view, valid=60) < 60).all()
    choices = [TokenChoice(2.0, seed=seed, position=i) for i in range(3)]
    tokens = sample(view, *pack_choices(choices), valid=60)
    wanted = [ref.sample(wide[i, :60], 2.0, 0, 1.0, 0.0, seed, i) for i in range(3)]
    assert tokens.tolist() == wanted


def test_division_by_corrected_products_is_correctly_rounded(seed):
    """``parts.divide`` as a GPU computes it, emulated in float64, equals IEEE division."""
    rng = torch.Generator().manual_seed(seed)
    a = (torch.rand(30000, generator=rng) * 60).float()
    for b in (0.7, 1.0, 1.3, 0.1, 1e-3, 1.9999999, 3.0, 1e-30):
        b32 = torch.tensor(b, dtype=torch.float32)
        y = 1.0 / b32

        def fma(p, q, r):
            # The product is exact in float64. The sum is rounded to odd there (Boldo and
            # Melquiond), with which rounding once more to float32 is as good as rounding once.
            product, r64 = p.double() * q.double(), r.double()
            total = product + r64
            part = total - product
            error = (product - (total - part)) + (r64 - part)
            even = total.view(torch.int64) % 2 == 0
            toward = torch.nextafter(total, torch.copysign(torch.tensor(math.inf).double(), error))
            return torch.where((error != 0) & even, toward, total).float()

        q = a * y
        for _ in range(2):
            q = fma(fma(-q, b32, a), y, q)
        ok = (a / b32).isfinite()
        assert torch.equal(q[ok], (a / b32)[ok])


def test_bad_inputs_are_refused_with_numbers():
    logits = torch.zeros(2, 50)
    floats, ints = pack_choices([TokenChoice()] * 2)
    with pytest.raises(KernelInputError, match="51 ids are valid, logits have 50 columns"):
        argmax(logits, valid=51)
    with pytest.raises(KernelInputError, match=r"floats has shape \(1, 6\); expected \(2, 6\)"):
        sample(logits, floats[:1], ints)
    with pytest.raises(KernelInputError, match="counts have 49 columns; 50 ids"):
        sample(logits, floats, ints, counts_PV=torch.zeros(1, 49, dtype=torch.int32))
    with pytest.raises(KernelInputError, match="workspace holds 8 integers; 16384"):
        sample(logits, floats, ints, workspace=torch.zeros(8, dtype=torch.int32))
    with pytest.raises(KernelInputError, match=r"penalty slot is 1; expected 0\.\.0"):
        reset_counts(torch.zeros(1, 5, dtype=torch.int32), 1, torch.zeros(1, dtype=torch.int64), 0)
