"""Argmax and the random draw of the C kernels: the tokens that the reference chooses."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from cpu_support import make_ops, needs_compiler, tokens
from seeds import fresh_seed
from statistics_support import chi_square_is_plausible, generator
from torch import Tensor

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.run.sampling import RowSampling, sample_row
from halfbyte.kernels import reference as ref

pytestmark = needs_compiler

# Half a vector, whole ones, a vector and a bit; a vocabulary.
WIDTHS = (1, 7, 16, 33, 1000, 49152)


def test_argmax_takes_the_first_of_the_largest() -> None:
    seed = fresh_seed()
    ops = make_ops()
    rng = random.Random(seed)
    for width in (1, 2, 15, 16, 17, 33, 1000, 49152):
        x = tokens(seed, 5, width + 3)[:, :width].round()
        x[1, : width // 2] = -torch.inf
        x[2, rng.randrange(width)] = 1e9
        x[3] = -5.0
        want = [row.tolist().index(max(row.tolist())) for row in x]
        assert ops.argmax(x).tolist() == want, width


def test_argmax_of_a_broken_row_is_none_and_the_others_have_theirs() -> None:
    """One NaN anywhere, nothing above -inf, or an infinite largest logit."""
    seed = fresh_seed()
    ops = make_ops()
    rng = random.Random(seed)
    for width in (1, 2, 15, 16, 17, 33, 1000, 49152):
        x = tokens(seed, 6, width)
        want = x.argmax(-1)
        x[1, rng.randrange(width)] = torch.nan
        x[2] = torch.nan
        x[3] = -torch.inf
        x[4, rng.randrange(width)] = torch.inf
        want[1:5] = -1
        assert torch.equal(ops.argmax(x), want), width


def random_rows(rng: random.Random, width: int, count: int) -> list[RowSampling]:
    """All that the kernel may be asked for; texts hold ids beyond the row, too."""
    rows: list[RowSampling] = []
    for _ in range(count):
        length = rng.randint(1, 60)
        params = SamplingParams(
            temperature=rng.choice([0.0, 1e-35, 0.3, 1.0, 2.5]),
            top_k=rng.choice([0, 0, 1, 10, 2000]),
            top_p=rng.choice([1.0, 0.9, 0.2, 1e-9]),
            min_p=rng.choice([0.0, 0.05, 1.0]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            presence_penalty=rng.choice([0.0, 0.7]),
            frequency_penalty=rng.choice([0.0, -0.4]),
        )
        text = torch.tensor([rng.randrange(width + 2) for _ in range(length)])
        seed = rng.getrandbits(63)
        rows.append(RowSampling(params, seed, length, text, rng.randint(0, length)))
    return rows


def nudged(row: RowSampling, by: float) -> RowSampling:
    """The row with another ``top_p``, where it has one."""
    top_p = row.params.top_p
    if top_p == 1.0:
        return row
    return replace(row, params=replace(row.params, top_p=max(top_p + by, 0.0)))


def logits_of(rng: random.Random, seed: int, rows: int, width: int) -> Tensor:
    """Peaked and flat rows, some with many equal logits or half of them forbidden; strided."""
    x = tokens(seed, rows, width + 3)[:, :width]
    for i in range(rows):
        x[i] *= rng.choice([0.01, 1.0, 3.0, 30.0])
        if rng.random() < 0.2:
            x[i] = x[i].round()
        if rng.random() < 0.2 and width > 1:
            x[i, rng.randrange(2) :: 2] = -torch.inf
    return x


def test_draws_are_those_of_the_reference() -> None:
    """The logarithms of both differ in the last bits: that decides one draw in millions."""
    seed = fresh_seed()
    rng = random.Random(seed)
    ops = make_ops()
    for turn, width in enumerate(WIDTHS * 6):
        rows = random_rows(rng, width, 4)
        logits = logits_of(rng, seed + turn, 4, width)
        drawn = ops.sample(logits, rows).tolist()
        for token, row, row_V in zip(drawn, rows, logits, strict=True):
            # Where top_p is within rounding of a token's edge, either side of it is right.
            right = {sample_row(row_V, nudged(row, x)) for x in (-3e-6, 0.0, 3e-6)}
            assert token in right or _equally_good(row_V, row, token), (width, row.params)


def _equally_good(logits_V: Tensor, row: RowSampling, token: int) -> bool:
    """Whether a token's score is within rounding of the reference's choice."""
    if row.params.greedy or token < 0:
        return False
    ids = torch.tensor([token, sample_row(logits_V, row)])
    noise = ref.gumbel(torch.tensor(row.seed), torch.tensor(row.position), ids)
    scores = logits_V[ids] / row.params.temperature + noise
    return bool((scores[0] - scores[1]).abs() < 4e-6 * scores.abs().max().clamp(min=1.0))


def test_draws_do_not_depend_on_the_batch_or_on_threads() -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    rows, logits = random_rows(rng, 1000, 9), logits_of(rng, seed, 9, 1000)
    together = make_ops(threads=2).sample(logits, rows)
    alone = make_ops(threads=1)
    for i, row in enumerate(rows):
        assert alone.sample(logits[i : i + 1], [row]).tolist() == [together[i]]


@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_draws_follow_the_probabilities(spread: float) -> None:
    seed = fresh_seed()
    ops = make_ops()
    # A normal's quantiles in an order that is drawn: whatever order, top_p leaves several of them.
    order = torch.randperm(50, generator=generator(seed))
    logits = torch.special.ndtri((torch.arange(50) + 0.5) / 50)[order][None] * spread
    for params in (SamplingParams(), SamplingParams(top_k=20, top_p=0.8, temperature=0.7)):
        text = torch.tensor([0])
        rows = [RowSampling(params, seed, at, text, 1) for at in range(1, 20001)]
        drawn = ops.sample(logits.expand(len(rows), -1), rows)
        scaled = logits[0].double() / params.heat
        keep = ref.keep_mask(scaled, params.top_k, params.top_p, params.min_p)
        want = scaled.masked_fill(~keep, -torch.inf).softmax(-1)
        counts = torch.bincount(drawn, minlength=50)
        assert keep.sum() > 2 and not counts[~keep].any()
        assert chi_square_is_plausible(counts, want), params


def test_nothing_is_drawn_from_a_broken_row() -> None:
    ops = make_ops()
    for width in WIDTHS:
        x = torch.zeros(4, width)
        x[0, width // 2], x[1], x[2, -1] = torch.nan, -torch.inf, torch.inf
        rows = [RowSampling(SamplingParams(), 1, 1, torch.tensor([0]), 1)] * 4
        drawn = ops.sample(x, rows).tolist()
        assert drawn[:3] == [-1] * 3 and 0 <= drawn[3] < width
