"""Draw states: what sampling is told of a request once, and what it carries from draw to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.run.draw_state import DrawState, DrawStates
from halfbyte.errors import RequestError

PIECES = [b"<s>", b"</s>"]
PIECES += [b"a", b" a", b"b", b"\n", b": ", b"\xc3", b"\xa9", b"ab", b"\xff", b"a\n"]
SPECIAL = frozenset({0, 1})
VALID = len(PIECES)


class Spelling:
    """A vocabulary of a few pieces, of which the longest fits first."""

    special_ids = SPECIAL
    vocab_size = VALID

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES[token_id]

    def encode(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        assert not add_bos and not parse_special
        data, out = text.encode(), []
        while data:
            fits = [i for i in range(2, VALID) if data.startswith(PIECES[i])]
            if not fits:
                return []
            out.append(max(fits, key=lambda i: len(PIECES[i])))
            data = data[len(PIECES[out[-1]]) :]
        return out


def make(**fields: Any) -> DrawState:
    states = DrawStates(Spelling(), VALID)  # type: ignore[arg-type]
    return states.make(SamplingParams(**fields))


def test_of_nothing_asked_nothing_is_carried() -> None:
    state = make()
    assert state.forbidden is None and state.grammar is None and not state.rated
    assert state.bad_words == () and state.breakers == frozenset() and state.followed == 0


@pytest.mark.parametrize("name", ["logit_bias", "allowed_token_ids", "stop_token_ids"])
def test_an_id_that_the_vocabulary_lacks_is_named(name: str) -> None:
    for token in (VALID, 1 << 30):
        value = {token: 1.0} if name == "logit_bias" else [2, token]
        with pytest.raises(RequestError, match=f"{name} .*{token}.* ends at {VALID - 1}") as caught:
            make(**{name: value})
        assert caught.value.param == name
    assert make(**{name: {VALID - 1: 1.0} if name == "logit_bias" else [VALID - 1]})


def test_what_is_not_allowed_is_forbidden() -> None:
    state = make(allowed_token_ids=[3, 5, 3])
    assert state.forbidden is not None and state.forbidden.dtype == torch.bool
    assert (~state.forbidden).nonzero().squeeze(-1).tolist() == [3, 5]


def test_a_bad_word_is_spelt_with_and_without_a_space() -> None:
    assert set(make(bad_words=["a"]).bad_words) == {(2,), (3,)}
    assert set(make(bad_words=[" a"]).bad_words) == {(3,)}
    assert set(make(bad_words=["ab"]).bad_words) >= {(9,)}
    assert (4, 6) in make(bad_words=["b: "]).bad_words
    with pytest.raises(RequestError, match="bad_words holds 'x', which has no token") as caught:
        make(bad_words=["a", "x"])
    assert caught.value.param == "bad_words"


@pytest.mark.parametrize(
    ("breakers", "found"),
    [
        (["\n"], {5, 11}),
        ([":", "\n"], {5, 6, 11}),
        (["a"], {2, 3, 9, 11}),
        # Its bytes are in two tokens: none of them has it.
        (["é"], set()),
        # Nothing is found over the border of two tokens.
        (["a a"], set()),
        # As it stands, not as a pattern.
        (["."], set()),
        ([], set()),
    ],
)
def test_breakers_are_tokens_with_the_text_and_special_ones(
    breakers: Sequence[str], found: set[int]
) -> None:
    state = make(dry_multiplier=1.0, dry_sequence_breakers=breakers)
    assert state.breakers == found | SPECIAL
    assert make(dry_sequence_breakers=breakers).breakers == frozenset(), "DRY is off"


def test_breakers_of_many_requests_are_their_own() -> None:
    """However many sets are remembered."""
    states = DrawStates(Spelling(), VALID)  # type: ignore[arg-type]
    for _ in range(2):
        for number in range(20):
            text = "ab:\n"[number % 4] + "ab:\n"[number // 4 % 4]
            params = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=[text])
            want = {i for i in range(2, VALID) if text.encode() in PIECES[i]}
            assert states.make(params).breakers == want | SPECIAL


@pytest.mark.parametrize(
    ("fields", "rated"),
    [
        ({}, False),
        ({"logprobs": 0}, True),
        ({"n": 3}, False),
        ({"n": 3, "best_of": 3}, False),
        ({"n": 2, "best_of": 3}, True),
        ({"prompt_logprobs": 1}, False),
    ],
)
def test_who_needs_log_probabilities(fields: dict[str, Any], rated: bool) -> None:
    assert make(**fields).rated is rated


def test_mirostat_follows_the_surprise() -> None:
    """The error of each drawn token counts once, with the next."""
    params = SamplingParams(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.25)
    state = make(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.25)
    assert state.mu == 6.0
    state.follow([5], params)
    assert state.mu == 6.0, "nobody has drawn yet"
    for surprise in (5.0, 1.0):
        state.surprise, before = surprise, state.mu
        state.follow([5], params)
        assert state.mu == before - 0.25 * (surprise - 3.0) and state.surprise is None
    assert state.followed == 3


class Noting:
    """A grammar that notes what it accepts, and ends with token 1."""

    def __init__(self) -> None:
        self.told: list[int] = []

    @property
    def ended(self) -> bool:
        return 1 in self.told

    def accept(self, token: int) -> bool:
        self.told.append(token)
        return True


class Starting:
    """A compiled grammar."""

    def start(self) -> Any:
        return Noting()


def test_a_grammar_hears_of_each_token_until_it_has_ended() -> None:
    states = DrawStates(Spelling(), VALID)  # type: ignore[arg-type]
    params = SamplingParams()
    state = states.make(params, Starting())  # type: ignore[arg-type]
    state.follow([4, 5], params)
    state.follow([], params)
    state.follow([1, 7], params)
    assert isinstance(state.grammar, Noting)
    assert state.grammar.told == [4, 5, 1] and state.followed == 4


def test_another_choice_begins_anew() -> None:
    states = DrawStates(Spelling(), VALID)  # type: ignore[arg-type]
    params = SamplingParams(allowed_token_ids=[2], bad_words=["a"], mirostat=2)
    grammar: Any = Starting()
    state = states.make(params, grammar)
    other = state.again(grammar)
    assert other.forbidden is state.forbidden and other.bad_words == state.bad_words
    assert (other.mu, other.followed, other.rated) == (state.mu, 0, state.rated)
    state.follow([4], params)
    assert other.grammar is not state.grammar and other.followed == 0
    assert state.again(None).grammar is None
