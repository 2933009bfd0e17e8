"""States of texts: what their masks allow, what they accept, what is forced."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grammar_cases import (
    PADDING,
    VOCABULARIES,
    allowed,
    byte_level,
    compiler,
    end_of,
    start,
)

from halfbyte.engine.grammar import checker, state
from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.grammar.state import MatcherGrammar, MatcherState
from halfbyte.errors import GrammarError

SPECS = {
    "schema": GrammarSpec.json_schema(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 6},
                "age": {"type": "integer", "minimum": -9, "maximum": 120},
                "tags": {"type": "array", "items": {"enum": ["a", "bé", None]}, "maxItems": 2},
            },
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
    "regex": GrammarSpec.regex(r"(é|ü){2}[a-c]{0,4}(-[0-9]{2})?"),
    "choice": GrammarSpec.choice(["yes", "yes, but", "no", "für 日本"]),
    "lark": GrammarSpec.lark('start: "(" start? ")" | A\nA: /[a-c]+/'),
    "gbnf": GrammarSpec.gbnf('root ::= "[" root? "]" | [x-z]+'),
    "special": GrammarSpec.lark('start: <|call|> "f(" /[0-9]{1,3}/ ")"'),
}


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("kind", [kind for kind in SPECS if kind != "special"])
def test_every_token_is_accepted_exactly_when_the_mask_allows_it(kind: str, name: str) -> None:
    tokenizer, rows = VOCABULARIES[name]()
    text = start(SPECS[kind], name)
    for _ in range(12):
        tokens = allowed(text)
        assert tokens
        for token in range(rows):
            other = text.fork()
            assert other.accept(token) == (token in tokens), tokenizer.token_bytes(token)
            if token not in tokens:  # and then nothing has changed
                assert allowed(other) == tokens
        if tokens == {end_of(name)}:
            break
        assert text.accept(random.choice(sorted(tokens - {end_of(name)})))
    assert allowed(text)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_not_accepted(token: int) -> None:
    assert not start(SPECS["regex"]).accept(token)


def test_masks_have_a_bit_for_each_row() -> None:
    _, rows = byte_level()
    mask = start(SPECS["schema"]).mask()
    assert mask.dtype == np.int32 and mask.shape == (-(-rows // 32),)
    assert not allowed(start(SPECS["schema"])) & set(range(rows - PADDING, len(mask) * 32))


def test_a_mask_is_the_callers() -> None:
    text = start(SPECS["choice"])
    before = allowed(text)
    text.mask()[:] = 0
    assert allowed(text) == before


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_text_may_end_exactly_where_it_is_whole(name: str) -> None:
    words = ["yes", "yes, but", "no"]
    for word in words:
        text, data = start(GrammarSpec.choice(words), name), word.encode()
        spelt = b""
        while spelt != data:
            assert (end_of(name) in allowed(text)) == (spelt.decode() in words)
            tokenizer = VOCABULARIES[name]()[0]
            fitting = [
                t
                for t in allowed(text) - {end_of(name)}
                if data.startswith(spelt + tokenizer.token_bytes(t))
            ]
            token = random.choice(fitting)
            assert text.accept(token)
            spelt += tokenizer.token_bytes(token)
        assert end_of(name) in allowed(text)
        assert text.ended == (word != "yes")
        assert text.accept(end_of(name))
        assert text.ended and allowed(text) == {end_of(name)}


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("kind", [kind for kind in SPECS if kind != "special"])
def test_what_is_forced_is_the_only_way_on(kind: str, name: str) -> None:
    end, met = end_of(name), 0
    for _ in range(6):
        text = start(SPECS[kind], name)
        for _ in range(40):
            before = allowed(text)
            ahead = text.forced()
            assert allowed(text) == before and text.forced() == ahead and end not in ahead
            met += len(ahead)
            for token in ahead:
                assert allowed(text) == {token} and text.accept(token)
            tokens = allowed(text)
            if end in tokens or text.ended:
                break
            assert text.accept(random.choice(sorted(tokens)))
    assert met or kind in ("lark", "gbnf", "regex")


def test_a_forced_text_is_cut_as_the_tokenizer_cuts_it() -> None:
    tokenizer, _ = byte_level()
    text = start(GrammarSpec.regex('"name": "Ada", [0-9]'))
    ahead = text.forced()
    whole = tokenizer.encode('"name": "Ada", ', parse_special=False)
    assert len(ahead) > 1 and ahead == whole[: len(ahead)]


def test_a_forced_text_is_found_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text, calls = start(GrammarSpec.regex('"name": "Ada", [0-9]')), 0
    timed = MatcherState._timed

    def counted(self: MatcherState, work: Any) -> Any:
        nonlocal calls
        calls += 1
        return timed(self, work)

    monkeypatch.setattr(MatcherState, "_timed", counted)
    ahead = text.forced()
    for left in range(len(ahead), 0, -1):
        assert text.forced() == ahead[-left:]
        assert text.accept(ahead[-left])
    assert calls == 1 + len(ahead)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_forks_are_independent(name: str) -> None:
    text = start(SPECS["schema"], name)
    for _ in range(30):
        other, before = text.fork(), allowed(text)
        walk(other, random.choice, random.randrange(20), name)
        assert allowed(text) == before
        kept = text.fork()
        tokens = sorted(before - {end_of(name)})
        if not tokens:
            break
        token = random.choice(tokens)
        assert text.accept(token) and allowed(kept) == before
        assert kept.accept(token) and allowed(kept) == allowed(text)
        assert kept.ended == text.ended and kept.forced() == text.forced()


def test_special_tokens_come_only_where_a_grammar_names_them() -> None:
    tokenizer, _ = byte_level()
    (call,) = tokenizer.special_ids - tokenizer.eos_ids
    for kind in SPECS:
        text = start(SPECS[kind])
        if kind == "special":
            assert text.forced()[0] == call and text.accept(call)
        assert call not in allowed(text)
    named = GrammarSpec.regex(r"<\|call\|>")
    assert call not in allowed(start(named))


def test_an_end_token_in_a_grammar_ends_nothing() -> None:
    with pytest.raises(GrammarError, match="dead end"):
        start(GrammarSpec.lark('start: <|end|> "a"')).mask()
    text = start(GrammarSpec.lark('start: "a" <|end|>'))
    with pytest.raises(GrammarError, match="dead end"):
        walk(text, random.choice, 2)


def renewing(spec: GrammarSpec, monkeypatch: pytest.MonkeyPatch, **limits: int) -> MatcherGrammar:
    """A grammar of its own, whose lexer comes to its limits early."""
    for name, value in limits.items():
        monkeypatch.setitem(state.LIMITS, name, value)
    compiled = compiler("byte-level").compile(spec)
    return MatcherGrammar(compiled._source, compiled._tokenizer, compiled.vocabulary)


def walk(
    text: MatcherState,
    choose: Callable[[list[int]], int],
    steps: int,
    name: str = "byte-level",
) -> None:
    for _ in range(steps):
        tokens = sorted(allowed(text) - {end_of(name)})
        if not tokens:
            return
        assert text.accept(choose(tokens))


def test_texts_of_one_grammar_do_not_use_up_each_others_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = GrammarSpec.regex("([a-z]{0,300}[0-9]){0,100}x")
    grammar = renewing(spec, monkeypatch, max_lexer_states=400)
    for _ in range(30):  # together far beyond
        walk(grammar.start(), random.choice, 30)
    assert allowed(grammar.start()) == allowed(start(spec))


def test_a_text_goes_on_where_it_was_with_a_new_lexer(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GrammarSpec.regex("([a-z]{0,300}[0-9]){0,100}x")
    grammar = renewing(spec, monkeypatch, max_lexer_states=400)
    one, plain = grammar.start(), start(spec)
    for _ in range(40):
        token = random.choice(sorted(allowed(plain) - {end_of()}))
        other = one.fork()
        assert one.accept(token) and plain.accept(token)
        walk(other, random.choice, 2)  # what a fork draws is no part of it
        walk(grammar.start(), random.choice, 60)  # and the others fill the lexer
        assert allowed(one) == allowed(plain)
    assert not one._renewable


def test_one_text_that_goes_too_far_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GrammarSpec.regex("([a-z]{0,300}[0-9]){0,100}x")
    grammar = renewing(spec, monkeypatch, max_lexer_states=300)
    other = grammar.start()
    with pytest.raises(GrammarError, match="too complex"):
        for _ in range(100):
            walk(grammar.start(), random.choice, 300)
    for _ in range(5):
        walk(other, random.choice, 1)
    assert allowed(grammar.start()) == allowed(start(spec))


def test_a_grammar_that_is_slow_to_compile_is_not_compiled_in_the_middle_of_a_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "_MAX_RENEWAL_SECONDS", -1.0)
    spec = GrammarSpec.regex("([a-z]{0,300}[0-9]){0,100}y")
    grammar = renewing(spec, monkeypatch, max_lexer_states=300)
    with pytest.raises(GrammarError, match="too complex: lexer error: too many states"):
        for _ in range(100):
            walk(grammar.start(), random.choice, 300)


def test_a_slow_step_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STEP_SECONDS", 0.0)
    with pytest.raises(GrammarError, match=r"a step took .* s of computing time; at most"):
        start(SPECS["schema"]).mask()
    assert checker.STEP_SECONDS > 0


def test_too_many_items_end_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each character adds readings of the text before it.
    spec = GrammarSpec.lark('start: start start | "a" | "b"')
    text = renewing(spec, monkeypatch, step_max_items=500).start()
    with pytest.raises(GrammarError, match=r"too complex here: .*[Ii]tems"):
        walk(text, random.choice, 3000)
