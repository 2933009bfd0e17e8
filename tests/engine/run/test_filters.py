"""Filters: each against its definition in float64, with ties and dropped tokens at the edges."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sampling_rows import OUT, fresh_rng, kept, random_scores, text_row
from torch import Tensor

from halfbyte.engine.run import filters
from halfbyte.engine.run.draw_state import DrawState

LOG2 = math.log(2.0)


def log_of(*probabilities: float) -> Tensor:
    """Scores of a distribution, the best one 0."""
    logs = [math.log(p) if p else OUT for p in probabilities]
    return torch.tensor(logs) - max(logs)


def probabilities(scores_V: Tensor) -> list[float]:
    return scores_V.double().softmax(-1).tolist()


def first_to(order: list[int], p: list[float], mass: float) -> set[int] | None:
    """The first of an order that reach a mass; None where float32 cannot tell."""
    total, out = 0.0, set()
    for token in order:
        out.add(token)
        total += p[token]
        if abs(total - mass) < 1e-5:
            return None
        if total >= mass:
            break
    return out


def by_definition(name: str, scores_V: Tensor, value: float) -> set[int] | None:
    """What a filter keeps, from its meaning; None where a decision is within rounding."""
    p, scores = probabilities(scores_V), scores_V.double()
    alive = sorted(kept(scores_V), key=lambda i: -p[i])
    match name:
        case "top_k":
            return set(alive[: int(value)])
        case "top_p":
            return first_to(alive, p, value)
        case "min_p":
            share = [p[i] / p[alive[0]] for i in alive]
            if any(abs(s - value) < 1e-5 for s in share):
                return None
            return {i for i, s in zip(alive, share, strict=True) if s >= value}
        case "typical_p":
            entropy = -sum(p[i] * math.log(p[i]) for i in alive)
            return first_to(sorted(alive, key=lambda i: abs(-math.log(p[i]) - entropy)), p, value)
        case _:
            values = [float(scores[i]) for i in alive]
            mean = sum(values) / len(values)
            sigma = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            gaps = [v - (values[0] - value * sigma) for v in values]
            if any(abs(gap) < 1e-5 for gap in gaps):
                return None
            return {i for i, gap in zip(alive, gaps, strict=True) if gap >= 0}


Filter = Callable[[Tensor, object], Tensor]
FILTERS: dict[str, tuple[str, Callable[[random.Random], float]]] = {
    "top_k": ("top_k", lambda rng: rng.randint(1, 30)),
    "top_p": ("top_p", lambda rng: rng.uniform(0.01, 0.999)),
    "min_p": ("min_p", lambda rng: rng.uniform(0.001, 1.0)),
    "typical_p": ("typical", lambda rng: rng.uniform(0.01, 0.999)),
    "top_n_sigma": ("top_n_sigma", lambda rng: rng.uniform(0.1, 4.0)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_its_meaning_says(name: str) -> None:
    """Of what the filters before it left, whose scores it does not change."""
    rng, judged, dropped = fresh_rng(), 0, 0
    function, value_of = FILTERS[name]
    keep = getattr(filters, function)
    for _ in range(150):
        scores_V = random_scores(rng, rng.randint(1, 40), dropped=rng.choice([0.0, 0.3, 0.9]))
        value = value_of(rng)
        given: dict[str, Any] = {name: value}
        out_V = keep(scores_V, text_row([1], **given))
        assert torch.equal(out_V[out_V > OUT], scores_V[out_V > OUT])
        want = by_definition(name, scores_V, value)
        if want is not None:
            assert kept(out_V) == want, (scores_V, value)
            judged += 1
            dropped += len(want) < len(kept(scores_V))
    assert judged > 120 and dropped > 30


OFF: dict[str, Any] = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "top_n_sigma": 0.0,
    "xtc_probability": 0.0,
}


def test_what_is_off_keeps_all() -> None:
    scores_V = random_scores(fresh_rng(), 50, dropped=0.2)
    assert torch.equal(filters.filtered(scores_V, text_row([1], **OFF)), scores_V)
    more: dict[str, Any]
    for more in ({"top_k": -1}, {"top_n_sigma": -1.0}, {"top_k": 50}):
        assert torch.equal(filters.filtered(scores_V, text_row([1], **more)), scores_V)


@pytest.mark.parametrize(
    ("params", "want"),
    [
        ({"top_k": 1}, {0, 3}),
        ({"top_k": 3}, {0, 3, 1, 4}),
        ({"top_p": 0.3}, {0, 3}),
        ({"top_p": 0.7}, {0, 3, 1, 4}),
        ({"min_p": 1.0}, {0, 3}),
        ({"typical_p": 0.0}, {0, 3}),
        ({"top_n_sigma": 1e-300}, {0, 3}),
    ],
    ids=str,
)
def test_equal_tokens_are_kept_together(params: dict[str, Any], want: set[int]) -> None:
    """The last one kept may be one of several: none of them is better."""
    scores_V = log_of(0.3, 0.2, 0.0, 0.3, 0.2)
    assert kept(filters.filtered(scores_V, text_row([1], **params))) == want


def test_filters_work_on_what_the_one_before_left() -> None:
    """Of three tokens that top_k leaves, top_p counts the mass anew."""
    scores_V = log_of(0.4, 0.2, 0.2001, 0.1, 0.0999)
    row = text_row([1], top_k=3, top_p=0.7)
    # 0.4 of 0.8 is a half, with 0.2001 three quarters.
    assert kept(filters.filtered(scores_V, row)) == {0, 2}
    assert kept(filters.filtered(scores_V, text_row([1], top_p=0.7))) == {0, 1, 2}
    rng = fresh_rng()
    for _ in range(30):
        scores_V = random_scores(rng, 40, dropped=0.3)
        given: dict[str, Any] = {
            "top_n_sigma": rng.uniform(0.5, 3),
            "top_k": rng.randint(2, 30),
            "typical_p": rng.uniform(0.5, 0.99),
            "top_p": rng.uniform(0.5, 0.99),
            "min_p": rng.uniform(0.0, 0.2),
            "xtc_probability": 1.0,
            "xtc_threshold": rng.uniform(0.05, 0.3),
        }
        out_V = scores_V
        for name in ("top_n_sigma", "top_k", "typical", "top_p", "min_p", "xtc"):
            out_V = getattr(filters, name)(out_V, text_row([1], **given))
        assert torch.equal(filters.filtered(scores_V, text_row([1], **given)), out_V)


@pytest.mark.parametrize(
    ("threshold", "want"),
    [
        (0.05, {3, 4}),
        (0.15, {2, 3, 4}),
        (0.25, {1, 2, 3, 4}),
        # Fewer than two are that likely.
        (0.35, {0, 1, 2, 3, 4}),
        (0.9, {0, 1, 2, 3, 4}),
    ],
)
def test_top_choices_but_the_last_are_excluded(threshold: float, want: set[int]) -> None:
    scores_V = log_of(0.4, 0.3, 0.2, 0.06, 0.04)
    row = text_row([1], xtc_probability=1.0, xtc_threshold=threshold)
    assert kept(filters.xtc(scores_V, row)) == want


def test_top_choices_are_excluded_by_chance() -> None:
    """By a coin of the row's seed and position, which is none of any token's numbers."""
    seed = random.getrandbits(60)
    print("seed", seed)
    scores_V = log_of(0.5, 0.3, 0.2)

    def excluded(probability: float, position: int) -> bool:
        row = text_row([1] * position, seed=seed, xtc_probability=probability, xtc_threshold=0.25)
        out = kept(filters.xtc(scores_V, row))
        assert out in ({0, 1, 2}, {1, 2})
        return out == {1, 2}

    places = {chance: {n for n in range(1, 201) if excluded(chance, n)} for chance in (0.2, 0.7)}
    for chance, found in places.items():
        # Five standard deviations of a binomial: once in a million runs.
        assert abs(len(found) - 200 * chance) < 5 * math.sqrt(200 * chance * (1 - chance))
    # One coin: what is excluded by a smaller chance is by a larger one, and again.
    assert places[0.2] < places[0.7] and places[0.2] == {n for n in places[0.2] if excluded(0.2, n)}


def test_mirostat_keeps_what_is_not_too_surprising() -> None:
    scores_V = log_of(0.5, 0.25, 0.125, 0.125, 0.0)
    for mu, want in (
        (0.5, {0}),
        (1.5, {0}),
        (2.1, {0, 1}),
        (3.1, {0, 1, 2, 3}),
        (99, {0, 1, 2, 3}),
    ):
        row = text_row([1], draw=DrawState(mu=mu), mirostat=2)
        assert kept(filters.mirostat(scores_V, row)) == want
        # It replaces all filters.
        assert torch.equal(filters.filtered(scores_V, row), filters.mirostat(scores_V, row))
    tied_V = log_of(0.25, 0.25, 0.25, 0.25)
    assert kept(filters.mirostat(tied_V, text_row([1], mirostat=2))) == {0, 1, 2, 3}


def test_surprise_is_counted_in_bits_of_what_was_kept() -> None:
    scores_V = log_of(0.5, 0.25, 0.25)
    assert [filters.surprise(scores_V, i) for i in range(3)] == pytest.approx([1, 2, 2], abs=1e-6)
    scores_V[2] = OUT
    bits = [filters.surprise(scores_V, i) for i in range(2)]
    assert bits == pytest.approx([math.log(1.5) / LOG2, math.log(3) / LOG2], abs=1e-6)


def test_one_token_that_is_left_stays() -> None:
    """Whatever the filters, and none of them makes a number of nothing."""
    scores_V = torch.full((20,), OUT)
    scores_V[7] = 0.0
    strict: dict[str, Any] = {
        "top_n_sigma": 0.1,
        "top_k": 1,
        "typical_p": 0.0,
        "top_p": 1e-9,
        "min_p": 1.0,
        "xtc_probability": 1.0,
        "xtc_threshold": 0.0,
    }
    assert torch.equal(filters.filtered(scores_V, text_row([1], **strict)), scores_V)
    assert torch.equal(filters.filtered(scores_V, text_row([1], mirostat=2)), scores_V)
