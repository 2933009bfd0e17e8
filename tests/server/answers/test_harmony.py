"""Answers that are messages, gpt-oss's form: read piece by piece, held to grammars, planned."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.engine.grammar.base import GrammarState
from halfbyte.engine.grammar.compiler import GrammarCompiler
from halfbyte.engine.grammar.limit import LimitedGrammar, ReasoningLimit
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.loaders import open_checkpoint
from halfbyte.server.answers.call_grammar import ANY_OBJECT, call_grammar
from halfbyte.server.answers.harmony import (
    END,
    MARKERS,
    SAID,
    THOUGHT,
    HarmonyParser,
    opened_message,
    thought_tokens,
)
from halfbyte.server.answers.parser import AnswerSyntax
from halfbyte.server.answers.pieces import AnswerPiece, CallArguments, ContentPiece, WholeAnswer

TINY = Path(__file__).parents[2] / "fixtures" / "gguf-q4_k-q6_k-qwen3" / "model.gguf"
PAD, PAD_TEXT = 2, "<|pad|>"
NEXT = "<|end|><|start|>assistant"
THINK = f"{THOUGHT}so it is{NEXT}"
HEADS = (
    "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.{} code<|message|>",
    "<|channel|>commentary to=functions.{}<|message|>",
    " to=functions.{}<|channel|>commentary json<|message|>",
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
GOOD, BAD = '{"city": "Rome"}', '{"city": "Oslo"}'


def call(arguments: str, name: str = "f") -> str:
    return random.choice(HEADS).format(name) + arguments


def read(parts: list[str], opened: str = "", names: tuple[str, ...] = ("f", "g")) -> WholeAnswer:
    ids = itertools.count()
    parser = HarmonyParser(opened, names, lambda: f"id{next(ids)}")
    pieces: list[AnswerPiece] = []
    for part in parts:
        pieces += parser.feed(part)
    return WholeAnswer.of([*pieces, *parser.finish()])


def brief(answer: WholeAnswer) -> tuple[str, str, list[tuple[str, str]]]:
    return answer.content, answer.reasoning, [(c.name, c.arguments) for c in answer.calls]


READ: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (f"{THINK}{SAID}Hello <b>.<|return|>", "Hello <b>.", "so it is", []),
    (f"{SAID} Hello \n", " Hello \n", "", []),
    (f"{THINK}{HEADS[0].format('f')}{GOOD}<|call|>", "", "so it is", [("f", GOOD)]),
    (f"{HEADS[1].format('f')}{GOOD}", "", "", [("f", GOOD)]),
    (
        f"{HEADS[3].format('g')}{{}}{NEXT}{HEADS[2].format('f')} {GOOD}\n<|call|>",
        "",
        "",
        [("g", "{}"), ("f", GOOD)],
    ),
    # A preamble is content, and what comes later is a part of its own.
    (
        f"{THINK}<|channel|>commentary<|message|>I look.{NEXT}{HEADS[0].format('f')}{GOOD}",
        "I look.",
        "so it is",
        [("f", GOOD)],
    ),
    (f"<|channel|>commentary<|message|>One.\n{NEXT}{SAID}Two.", "One.\n\nTwo.", "", []),
    (f"{THINK}{THOUGHT}again{NEXT}{SAID}Hi", "Hi", "so it is\n\nagain", []),
    # Markers in a text of the arguments; arguments that are no object, or none.
    (f'{HEADS[0].format("f")}{{"a": "<|end|> }}"}}<|call|>', "", "", [("f", '{"a": "<|end|> }"}')]),
    (f"{HEADS[0].format('f')}[1, 2]<|call|>", "", "", [("f", "[1, 2]")]),
    (f"{HEADS[0].format('f')}<|call|>", "", "", [("f", "{}")]),
    # Other recipients, among them functions that are not asked for by the full name.
    ("<|channel|>commentary to=f<|message|>{}", "", "", [("f", "{}")]),
    ("<|channel|>commentary to=functions.h<|message|>{}", "", "", [("h", "{}")]),
    ("<|channel|>analysis to=python code<|message|>1 + 1<|call|>", "", "1 + 1", []),
    ("<|start|>functions.f to=assistant<|channel|>commentary<|message|>3<|end|>", "3", "", []),
    # Messages that are not ended, or have no header.
    (f"{THOUGHT}so<|channel|>final<|message|>Hi", "Hi", "so", []),
    ("<|message|>Hi<|end|>", "Hi", "", []),
    ("Hello, to=you", "Hello, to=you", "", []),
    ("to=nobody", "to=nobody", "", []),
    ("to be<|end|>", "to be", "", []),
    # Cut off.
    (f"{THOUGHT}so", "", "so", []),
    (f"{THINK}<|channel|>fin", "", "so it is", []),
    (f"{SAID}a <|", "a <|", "", []),
    (f'{HEADS[0].format("f")}{{"city": "Ro', "", "", [("f", '{"city": "Ro')]),
]


@pytest.mark.parametrize(("text", "content", "reasoning", "calls"), READ)
def test_messages_come_apart(
    text: str, content: str, reasoning: str, calls: list[tuple[str, str]]
) -> None:
    assert brief(read([text])) == (content, reasoning, calls)
    assert brief(read([*text])) == (content, reasoning, calls)


def test_however_messages_are_cut_the_pieces_joined_are_the_same() -> None:
    bits = [
        *MARKERS,
        "assistant",
        "analysis",
        "final",
        "commentary",
        " to=functions.f",
        "to=",
        "json",
    ]
    bits += [
        GOOD,
        GOOD[:9],
        "{",
        "}",
        '"',
        "\\",
        " ",
        "\n",
        "a",
        "é",
        "<",
        "<|",
        SAID,
        THOUGHT,
        NEXT,
    ]
    for _ in range(1000):
        text = "".join(random.choice(bits) for _ in range(random.randint(1, 14)))
        if random.random() < 0.4:
            text = random.choice(READ)[0] + text
        opened = random.choice(["", END, SAID, THOUGHT])
        names = random.choice([(), ("f", "g")])
        cuts = sorted(random.sample(range(len(text) + 1), random.randint(0, min(len(text), 20))))
        if random.random() < 0.3:
            cuts = list(range(len(text)))
        parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        assert read(parts, opened, names) == read([text], opened, names), (opened, parts)


def test_what_is_certain_is_shown_at_once() -> None:
    parser = HarmonyParser("", ("f",), lambda: "id")
    assert parser.feed(SAID) == []
    for word in ("Sure", ", a<b", " is", " [fine]."):
        assert parser.feed(word) == [ContentPiece(word)]
    parser.feed(NEXT + HEADS[0].format("f"))
    shown = [parser.feed(part) for part in ('{"a": "', "b", '"}', "<|call|>")]
    assert shown == [
        [CallArguments(0, '{"a": "')],
        [CallArguments(0, "b")],
        [CallArguments(0, '"}')],
        [],
    ]


@pytest.mark.parametrize(
    ("tail", "opened"),
    [
        ("<|message|>hi<|end|><|start|>assistant", ""),
        ("hi<|end|>", END),
        ("assistant<|channel|>final<|message|>The answer", SAID),
        ("assistant<|channel|>analysis<|message|>We", THOUGHT),
        ("far into a long text", SAID),
        ("<|message|>hi<|end|><|start|>assistant<|channel|>final", "<|channel|>final"),
    ],
)
def test_the_prompt_says_where_the_answer_begins(tail: str, opened: str) -> None:
    assert opened_message(tail) == opened
    rest = {"<|channel|>final": "<|message|>x", SAID: "x", THOUGHT: NEXT + SAID + "x"}
    assert read([rest.get(opened, SAID + "x")], opened).content == "x"


def test_tokens_of_reasoning_are_counted() -> None:
    pieces = [b"<|channel|>", b"analysis", b"<|message|>", b"s", b"o", b"<|end|>"]
    head = [b"<|start|>", b"assistant"]
    final = [b"<|channel|>", b"final", b"<|message|>", b"Hi"]
    assert thought_tokens("", [*pieces, *head, *final]) == len(pieces)
    assert thought_tokens("", [*pieces, *head, *pieces, *head, *final]) == 2 * len(pieces) + 2
    assert thought_tokens("", final) == 0
    assert thought_tokens(THOUGHT, [b"s", b"o", b"<|end|>", *head, *final]) == 3
    assert thought_tokens(THOUGHT, [b"s", b"o"]) == 2


@cache
def tiny() -> tuple[Tokenizer, GrammarCompiler]:
    checkpoint = open_checkpoint(TINY)
    rows = checkpoint.config.vocab_size
    tokenizer = Tokenizer.from_source(checkpoint.tokenizer(), rows)
    return tokenizer, GrammarCompiler(tokenizer, rows, tokenizer.eos_ids)


def start(opened: str = "", functions: Any = None, **how: Any) -> GrammarState:
    how = {"must": True, "parallel": True, "thinks": True, **how}
    functions = {"f": SCHEMA, "g": ANY_OBJECT} if functions is None else functions
    syntax = AnswerSyntax(names=tuple(functions), opened=opened)

    # One marker is a special token, as all are of gpt-oss, and the others are text.
    def special(text: str) -> int | None:
        return PAD if text == END else None

    spec = call_grammar(syntax, functions, special=special, param="tools", **how)
    return tiny()[1].compile(spec).start()


def taken(state: GrammarState, text: str) -> bool | None:
    """Whether a text may come out: None where it may, but may not end there."""
    tokenizer, state = tiny()[0], state.fork()
    ids = tokenizer.encode(text.replace(END, PAD_TEXT), add_bos=False)
    if not all(state.accept(token) for token in ids):
        return False
    words, end = state.mask().view(np.uint32), min(tokenizer.eos_ids)
    return True if words[end // 32] >> np.uint32(end % 32) & 1 else None


def test_a_required_call_is_of_its_schema() -> None:
    for parallel in (True, False):
        state = start(parallel=parallel)
        for head in HEADS:
            assert taken(state, head.format("f") + GOOD) is True
            assert taken(state, THINK + head.format("f") + GOOD) is True
            assert taken(state, head.format("f") + BAD) is False
            assert taken(state, head.format("h") + GOOD) is False
            assert taken(state, head.format("g") + '{"x": [1]}') is True
        assert taken(state, call(GOOD) + NEXT + call(GOOD)) is parallel
        assert taken(state, call(GOOD) + NEXT + call(BAD)) is False
        assert taken(state, f"{SAID}Hi") is False and taken(state, "Hi") is False
        assert taken(state, THINK) is None and taken(state, THINK + THINK) is False
    assert taken(start(THOUGHT), f"so{NEXT}{call(GOOD)}") is True
    assert taken(start(THOUGHT), call(GOOD)) is None
    assert taken(start(SAID), NEXT + call(GOOD)) is True
    assert taken(start(END), "<|start|>assistant" + call(GOOD)) is True


def test_text_is_free_beside_calls_of_their_schemas() -> None:
    look = "<|channel|>commentary<|message|>I look."
    for parallel in (True, False):
        state = start(must=False, parallel=parallel)
        for before in ("", THINK, look + NEXT, THINK + look + NEXT + THINK):
            assert taken(state, before + call(GOOD)) is True
            assert taken(state, before + call(BAD)) is False
            assert taken(state, f"{before}{SAID}a < b {BAD}") is True
        assert taken(state, call(GOOD) + NEXT + call(GOOD)) is parallel
        assert taken(state, call(GOOD) + NEXT + SAID + "Hi") is parallel
    assert taken(start(SAID, must=False), "Hi there.") is True
    assert taken(start(SAID, must=False), f"Hi{NEXT}{call(BAD)}") is False


def test_limited_reasoning_comes_first_only() -> None:
    for functions in ({}, None):
        state = start(must=False, limited=True, functions=functions)
        assert taken(state, f"{THINK}{SAID}Hi") is True and taken(state, f"{SAID}Hi") is True
        assert taken(state, THINK + THINK) is False
        assert taken(state, f"<|channel|>commentary<|message|>x{NEXT}{THINK}") is False
        assert taken(state, call(GOOD)) is (functions is None)


def test_reasoning_that_is_cut_off_goes_on_with_a_call() -> None:
    tokenizer = tiny()[0]

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text.replace(END, PAD_TEXT), add_bos=False)

    closing, most = ids(NEXT), random.randint(0, 6)
    end = PAD_TEXT.encode()
    limit = ReasoningLimit(most, THOUGHT.encode(), end, tuple(closing))
    spec_state = start(limited=True)
    grammar = LimitedGrammar(limit, tokenizer.token_bytes, 8 * 4096, _Started(spec_state))
    state = grammar.start()
    assert all(state.accept(token) for token in [*ids(THOUGHT), *ids("a") * most])
    assert not state.accept(ids("x")[0]) and state.forced() == closing
    assert all(state.accept(token) for token in [*closing, *ids(call(GOOD))])
    assert not state.fork().accept(ids("x")[0])


@dataclass
class _Started:
    """A grammar of which a state is known."""

    state: GrammarState

    def start(self) -> GrammarState:
        return self.state.fork()


def test_what_the_grammar_lets_out_is_read_as_the_same_calls() -> None:
    text = THINK + NEXT.join([call(GOOD), call('{"x": "}"}', "g")])
    assert taken(start(), text) is True
    answer = brief(read([*text]))
    assert answer == ("", "so it is", [("f", GOOD), ("g", '{"x": "}"}')])
    json.loads(answer[2][1][1])
