"""Processors: each against its definition, and what none of them may change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sampling_rows import OUT, fresh_rng, text_row
from torch import Tensor

from halfbyte.engine.run import processors
from halfbyte.engine.run.draw_state import DrawState
from halfbyte.errors import RequestError

VOCAB = 32


def random_logits() -> Tensor:
    return torch.randn(VOCAB) * 3


def test_biases_are_added() -> None:
    logits_V = random_logits()
    given = {3: 1.5, 7: -100.0, 31: 0.25}
    out_V = processors.bias(logits_V, text_row([1], logit_bias=given))
    for token in range(VOCAB):
        assert out_V[token] == logits_V[token] + given.get(token, 0.0)
    assert torch.equal(processors.bias(logits_V, text_row([1])), logits_V)


def test_penalties_by_the_definition() -> None:
    """Repetition counts prompt and answer, the others the answer alone."""
    rng = fresh_rng()
    for _ in range(30):
        text = [rng.randrange(VOCAB + 4) for _ in range(rng.randint(2, 40))]
        prompt = rng.randint(1, len(text))
        given: dict[str, Any] = {
            "repetition_penalty": rng.choice([1.0, 0.5, 1.3]),
            "presence_penalty": rng.choice([0.0, -1.0, 0.7]),
            "frequency_penalty": rng.choice([0.0, -0.4, 0.9]),
        }
        logits_V = random_logits()
        out_V = processors.penalties(logits_V, text_row(text, prompt, **given))
        answer = text[prompt:]
        for token in range(VOCAB):
            want = float(logits_V[token])
            if token in text:
                factor = given["repetition_penalty"]
                want = want / factor if want > 0 else want * factor
            want -= given["presence_penalty"] * (token in answer)
            want -= given["frequency_penalty"] * answer.count(token)
            # Three roundings of float32 numbers up to some dozens.
            assert float(out_V[token]) == pytest.approx(want, abs=1e-4)


def repetitions(text: list[int], breakers: set[int]) -> dict[int, int]:
    """Each token -> the longest end of the text that it once followed, by trying all."""
    longest: dict[int, int] = {}
    for place in range(1, len(text)):
        length = 0
        while length < place and text[place - 1 - length] == text[-1 - length]:
            if text[-1 - length] in breakers:
                break
            length += 1
        if length:
            longest[text[place]] = max(length, longest.get(text[place], 0))
    return longest


def test_repetitions_cost_by_their_length() -> None:
    """Texts of few tokens, which repeat themselves in every way."""
    rng, cost = fresh_rng(), 0
    for _ in range(250):
        kinds = rng.choice([1, 2, 3, 6])
        text = [rng.randrange(kinds) for _ in range(rng.randint(1, 40))]
        breakers = frozenset(i for i in range(kinds) if rng.random() < 0.15)
        last_n = rng.choice([-1, -1, 0, 1, 5, 100])
        given: dict[str, Any] = {
            "dry_multiplier": rng.uniform(0.1, 2.0),
            "dry_base": rng.uniform(1.0, 1.5),
            "dry_allowed_length": rng.randint(1, 4),
            "dry_penalty_last_n": last_n,
        }
        logits_V = random_logits()
        row = text_row(text, 1, DrawState(breakers=breakers), **given)
        out_V = processors.dry(logits_V, row)
        found = repetitions(
            text[max(0, len(text) - last_n) :] if last_n >= 0 else text, {*breakers}
        )
        for token in range(VOCAB):
            want, length = float(logits_V[token]), found.get(token, 0)
            if length >= given["dry_allowed_length"] and token not in breakers:
                excess = length - given["dry_allowed_length"]
                want -= given["dry_multiplier"] * given["dry_base"] ** excess
                cost += 1
            # A loss of at most 2 * 1.5 ** 39, of which float32 keeps seven digits.
            assert float(out_V[token]) == pytest.approx(want, rel=1e-5, abs=1e-4)
    assert cost > 50


def test_a_repetition_by_hand() -> None:
    """After "a b c d a b c" d would go on with three tokens, in two ways with one."""
    text = [1, 2, 3, 4, 9, 3, 5, 1, 2, 3]
    row = text_row(text, dry_multiplier=0.5, dry_base=2.0, dry_allowed_length=1)
    out_V = processors.dry(torch.zeros(VOCAB), row)
    assert {i: float(v) for i, v in enumerate(out_V) if v} == {4: -0.5 * 2**2, 5: -0.5}


@pytest.mark.parametrize("base", [1.5, 4.0, 100.0])
def test_a_long_repetition_costs_a_finite_number(base: float) -> None:
    for length in (100, 150, 200, 300, 3000):
        row = text_row([5] * length, dry_multiplier=100.0, dry_base=base)
        out_V = processors.dry(torch.zeros(VOCAB), row)
        assert out_V.isfinite().all() and out_V[5] < -1e12
    assert float(out_V[5]) == pytest.approx(-processors.MOST_PENALTY)
    # A token that the model does not have may stand in a prompt.
    row = text_row([VOCAB + 1] * 50, dry_multiplier=1.0)
    assert torch.equal(processors.dry(torch.zeros(VOCAB), row), torch.zeros(VOCAB))


def test_own_processors_see_the_text_and_the_logits_of_those_before() -> None:
    seen: list[tuple[list[int], Tensor]] = []

    def first(ids: Sequence[int], logits_V: Tensor) -> Tensor:
        seen.append((list(ids), logits_V.clone()))
        return logits_V.double() + 1.0

    def second(ids: Sequence[int], logits_V: Tensor) -> Tensor:
        seen.append((list(ids), logits_V.clone()))
        return logits_V.mul_(2.0)

    logits_V = random_logits()
    before_V = logits_V.clone()
    out_V = processors.custom(logits_V, text_row([4, 5, 6], 2, processors=[first, second]))
    assert torch.equal(logits_V, before_V), "they work on a copy"
    assert out_V.dtype == torch.float32 and torch.equal(out_V, (before_V.double() + 1).float() * 2)
    assert [ids for ids, _ in seen] == [[4, 5, 6]] * 2
    assert torch.equal(seen[0][1], before_V) and seen[1][1].dtype == torch.float32


def test_an_own_processor_that_is_wrong_is_named() -> None:
    good, bad = (lambda ids, logits_V: logits_V), (lambda ids, logits_V: logits_V.tolist())
    with pytest.raises(RequestError, match=r"processors\[1\] gave .*expected float logits \(32,\)"):
        processors.custom(random_logits(), text_row([1], processors=[good, bad]))


def test_processors_apply_in_order() -> None:
    """Biases first, so that penalties see them; the caller's own last."""
    logits_V = torch.zeros(VOCAB)
    row = text_row(
        [5, 6, 5, 6],
        2,
        logit_bias={5: 4.0, 6: -4.0},
        repetition_penalty=2.0,
        frequency_penalty=1.0,
        dry_multiplier=1.0,
        dry_allowed_length=1,
        processors=[lambda ids, x: x * 10],
    )
    out_V = processors.processed(logits_V, row)
    # (4 / 2 - 1 - 1.75 ** 1) * 10 for the token that goes on with "5 6", (-4 * 2 - 1) * 10.
    assert out_V[5] == pytest.approx((4 / 2 - 1 - 1.75) * 10) and out_V[6] == -90


def test_what_may_not_be_drawn_stays_so() -> None:
    """Whatever is added to minus infinity, and whatever a caller puts in its place."""
    logits_V = random_logits()
    gone = random.sample(range(VOCAB), 10)
    logits_V[gone] = OUT
    row = text_row(
        [*range(VOCAB)] * 2,
        VOCAB,
        logit_bias=dict.fromkeys(range(VOCAB), 100.0),
        repetition_penalty=0.5,
        presence_penalty=-2.0,
        dry_multiplier=1.0,
        dry_allowed_length=1,
        processors=[lambda ids, x: torch.zeros_like(x)],
    )
    out_V = processors.processed(logits_V, row)
    assert {int(i) for i in (out_V == OUT).nonzero()} == {*gone}
    assert processors.processed(logits_V, text_row([1])) is logits_V
