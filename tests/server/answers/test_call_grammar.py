"""Grammars of tool calls: what may come out, with a real tokenizer."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.engine.grammar.base import GrammarState
from halfbyte.engine.grammar.compiler import GrammarCompiler
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.errors import RequestError
from halfbyte.loaders import open_checkpoint
from halfbyte.server.answers.call_grammar import ANY_OBJECT, call_grammar
from halfbyte.server.answers.formats import CALL_FORMATS, REASONING_FORMATS, CallFormat
from halfbyte.server.answers.parser import AnswerParser, AnswerSyntax
from halfbyte.server.answers.pieces import WholeAnswer

TINY = Path(__file__).parents[2] / "fixtures" / "gguf-q4_k-q6_k-qwen3" / "model.gguf"
# gpt-oss has no markers around calls: test_harmony.py.
MARKED = [row for row in CALL_FORMATS if row.begin]
THINK = next(row for row in REASONING_FORMATS if row.begin == "<think>")
PAD, PAD_TEXT = 2, "<|pad|>"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
GOOD, BAD = '{"city": "Rome"}', '{"city": "Oslo"}'


@cache
def tiny() -> tuple[Tokenizer, GrammarCompiler]:
    checkpoint = open_checkpoint(TINY)
    rows = checkpoint.config.vocab_size
    tokenizer = Tokenizer.from_source(checkpoint.tokenizer(), rows)
    return tokenizer, GrammarCompiler(tokenizer, rows, tokenizer.eos_ids)


def start(form: CallFormat, special: Callable[[str], int | None], **how: Any) -> GrammarState:
    how = {"must": True, "parallel": True, "thinks": False, **how}
    syntax = AnswerSyntax(form, ("f", "g"), THINK, how.pop("begun", False))
    functions = {"f": SCHEMA, "g": ANY_OBJECT}
    spec = call_grammar(syntax, functions, special=special, param="tools", **how)
    return tiny()[1].compile(spec).start()


def taken(state: GrammarState, text: str) -> bool | None:
    """Whether a text may come out: None where it may, but may not end there."""
    tokenizer, state = tiny()[0], state.fork()
    if not all(state.accept(token) for token in tokenizer.encode(text, add_bos=False)):
        return False
    words, end = state.mask().view(np.uint32), min(tokenizer.eos_ids)
    return True if words[end // 32] >> np.uint32(end % 32) & 1 else None


def bare_value(value: Any, quote: str) -> str:
    """A value in Gemma's form."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{bare_value(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(bare_value(v, quote) for v in value) + "]"
    return quote + value + quote if isinstance(value, str) else json.dumps(value)


def one(form: CallFormat, arguments: str, name: str = "f") -> str:
    if form.headed:
        return f"{name}[ARGS]{arguments}"
    if (tags := form.tags) is not None:
        given = json.loads(arguments).items()
        bare = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in given]
        gap = random.choice(["", "\n"]) if tags.loose else "\n"
        pad = "\n" if tags.padded else ""
        inner = "".join(
            f"{tags.key}{k}{gap.join(tags.value)}{pad}{v}{pad}{tags.value_end}{gap}"
            for k, v in bare
        )
        return f"{tags.begin}{name}{tags.named}{gap}{inner}{tags.end}"
    if form.quote:
        return f"call:{name}{bare_value(json.loads(arguments), form.quote)}"
    return f'{{"name": "{name}", "{form.arguments}": {arguments}}}'


def framed(form: CallFormat, begin: str, *calls: str) -> str:
    between = form.between or ""
    if form.again:
        between = form.closing + form.end + between + begin + form.opening
    return begin + form.opening + between.join(calls) + form.closing + form.end


@pytest.mark.parametrize("is_special", [False, True])
@pytest.mark.parametrize("form", MARKED, ids=lambda form: form.name)
def test_only_calls_that_the_schema_allows_come_out(form: CallFormat, is_special: bool) -> None:
    begin = PAD_TEXT if is_special else form.begin

    def special(text: str) -> int | None:
        return PAD if is_special and text == form.begin else None

    good = framed(form, begin, one(form, GOOD))
    bad = framed(form, begin, one(form, BAD))
    other = framed(form, begin, one(form, '{"x": 1}', "g"))
    unknown = framed(form, begin, one(form, GOOD, "h"))
    two = framed(form, begin, one(form, GOOD), one(form, GOOD))
    two_bad = framed(form, begin, one(form, GOOD), one(form, BAD))
    for must, parallel in itertools.product((True, False), repeat=2):
        state = start(form, special, must=must, parallel=parallel)
        assert taken(state, good) is True and taken(state, other) is True
        assert taken(state, bad) is False and taken(state, unknown) is False
        assert taken(state, "Hi.") is (not must)
        assert taken(state, "") is (None if must else True)
        several = parallel and form.between is not None
        assert taken(state, two) is several and taken(state, two_bad) is False
        if not form.leading:
            assert taken(state, "Hi. " + good) is (not must)
            assert taken(state, "Hi. " + bad) is False
            assert taken(state, f"Hi {form.begin} x") is False


@pytest.mark.parametrize("form", MARKED, ids=lambda form: form.name)
def test_reasoning_comes_before_calls(form: CallFormat) -> None:
    call = framed(form, form.begin, one(form, GOOD))
    state = start(form, lambda _: None, thinks=True)
    assert taken(state, f"<think>a < b</think>\n\n{call}") is True and taken(state, call) is True
    assert taken(state, "<think>a</think>Hi") is False
    begun = start(form, lambda _: None, begun=True)
    assert taken(begun, f"so\n</think>{call}") is True and taken(begun, call) is None
    assert taken(start(form, lambda _: None), f"<think>a</think>{call}") is False


@pytest.mark.parametrize("form", MARKED, ids=lambda form: form.name)
def test_what_the_grammar_lets_out_is_read_as_the_same_calls(form: CallFormat) -> None:
    text = framed(form, form.begin, one(form, GOOD), one(form, GOOD))
    # What may follow calls is text, whatever it looks like: it is not bound by the schema.
    after = f", {one(form, BAD)}" if not form.leading else ""
    if after:
        assert taken(start(form, lambda _: None, must=False), text + after) is True
    parser = AnswerParser(AnswerSyntax(form, ("f",)), lambda: "id")
    answer = WholeAnswer.of([*parser.feed(text + after), *parser.finish()])
    assert [call.arguments for call in answer.calls] == [GOOD, GOOD]


def test_odd_names_stay_within_their_place() -> None:
    odd = "a.b:c/d-e_9"
    for form in MARKED:
        spec = call_grammar(
            AnswerSyntax(form, (odd,)),
            {odd: SCHEMA},
            must=True,
            parallel=False,
            thinks=False,
            special=lambda _: None,
            param="tools",
        )
        state = tiny()[1].compile(spec).start()
        assert taken(state, framed(form, form.begin, one(form, GOOD, odd))) is True


TAGGED = [form for form in MARKED if form.tags is not None]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
        "mode": {"enum": ["a", "b"]},
        "note": {"type": ["string", "null"]},
    },
    "required": ["name", "age"],
    "$defs": {"tag": {"enum": ["x", "y"]}},
}


def tagged_state(form: CallFormat, schema: dict[str, Any]) -> GrammarState:
    spec = call_grammar(
        AnswerSyntax(form, ("f",)),
        {"f": schema},
        must=True,
        parallel=False,
        thinks=False,
        special=lambda _: None,
        param="tools.0.function.parameters",
    )
    return tiny()[1].compile(spec).start()


@pytest.mark.parametrize("form", TAGGED, ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"name": "Ann", "age": 5}, True),
        ({"name": "two\nlines <b> </parameter </arg_value", "age": 5}, True),
        ({"name": "", "age": 0}, True),
        ({"name": "Ann", "age": 5, "tags": ["x", "y"], "mode": "b"}, True),
        ({"name": "Ann", "age": 5, "note": None}, True),
        ({"name": "Ann"}, False),
        ({"age": 5, "name": "Ann"}, False),
        ({"name": "Ann", "age": -1}, False),
        ({"name": "Ann", "age": "old"}, False),
        ({"name": "Ann", "age": 5, "tags": ["z"]}, False),
        ({"name": "Ann", "age": 5, "mode": "c"}, False),
        ({"name": "Ann", "age": 5, "other": 1}, False),
    ],
)
def test_bare_arguments_are_bound_by_their_schema(
    form: CallFormat, arguments: dict[str, Any], right: bool
) -> None:
    text = framed(form, form.begin, one(form, json.dumps(arguments)))
    assert taken(tagged_state(form, PERSON), text) is right
    if right:
        syntax = AnswerSyntax(form, ("f",), schemas={"f": PERSON})
        for cut in range(0, len(text), 7):
            parser = AnswerParser(syntax, lambda: "id")
            pieces = [*parser.feed(text[:cut]), *parser.feed(text[cut:]), *parser.finish()]
            (call,) = WholeAnswer.of(pieces).calls
            assert json.loads(call.arguments) == arguments


def test_a_bound_that_cannot_be_kept_is_refused() -> None:
    for bound in ({"minLength": 1}, {"pattern": "^a"}, {"format": "date"}, {"maxLength": 5}):
        schema = {"type": "object", "properties": {"name": {"type": "string", **bound}}}
        with pytest.raises(RequestError, match=next(iter(bound))) as caught:
            tagged_state(random.choice(TAGGED), schema)
        assert caught.value.param == "tools.0.function.parameters"


QUOTED = [form for form in MARKED if form.quote]
NESTED = {
    "type": "object",
    "properties": {
        "note": {"type": ["string", "null"]},
        "age": {"type": "integer", "minimum": 0},
        "home": {
            "type": "object",
            "properties": {"mode": {"enum": ["a", 2, None]}},
            "required": ["mode"],
        },
        "tags": {"type": "array", "items": {"type": "string"}},
        "any": {},
    },
    "required": ["age"],
}


@pytest.mark.parametrize("form", QUOTED, ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"age": 5}, True),
        ({"note": None, "age": 5}, True),
        ({"note": "two\nlines {a: [", "age": 5, "tags": []}, True),
        ({"age": 5, "home": {"mode": "a"}, "tags": ["x", ""], "any": {"k": [1, {}, "t"]}}, True),
        ({"age": 5, "home": {"mode": 2}}, True),
        ({"age": 5, "home": {"mode": "b"}}, False),
        ({"age": 5, "home": {}}, False),
        ({"age": -1}, False),
        ({"age": "5"}, False),
        ({"note": "x"}, False),
        ({"age": 5, "note": "x"}, False),
        ({"age": 5, "tags": [1]}, False),
        ({"age": 5, "other": 1}, False),
    ],
)
def test_marked_texts_and_bare_values_are_bound_by_their_schema(
    form: CallFormat, arguments: dict[str, Any], right: bool
) -> None:
    text = framed(form, form.begin, one(form, json.dumps(arguments)))
    assert taken(tagged_state(form, NESTED), text) is right
    parser = AnswerParser(AnswerSyntax(form, ("f",)), lambda: "id")
    pieces = [piece for char in text for piece in parser.feed(char)]
    (call,) = WholeAnswer.of([*pieces, *parser.finish()]).calls
    assert json.loads(call.arguments) == arguments


def test_what_cannot_be_kept_among_marks_is_refused() -> None:
    for bound in (
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1},
        {"anyOf": []},
    ):
        schema = {"type": "object", "properties": {"x": bound}}
        with pytest.raises(RequestError, match=list(bound)[-1]) as caught:
            tagged_state(random.choice(QUOTED), schema)
        assert caught.value.param == "tools.0.function.parameters"
    odd = {"type": "object", "properties": {"a:b": {"type": "string"}}}
    with pytest.raises(RequestError, match="a:b"):
        tagged_state(random.choice(QUOTED), odd)
