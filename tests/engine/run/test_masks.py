"""Masks: what may not be drawn at all, and what is held back until nothing else is left."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sampling_rows import OUT, fresh_rng, kept, text_row

from halfbyte.engine.run.draw_state import DrawState
from halfbyte.engine.run.masks import make_mask
from halfbyte.engine.run.sampling import RowSampling

VOCAB, VALID, END = 80, 70, 2


class Allowing:
    """A grammar that allows some tokens; it notes what it was told."""

    ended = False

    def __init__(self, allowed: Collection[int]) -> None:
        self.allowed = allowed
        self.told: list[int] = []

    def mask(self) -> NDArray[np.int32]:
        bits = np.zeros(96, np.uint8)
        bits[list(self.allowed)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token: int) -> bool:
        self.told.append(token)
        return True


def left(row: RowSampling, **more: Any) -> set[int]:
    """The ids that may be drawn from equal logits."""
    logits_V = torch.zeros(VALID)
    mask = make_mask(row, VALID, more.get("ends", (END,)))
    if mask is not None:
        mask.apply(logits_V)
    return kept(logits_V)


EVERY = {*range(VALID)}


def test_a_row_that_asks_for_nothing_has_no_mask() -> None:
    assert make_mask(text_row([1, 5]), VALID, (END,)) is None
    assert make_mask(text_row([1, 5, 6], 1, min_tokens=2), VALID, (END,)) is None
    row = text_row([1, 5], draw=DrawState(bad_words=((5, 6, 7), (4, 9))))
    assert make_mask(row, VALID, (END,)) is None


def test_only_allowed_ids_are_left() -> None:
    forbidden = torch.ones(VALID, dtype=torch.bool)
    forbidden[[4, 9, 60]] = False
    assert left(text_row([1], draw=DrawState(forbidden=forbidden))) == {4, 9, 60}


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ([1], {8}),
        ([1, 5], {8, 6}),
        ([5, 6], {8, 7}),
        ([5, 9, 6], {8}),
        ([6], {8}),
        ([5, 5, 6], {8, 7}),
        # Longer than the text so far.
        ([5], {8, 6}),
    ],
)
def test_the_last_token_of_a_bad_word_is_not_drawn(text: list[int], gone: set[int]) -> None:
    """Where those before it end the text, prompt or answer; (5, 6) is one, and (5, 6, 7)."""
    draw = DrawState(bad_words=((8,), (5, 6), (5, 6, 7), (70,), (5, 75)))
    for prompt in range(1, len(text) + 1):
        assert left(text_row(text, prompt, draw)) == EVERY - gone


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_what_would_end_the_text_is_held_back(ignore_eos: bool) -> None:
    for answered in range(5):
        row = text_row(
            [1] * (3 + answered), 3, min_tokens=3, stop_token_ids=[5, 75], ignore_eos=ignore_eos
        )
        held = {5} if ignore_eos else {5, END}
        assert left(row, ends=(END, 79)) == (EVERY - held if answered < 3 else EVERY)


def test_what_was_held_is_drawn_where_nothing_else_could_be() -> None:
    """Its logits come back as they were; what is forbidden does not."""
    forbidden = torch.ones(VALID, dtype=torch.bool)
    forbidden[[END, 5]] = False
    draw = DrawState(forbidden=forbidden)
    row = text_row([1], 1, draw, min_tokens=2, stop_token_ids=[5, 6])
    mask = make_mask(row, VALID, (END,))
    logits_V = torch.arange(VALID).float()
    assert mask is not None
    mask.apply(logits_V)
    assert kept(logits_V) == set()
    assert mask.release(logits_V)
    assert {i: float(logits_V[i]) for i in kept(logits_V)} == {END: 2.0, 5: 5.0}
    assert not mask.release(logits_V), "once"


def test_nothing_is_released_that_was_not_held() -> None:
    draw = DrawState(forbidden=torch.ones(VALID, dtype=torch.bool))
    mask = make_mask(text_row([1], draw=draw), VALID, (END,))
    logits_V = torch.zeros(VALID)
    assert mask is not None
    mask.apply(logits_V)
    assert not mask.release(logits_V) and kept(logits_V) == set()


def test_a_grammar_and_a_list_must_both_allow() -> None:
    rng = fresh_rng()
    for _ in range(20):
        grammar = Allowing(set(rng.sample(range(96), rng.randint(0, 60))))
        draw = DrawState(grammar=grammar)  # type: ignore[arg-type]
        assert left(text_row([1], draw=draw)) == {*grammar.allowed} & EVERY
        chosen = rng.sample(range(VALID), 30)
        draw.forbidden = torch.ones(VALID, dtype=torch.bool)
        draw.forbidden[chosen] = False
        draw.bad_words = ((chosen[0],),)
        row = text_row([1], draw=draw, min_tokens=1, stop_token_ids=[chosen[1]])
        want = {*grammar.allowed} & {*chosen[2:]} - {END}
        assert left(row) == want
        assert int(draw.forbidden.sum()) == VALID - 30, "the list is as before"


def test_a_grammar_is_told_what_it_has_not_seen() -> None:
    """The answer alone, each token once: also after a preemption, which draws none again."""
    grammar = Allowing({5})
    draw = DrawState(grammar=grammar)  # type: ignore[arg-type]
    for text, told in (
        ([1, 9], []),
        ([1, 9, 5], [5]),
        ([1, 9, 5], [5]),
        ([1, 9, 5, 6, 7], [5, 6, 7]),
    ):
        make_mask(text_row(text, 2, draw), VALID, (END,))
        assert grammar.told == told and draw.followed == len(told)


def test_logits_of_low_precision_and_of_views() -> None:
    """They are those of a step, cut at the tokenizer's last id; others' are not touched."""
    logits_SV = torch.zeros(2, VOCAB, dtype=torch.bfloat16)
    draw = DrawState(bad_words=((8,),))
    mask = make_mask(text_row([1], draw=draw, min_tokens=1), VALID, (END,))
    assert mask is not None
    view = logits_SV[:, :VALID]
    mask.apply(view[1])
    assert [(int(s), int(v)) for s, v in (logits_SV == OUT).nonzero()] == [(1, END), (1, 8)]
