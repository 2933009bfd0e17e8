"""Sampler: tokens that a grammar forces follow the one that was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sampling_rows import text_row

from halfbyte.engine.backends import make_backend
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.request import Sampled
from halfbyte.engine.run.draw_state import DrawState
from halfbyte.engine.run.sampler import NOTHING_LEFT, Sampler
from halfbyte.errors import GrammarError

VOCAB = 64


class Line:
    """A grammar of one text of tokens; where it has several ways on, the first is drawn.

    Args:
        text: for each place the tokens that may stand there.
        fails: where ``mask``, ``accept`` or ``forced`` raises.
    """

    def __init__(self, text: Sequence[set[int]], fails: str = "") -> None:
        self.text, self.fails, self.at = text, fails, 0

    @property
    def ended(self) -> bool:
        return self.at >= len(self.text)

    def mask(self) -> NDArray[np.int32]:
        self._may_fail("mask")
        bits = np.zeros(VOCAB, np.uint8)
        bits[list(self.text[self.at] if not self.ended else {2})] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token: int) -> bool:
        self._may_fail("accept")
        assert token in self.text[self.at], f"{token} at {self.at}"
        self.at += 1
        return True

    def forced(self) -> list[int]:
        self._may_fail("forced")
        out = []
        for one in self.text[self.at :]:
            if len(one) > 1:
                break
            out += one
        return out

    def _may_fail(self, place: str) -> None:
        if self.fails == place:
            raise GrammarError(f"{place} takes too long")


TEXT = [{5, 6}, {7}, {8}, {9, 10}, {11}]


def sampler() -> Sampler:
    drawer = make_backend(EngineConfig(backend="reference")).drawer
    return Sampler(VOCAB, drawer, end_tokens=(2,))


def state(text: Sequence[set[int]] = TEXT, fails: str = "", **more: Any) -> DrawState:
    return DrawState(grammar=Line(text, fails), **more)  # type: ignore[arg-type]


def ids(drawn: Sequence[Sampled] | str) -> list[int]:
    assert not isinstance(drawn, str), drawn
    assert all(sampled == Sampled(sampled.token) for sampled in drawn)
    return [sampled.token for sampled in drawn]


def test_a_text_is_drawn_in_as_few_steps_as_it_has_choices() -> None:
    draw = state()
    text, steps = [1], []
    while len(text) < 6:
        (drawn,) = sampler()(torch.randn(1, VOCAB), [text_row(text, 1, draw)])
        steps.append(ids(drawn))
        text += steps[-1]
    assert [len(step) for step in steps] == [3, 2]
    assert steps[0][1:] == [7, 8] and steps[1][1:] == [11]
    assert steps[0][0] in (5, 6) and steps[1][0] in (9, 10) and draw.followed == 5


def test_no_more_are_forced_than_have_room() -> None:
    text = [{5}] * 9
    for room in range(1, 12):
        draw = state(text)
        (drawn,) = sampler()(torch.zeros(1, VOCAB), [text_row([1], 1, draw, room=room)])
        assert ids(drawn) == [5] * min(room, 9) and draw.followed == min(room, 9)


def test_where_log_probabilities_are_wanted_each_token_is_drawn() -> None:
    for more in ({"logprobs": 1}, {"n": 1, "best_of": 2}):
        row = text_row([1], 1, state(rated=True), **more)
        (drawn,) = sampler()(torch.zeros(1, VOCAB), [row])
        assert len(drawn) == 1 and isinstance(drawn[0], Sampled)
        assert drawn[0].token in (5, 6) and drawn[0].logprob is not None


def some(*tokens: int) -> torch.Tensor:
    forbidden = torch.zeros(VOCAB, dtype=torch.bool)
    forbidden[list(tokens)] = True
    return forbidden


FORBIDDING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a list of ids": ({"forbidden": some(8)}, {}),
    "a bad word": ({"bad_words": ((7, 8),)}, {}),
    "a processor": (
        {},
        {"processors": [lambda ids, x: x.index_fill(0, torch.tensor(8), -torch.inf)]},
    ),
}


@pytest.mark.parametrize("name", FORBIDDING)
def test_what_is_forbidden_is_not_forced(name: str) -> None:
    """It would be wrong in silence: the grammar and the rest leave nothing together."""
    carried, params = FORBIDDING[name]
    draw = state([{5}, {7}, {8}], **carried)
    text = [1]
    for want in (5, 7):
        (drawn,) = sampler()(torch.zeros(1, VOCAB), [text_row(text, 1, draw, **params)])
        assert ids(drawn) == [want]
        text.append(want)
    assert sampler()(torch.zeros(1, VOCAB), [text_row(text, 1, draw, **params)]) == [NOTHING_LEFT]


def test_stop_tokens_are_held_back_before_they_are_forced() -> None:
    """Where another way of writing the same is left, it is taken."""
    draw = state([{5}, {7, 8}, {9}])
    params: dict[str, Any] = {"min_tokens": 3, "stop_token_ids": [7]}
    text = [1]
    for want in ([5], [8], [9]):
        (drawn,) = sampler()(torch.zeros(1, VOCAB), [text_row(text, 1, draw, **params)])
        assert ids(drawn) == want
        text += want


@pytest.mark.parametrize("place", ["mask", "accept", "forced"])
def test_a_grammar_that_fails_is_the_fault_of_its_row_alone(place: str) -> None:
    logits = torch.randn(3, VOCAB)
    rows = [text_row([1], 1, state(fails=f), seed=i) for i, f in enumerate(("", place, ""))]
    fresh = [replace(row, draw=state()) for row in rows]
    want = sampler()(logits.clone(), fresh)
    got = sampler()(logits.clone(), rows)
    assert got[1] == f"{place} takes too long" and [got[0], got[2]] == [want[0], want[2]]


def test_nothing_is_forced_behind_the_end() -> None:
    draw = state([{5}])
    assert ids(sampler()(torch.zeros(1, VOCAB), [text_row([1], 1, draw)])[0]) == [5]
    assert ids(sampler()(torch.zeros(1, VOCAB), [text_row([1, 5], 1, draw)])[0]) == [2]
