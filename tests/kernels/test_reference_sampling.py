"""Sampling in the reference ops: the counter RNG, the draw, the filters and the penalties."""

from __future__ import annotations

import random

import pytest
import torch
from seeds import fresh_seed
from statistics_support import chi_square_is_plausible, generator
from torch import Tensor

from halfbyte.kernels import reference as ref

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(x: int) -> int:
    """The finalizer of splitmix64, from its published constants."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, position: int, token: int) -> float:
    """23 random bits in the middle of their cell, from whole-number arithmetic."""
    key = splitmix((seed + GOLDEN) & MASK)
    key = splitmix((key + (position + 1) * GOLDEN) & MASK)
    return ((splitmix((key + (token + 1) * GOLDEN) & MASK) >> 41) + 0.5) / (1 << 23)


def test_splitmix_is_the_published_one() -> None:
    """First outputs of splitmix64 started at 0 and at 1234567 (Vigna's C program)."""
    assert splitmix(GOLDEN) == 0xE220A8397B1DCDAF
    assert splitmix(2 * GOLDEN & MASK) == 0x6E789E6AA1B965F4
    assert splitmix((1234567 + GOLDEN) & MASK) == 6457827717110365317
    lanes = torch.tensor([GOLDEN - (1 << 64), (2 * GOLDEN & MASK)], dtype=torch.int64)
    assert [v & MASK for v in ref.mix64(lanes).tolist()] == [
        splitmix(GOLDEN),
        splitmix(2 * GOLDEN & MASK),
    ]


def test_counter_uniform_is_a_function_of_its_counter() -> None:
    rng = random.Random(fresh_seed())
    cases = [(0, 0, 0), ((1 << 63) - 1, 0, 0), (1, (1 << 31) - 1, 262143)]
    cases += [
        (rng.randrange(1 << 63), rng.randrange(1 << 20), rng.randrange(1 << 18)) for _ in range(500)
    ]
    seeds, positions, tokens = (torch.tensor(column) for column in zip(*cases, strict=True))
    got = ref.counter_uniform(seeds, positions, tokens)
    assert got.dtype == torch.float32
    assert got.tolist() == [uniform(*case) for case in cases]


def test_counter_uniform_never_reaches_its_ends() -> None:
    """Whatever the bits are: all zeros give half a cell, all ones stop short of 1."""
    for bits, want in ((0, 2.0**-24), ((1 << 23) - 1, 1 - 2.0**-24)):
        value = (torch.tensor(bits).to(torch.float32) + 0.5) * (1.0 / (1 << 23))
        assert float(value) == want and 0 < want < 1
    u = ref.counter_uniform(
        torch.tensor(fresh_seed()), torch.arange(40).unsqueeze(1), torch.arange(50_000)
    )
    assert float(u.min()) > 0 and float(u.max()) < 1
    assert ref.gumbel(torch.tensor(3), torch.tensor(4), torch.arange(50_000)).isfinite().all()


@pytest.mark.parametrize("neighbour", ["seed", "position", "token"])
def test_neighbouring_counters_are_independent(neighbour: str) -> None:
    """Joint counts of u at a counter and at the next one, in 16 by 16 cells."""
    seed = fresh_seed()
    grid = [torch.tensor(seed + 2 * i) for i in range(8)]
    pairs = torch.zeros(256)
    for s in grid:
        p, t = torch.arange(0, 64, 2).unsqueeze(1), torch.arange(0, 2000, 2)
        here = ref.counter_uniform(s, p, t)
        step = {"seed": (s + 1, p, t), "position": (s, p + 1, t), "token": (s, p, t + 1)}
        there = ref.counter_uniform(*step[neighbour])
        cell = (here * 16).long() * 16 + (there * 16).long()
        pairs += torch.bincount(cell.flatten(), minlength=256)
    assert chi_square_is_plausible(pairs, torch.full((256,), 1 / 256))


def spread_logits(count: int, seed: int, spread: float) -> Tensor:
    """Logits of which the best two are less than ``spread / 8`` apart, so that counts compare."""
    logits = (torch.rand(count, generator=generator(seed), dtype=torch.float64) - 1) * spread
    logits[:2] /= 8
    return logits[torch.randperm(count, generator=generator(seed))].float()


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_gumbel_draws_follow_the_softmax(spread: float) -> None:
    seed = fresh_seed()
    logits = spread_logits(50, seed, spread)
    noise = ref.gumbel(torch.tensor(seed), torch.arange(200_000).unsqueeze(1), torch.arange(50))
    counts = torch.bincount((logits + noise).argmax(-1), minlength=50)
    assert chi_square_is_plausible(counts, logits.double().softmax(-1))


# Temperature, top-k, top-p, min-p.
FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.5, 0, 1.0, 0.0),
    (2.0, 5, 1.0, 0.0),
    (1.0, 0, 0.7, 0.0),
    (1.0, 0, 1.0, 0.2),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), FILTERS)
def test_sample_follows_the_filtered_softmax(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    seed = fresh_seed()
    logits, kept = filtered(seed, temperature, top_k, top_p, min_p)
    scaled = logits.double() / temperature
    want = torch.tensor([float(scaled[i]) if i in kept else -torch.inf for i in range(12)])
    draws = [ref.sample(logits, temperature, top_k, top_p, min_p, seed, p) for p in range(3000)]
    counts = torch.bincount(torch.tensor(draws), minlength=12)
    assert set(draws) <= kept
    assert chi_square_is_plausible(counts, want.double().softmax(-1))


def filtered(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Tensor, set[int]]:
    """Twelve logits and the tokens that are kept, two or more, whichever way sums are rounded."""
    for turn in range(100):
        logits = spread_logits(12, seed + turn, 4.0)
        scaled = (logits.double() / temperature).tolist()
        near = [
            oracle(scaled, top_k, min(top_p * (1 + x), 1.0), min_p * (1 - x))
            for x in (-1e-5, 0.0, 1e-5)
        ]
        if near[0] == near[1] == near[2]:
            return logits, near[1]
    raise AssertionError(f"seed {seed}: no logits away from the thresholds")


def test_sample_is_greedy_at_temperature_zero_and_repeats_itself() -> None:
    seed = fresh_seed()
    logits = torch.randn(100, generator=generator(seed))
    assert ref.sample(logits, 0.0, 0, 1.0, 0.0, 1, 2) == int(logits.argmax())
    draws = [ref.sample(logits, 1.5, 0, 1.0, 0.0, seed, p) for p in range(50)]
    assert draws == [ref.sample(logits, 1.5, 0, 1.0, 0.0, seed, p) for p in range(50)]
    assert draws != [ref.sample(logits, 1.5, 0, 1.0, 0.0, seed + 1, p) for p in range(50)]


@pytest.mark.parametrize("temperature", [1e-4, 1e-10, 1e-38, 1e-45, 1e-300])
@pytest.mark.parametrize("level", [-50.0, 0.0, 50.0])
def test_the_smallest_temperatures_tend_to_greedy(temperature: float, level: float) -> None:
    """Scores far beyond float32 must neither tie nor turn into NaN."""
    logits = torch.randn(60, generator=generator(fresh_seed())) + level
    logits[17] = logits.max() + 0.01
    for top_k, top_p, min_p in ((0, 1.0, 0.0), (5, 0.9, 0.1)):
        assert ref.sample(logits, temperature, top_k, top_p, min_p, 1, 2) == 17


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drawn_from_what_is_not_finite(temperature: float) -> None:
    logits = torch.randn(40, generator=generator(fresh_seed()))
    for value in (torch.nan, torch.inf):
        broken = logits.clone()
        broken[7] = value
        assert ref.sample(broken, temperature, 0, 0.9, 0.0, 1, 2) == -1
    nothing = torch.full((40,), -torch.inf)
    assert ref.sample(nothing, temperature, 0, 0.9, 0.0, 1, 2) == -1


def test_sample_ignores_what_cannot_be_drawn() -> None:
    """-inf logits (masked tokens) are never drawn, and the noise of the rest stays the same."""
    seed = fresh_seed()
    logits = torch.randn(40, generator=generator(seed))
    masked = logits.clone()
    masked[::2] = -torch.inf
    for position in range(200):
        token = ref.sample(masked, 3.0, 0, 1.0, 0.0, seed, position)
        assert token % 2 == 1
        free = ref.sample(logits, 3.0, 0, 1.0, 0.0, seed, position)
        if free % 2:
            assert token == free


def oracle(logits: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Top-k, then top-p of what is left, then min-p of the likeliest: by sorting, in floats."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if 0 < top_k < len(order):
        order = [i for i in order if logits[i] >= logits[order[top_k - 1]]]
    weights = torch.tensor([logits[i] for i in order], dtype=torch.float64).softmax(-1).tolist()
    if top_p < 1.0:
        mass, count = 0.0, 0
        while mass < top_p and count < len(order):
            mass += weights[count]
            count += 1
        order = [i for i in order if logits[i] >= logits[order[count - 1]]]
    best = max(logits)
    probabilities = torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()
    if min_p > 0.0:
        most = probabilities[logits.index(best)]
        order = [i for i in order if probabilities[i] >= min_p * most]
    return set(order)


def between(rng: random.Random, values: list[float]) -> float:
    """A threshold in (0, 1) that rounding cannot move over one of ``values``."""
    while True:
        x = rng.uniform(0.001, 0.999)
        if all(abs(x - v) > 1e-4 for v in values):
            return x


def test_filters_agree_with_sorting() -> None:
    rng = random.Random(fresh_seed())
    for _ in range(600):
        size = rng.randint(1, 60)
        logits = [rng.gauss(0, rng.choice([0.1, 1, 5])) for _ in range(size)]
        if rng.random() < 0.3:
            logits = [round(x) / 2 for x in logits]  # many ties
        logits = torch.tensor(logits, dtype=torch.float32).tolist()
        top_k = rng.choice([0, -1, 1, rng.randint(1, size + 3)])
        left = sorted((logits[i] for i in oracle(logits, top_k, 1.0, 0.0)), reverse=True)
        masses = torch.tensor(left, dtype=torch.float64).softmax(-1).cumsum(-1).tolist()
        relative = (torch.tensor(logits).double() - max(logits)).exp().tolist()
        top_p = rng.choice([1.0, between(rng, masses)])
        min_p = rng.choice([0.0, between(rng, relative)])
        keep = ref.keep_mask(torch.tensor(logits), top_k, top_p, min_p)
        want = oracle(logits, top_k, top_p, min_p)
        got = set(keep.nonzero().flatten().tolist())
        assert got == want, (logits, top_k, top_p, min_p)
        assert logits.index(max(logits)) in got


def test_tiny_top_p_and_full_min_p_leave_the_best() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    assert ref.keep_mask(logits, 0, 1e-9, 0.0).tolist() == [False, True, False]
    assert ref.keep_mask(logits, 0, 1.0, 1.0).tolist() == [False, True, False]
    assert ref.keep_mask(torch.zeros(5), 2, 0.1, 1.0).all(), "ties with the last kept are kept"


@pytest.mark.slow
def test_kept_tokens_can_be_counted_with_any_seed() -> None:
    """At least two of them, expected ten times and more."""
    for seed in range(10_000):
        for spread in (1.0, 4.0):
            best = spread_logits(50, seed, spread).double().softmax(-1).topk(2).values
            assert float(best[1]) * 200_000 > 10, seed
        for case in FILTERS:
            logits, kept = filtered(seed, *case)
            assert len(kept) > 1, (seed, case)
            odds = (logits.double()[sorted(kept)] / case[0]).softmax(-1).topk(2).values
            assert float(odds[1]) * 6000 > 10, (seed, case)


def test_top_p_over_a_large_vocabulary() -> None:
    """A flat distribution over 50 000 tokens: float32 sums must still find the right count."""
    logits = torch.randn(50_000, generator=generator(fresh_seed())) * 0.5
    masses = logits.double().sort(descending=True).values.softmax(-1).cumsum(-1)
    for top_p in (0.1, 0.5, 0.9):
        want = int((masses < top_p).sum()) + 1
        got = int(ref.keep_mask(logits, 0, top_p, 0.0).sum())
        # 50 000 float32 additions: relative error below 50 000 * 2**-24 = 0.3 % of the mass.
        assert abs(got - want) <= 0.004 * 50_000


def test_penalties() -> None:
    rng = random.Random(fresh_seed())
    for _ in range(100):
        size = 20
        prompt = [rng.randrange(size) for _ in range(rng.randint(1, 8))]
        output = [rng.randrange(size) for _ in range(rng.randint(0, 8))]
        logits = [rng.gauss(0, 3) for _ in range(size)]
        repetition, presence, frequency = (
            rng.uniform(0.5, 2),
            rng.uniform(-2, 2),
            rng.uniform(-2, 2),
        )
        seen = torch.zeros(size, dtype=torch.bool)
        seen[prompt + output] = True
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=size)
        got = ref.penalize(
            torch.tensor(logits, dtype=torch.float64), seen, counts, repetition, presence, frequency
        )
        for token, logit in enumerate(logits):
            want = logit
            if token in prompt or token in output:
                want = want / repetition if want > 0 else want * repetition
            if token in output:
                want -= presence + frequency * output.count(token)
            assert float(got[token]) == pytest.approx(want, rel=1e-12, abs=1e-12)
