"""Answers read piece by piece: however their text is cut, the pieces are the same."""

from __future__ import annotations

import itertools
import json
import random
import time
from typing import Any

import pytest
from computing_time import computes_within

from halfbyte.server.answers.formats import CALL_FORMATS, REASONING_FORMATS
from halfbyte.server.answers.parser import MAX_UNCERTAIN, AnswerParser, AnswerSyntax
from halfbyte.server.answers.pieces import AnswerPiece, CallArguments, ContentPiece, WholeAnswer

# gpt-oss has no markers around calls: test_harmony.py.
MARKED = [row for row in CALL_FORMATS if row.begin]
FORMATS = {row.name: row for row in MARKED}
HERMES, LLAMA, MISTRAL = FORMATS["hermes"], FORMATS["llama3"], FORMATS["mistral"]
HEADED, GRANITE = FORMATS["mistral-headed"], FORMATS["granite"]
GEMMA, FUNCTION_GEMMA = FORMATS["gemma4"], FORMATS["functiongemma"]
XML, GLM = FORMATS["qwen3-coder"], FORMATS["glm"]
KINDS = {"a": {"type": "string"}, "b": {"type": "number"}, "c": {"type": "boolean"}}
THINK = next(row for row in REASONING_FORMATS if row.begin == "<think>")
CHANNEL = next(row for row in REASONING_FORMATS if row.begin == "<|channel>")
NAMES = ("f", "g")


def read(syntax: AnswerSyntax, parts: list[str]) -> list[list[AnswerPiece]]:
    """The pieces that each part brings, and those of the end."""
    ids = itertools.count()
    parser = AnswerParser(syntax, lambda: f"id{next(ids)}")
    return [*(parser.feed(part) for part in parts), parser.finish()]


def whole(syntax: AnswerSyntax, text: str) -> tuple[str, str, list[tuple[str, str]]]:
    answer = WholeAnswer.of(itertools.chain(*read(syntax, [text])))
    return answer.content, answer.reasoning, [(c.name, c.arguments) for c in answer.calls]


def of(form: Any, **more: Any) -> AnswerSyntax:
    return AnswerSyntax(form, NAMES, **{"schemas": {"f": {"properties": KINDS}}, **more})


# An argument of each kind, with blanks as the model writes them.
TAGS = (
    "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n"
    "<parameter=c>\nTrue\n</parameter>\n</function>\n</tool_call>"
)
PAIRS = (
    "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n"
    "<arg_value>2</arg_value>\n<arg_key>c</arg_key>\n<arg_value>True</arg_value>\n</tool_call>"
)
CALL = '{"name": "f", "arguments": {"a": [1, "}"]}}'
ARGUMENTS = '{"a": [1, "}"]}'
READ: list[tuple[AnswerSyntax, str, str, str, list[tuple[str, str]]]] = [
    (of(HERMES), "Hello", "Hello", "", []),
    (of(HERMES), " Hello \n", " Hello \n", "", []),
    (of(HERMES), f"<tool_call>\n{CALL}\n</tool_call>", "", "", [("f", ARGUMENTS)]),
    (of(HERMES), f"Well.\n<tool_call>\n{CALL}\n</tool_call>\n", "Well.", "", [("f", ARGUMENTS)]),
    (
        of(HERMES),
        f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
        "",
        "",
        [("f", ARGUMENTS)] * 2,
    ),
    (of(HERMES), f"<tool_call>{CALL}\n{CALL}</tool_call> so", "so", "", [("f", ARGUMENTS)] * 2),
    (of(HERMES), f"a <tool_call>{CALL}</tool_call> b", "a  b", "", [("f", ARGUMENTS)]),
    # Other orders, other keys, no arguments, arguments as a text.
    (of(HERMES), '<tool_call>{"arguments": {"b": 1}, "name": "f"}', "", "", [("f", '{"b": 1}')]),
    (of(HERMES), '<tool_call>{"id": 3, "name": "f"}</tool_call>', "", "", [("f", "{}")]),
    (of(HERMES), '<tool_call>{"name":"f","parameters":{}}</tool_call>', "", "", [("f", "{}")]),
    (of(HERMES), '<tool_call>{"name":"f","arguments":null}', "", "", [("f", "{}")]),
    (
        of(HERMES),
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}</tool_call>',
        "",
        "",
        [("f", '{"a": "é"}')],
    ),
    # What is no call is text.
    (of(HERMES), "a < b <tool> <tool_call", "a < b <tool> <tool_call", "", []),
    (of(HERMES), "<tool_call>no</tool_call>", "<tool_call>no</tool_call>", "", []),
    (of(HERMES), '<tool_call>{"name": 3}', '<tool_call>{"name": 3}', "", []),
    (of(HERMES), '<tool_call>{"name": "f", x', '<tool_call>{"name": "f", x', "", []),
    (of(HERMES), '<tool_call>{"name": "f"', '<tool_call>{"name": "f"', "", []),
    (of(HERMES), "<tool_call></tool_call>", "<tool_call></tool_call>", "", []),
    (of(HERMES), f"<tool_call>no <tool_call>{CALL}", "<tool_call>no", "", [("f", ARGUMENTS)]),
    # Cut off.
    (of(HERMES), '<tool_call>{"name": "f", "arguments": {"a": "b', "", "", [("f", '{"a": "b')]),
    (of(HERMES), f"<tool_call>{CALL}</tool_c", "", "", [("f", ARGUMENTS)]),
    # Qwen3-Coder: tags, with bare values of the types that the schema has for them.
    (of(XML), f"Well.\n{TAGS}", "Well.", "", [("f", '{"a": "1", "b": 2, "c": true}')]),
    (of(XML, schemas={}), TAGS, "", "", [("f", '{"a": "1", "b": "2", "c": "True"}')]),
    (of(XML), f"{TAGS}\n{TAGS} so", "so", "", [("f", '{"a": "1", "b": 2, "c": true}')] * 2),
    (of(XML), "<tool_call><function=g></function></tool_call>", "", "", [("g", "{}")]),
    (
        of(XML),
        "<tool_call>\n<function=f>\n<parameter=a>\n\n x\n\n</parameter>\n</function>",
        "",
        "",
        [("f", '{"a": "\\n x\\n"}')],
    ),
    (of(XML), "<tool_call>\n<function=f", "<tool_call>\n<function=f", "", []),
    (of(XML), "<tool_call> no", "<tool_call> no", "", []),
    (of(XML), "<tool_call><function=f>\n<parameter=a>\n1", "", "", [("f", "")]),
    (of(XML), "<tool_call><function=f>\n oops", "oops", "", [("f", "{}")]),
    (of(XML), "<tool_call><function=f>\n< oops", "< oops", "", [("f", "{}")]),
    # GLM: the same with other tags, since 4.7 without newlines.
    (of(GLM), f"Well.\n{PAIRS}", "Well.", "", [("f", '{"a": "1", "b": 2, "c": true}')]),
    (
        of(GLM),
        PAIRS.replace("\n", "") + PAIRS.replace("\n", "") + " [so]",
        "[so]",
        "",
        [("f", '{"a": "1", "b": 2, "c": true}')] * 2,
    ),
    (of(GLM, schemas={}), PAIRS, "", "", [("f", '{"a": "1", "b": "2", "c": "True"}')]),
    (of(GLM), "<tool_call>g</tool_call>\n<tool_call>g\n</tool_call>", "", "", [("g", "{}")] * 2),
    (of(GLM), "<tool_call>h</tool_call>", "<tool_call>h</tool_call>", "", []),
    (
        of(GLM),
        "<tool_call>h\n<arg_key>x</arg_key>\n<arg_value>\n y </arg_value>\n</tool_call>",
        "",
        "",
        [("h", '{"x": "\\n y "}')],
    ),
    (of(GLM), "<tool_call>what is it", "<tool_call>what is it", "", []),
    (of(GLM), "<tool_call>f", "<tool_call>f", "", []),
    (
        of(GLM),
        "<tool_call>f\n<arg_key>a</arg_key> oops</arg_value>",
        "<arg_key>a</arg_key> oops</arg_value>",
        "",
        [("f", "{}")],
    ),
    # Gemma: texts between marks, all else bare.
    (
        of(GEMMA),
        'Ok.<|tool_call>call:f{a:<|"|>x "y"\n}<|"|>,b:[1,{c:True},null],d:{}}<tool_call|>.',
        "Ok..",
        "",
        [("f", '{"a": "x \\"y\\"\\n}", "b": [1, {"c": true}, null], "d": {}}')],
    ),
    (
        of(FUNCTION_GEMMA),
        "<start_function_call>call:f{<escape>a b<escape>: <escape><escape>, n: -1.5}"
        "<end_function_call><start_function_call>call:g{}<end_function_call>",
        "",
        "",
        [("f", '{"a b": "", "n": -1.5}'), ("g", "{}")],
    ),
    (of(GEMMA), "<|tool_call>call:f{a:b c}", "", "", [("f", '{"a": "b c"}')]),
    (of(GEMMA), '<|tool_call>call:f{a:<|"|>b<|"', "", "", [("f", '{"a": "b')]),
    (of(GEMMA), "<|tool_call>call:f{a:1]x", "]x", "", [("f", '{"a": 1')]),
    (of(GEMMA), "<|tool_call>f{}", "<|tool_call>f{}", "", []),
    (of(GEMMA, reasoning=CHANNEL), "<|channel>thought\nso<channel|>Hi", "Hi", "so", []),
    # Llama 3: calls at the beginning only, with or without a marker, of functions that there are.
    (of(LLAMA), '{"name": "f", "parameters": {"a": 1}}', "", "", [("f", '{"a": 1}')]),
    (of(LLAMA), '\n<|python_tag|>{"name": "g", "parameters": {}}', "", "", [("g", "{}")]),
    (
        of(LLAMA),
        '{"type": "function", "name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        "",
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    (of(LLAMA), '{"name": "h", "parameters": {}}', '{"name": "h", "parameters": {}}', "", []),
    (of(LLAMA), ' {"a": 1}', ' {"a": 1}', "", []),
    (of(LLAMA), "<|python_tag|>print(1)", "<|python_tag|>print(1)", "", []),
    (of(LLAMA), 'see {"name": "f"}', 'see {"name": "f"}', "", []),
    (of(MISTRAL), f"[TOOL_CALLS][{CALL}, {CALL}]", "", "", [("f", ARGUMENTS)] * 2),
    (of(MISTRAL), f"[TOOL_CALLS] [{CALL}] so", "so", "", [("f", ARGUMENTS)]),
    (of(MISTRAL), "[TOOL_CALLS][]", "[TOOL_CALLS][]", "", []),
    (of(GRANITE), f"<|tool_call|>[{CALL}]", "", "", [("f", ARGUMENTS)]),
    (of(HEADED), '[TOOL_CALLS]f[ARGS]{"a": 1}', "", "", [("f", '{"a": 1}')]),
    (
        of(HEADED),
        'Ok.[TOOL_CALLS]f[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        "Ok.",
        "",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
    (of(HEADED), "[TOOL_CALLS]f {}", "[TOOL_CALLS]f {}", "", []),
    # Reasoning.
    (of(None, reasoning=THINK), "<think>\nso\n</think>\n\nHello ", "Hello", "so", []),
    (of(None, reasoning=THINK), "\n<think>a b", "", "a b", []),
    (of(None, reasoning=THINK), "no <think> here", "no <think> here", "", []),
    (of(None, reasoning=THINK), "\n<thin", "\n<thin", "", []),
    (of(None, reasoning=THINK), "<think></think>x", "x", "", []),
    (of(None, reasoning=THINK, begun=True), "so</think>Hello", "Hello", "so", []),
    (of(None, reasoning=THINK, begun=True), "so </th", "", "so </th", []),
    (
        of(HERMES, reasoning=THINK),
        f"<think>a <tool_call> b</think>\n<tool_call>{CALL}</tool_call>",
        "",
        "a <tool_call> b",
        [("f", ARGUMENTS)],
    ),
    (
        of(LLAMA, reasoning=THINK),
        '<think>x</think>\n{"name": "f", "parameters": {}}',
        "",
        "x",
        [("f", "{}")],
    ),
]


@pytest.mark.parametrize(("syntax", "text", "content", "reasoning", "calls"), READ)
def test_answers_come_apart(
    syntax: AnswerSyntax, text: str, content: str, reasoning: str, calls: list[tuple[str, str]]
) -> None:
    assert whole(syntax, text) == (content, reasoning, calls)


def test_however_a_text_is_cut_the_pieces_joined_are_the_same() -> None:
    markers = [row.begin for row in MARKED] + ["</tool_call>", "<think>", "</think>"]
    bits = [*markers, CALL, CALL[:20], "[ARGS]", "f", "[", "]", "{", "}", '"', "\\", ",", ";", ":"]
    bits += [" ", "\n", "a", "é", "<", "null", '{"name"', '"parameters": {"x": "\\""}', "</tool"]
    bits += ['{"name": "f", "parameters": {"a": -1.5}}', '[TOOL_CALLS]f[ARGS]{"a": []}']
    bits += ["<function=f>", "<parameter=b>", "</parameter>", "</function>", "<arg_key>"]
    bits += ["</arg_key>", "<arg_value>", "</arg_value>"]
    bits += ["call:f{", '<|"|>', "<escape>", "a:", "<|channel>thought", "<tool_call|>"]
    syntaxes = [row[0] for row in READ]
    texts = [row[1] for row in READ]
    for _ in range(1000):
        syntax = random.choice(syntaxes)
        text = "".join(random.choice(bits) for _ in range(random.randint(1, 12)))
        if random.random() < 0.4:
            text = random.choice(texts) + text
        cuts = sorted(random.sample(range(len(text) + 1), random.randint(0, min(len(text), 20))))
        if random.random() < 0.3:
            cuts = list(range(len(text)))
        places = [0, *cuts, len(text)]
        parts = [text[a:b] for a, b in itertools.pairwise(places)]
        pieces = read(syntax, parts)
        joined = WholeAnswer.of(itertools.chain(*pieces))
        assert joined == WholeAnswer.of(itertools.chain(*read(syntax, [text]))), (syntax, parts)


def test_the_arguments_come_while_they_are_written() -> None:
    parts = ['<tool_call>{"name": "f", "arguments": {"a": "', "b", "c", '"}}', "</tool_call>"]
    pieces = read(of(HERMES), parts)
    shown = [[p.text for p in some if isinstance(p, CallArguments)] for some in pieces]
    assert shown == [['{"a": "'], ["b"], ["c"], ['"}'], [], []]


@pytest.mark.parametrize("marker", ["<tool_call>", "\n <tool_call>", "<tool_call> {"])
def test_nothing_that_may_be_a_marker_is_shown_early(marker: str) -> None:
    for end in range(1, len(marker)):
        parser = AnswerParser(of(HERMES), lambda: "id")
        assert parser.feed("Hi" + marker[:end]) == [ContentPiece("Hi")]
        assert WholeAnswer.of(parser.finish()).content == marker[:end]


@pytest.mark.parametrize("form", MARKED)
def test_text_without_a_marker_is_shown_at_once(form: Any) -> None:
    parser = AnswerParser(of(form, reasoning=THINK), lambda: "id")
    for word in ("Sure", ", a<b", " is", " [fine]."):
        (piece,) = parser.feed(word)
        assert piece == ContentPiece(word)


def test_what_is_uncertain_for_too_long_is_text() -> None:
    for beginning in (
        '<tool_call>{"arguments": "',
        "<tool_call>" + " " * 99,
        '<tool_call>{"x": [[',
    ):
        text = beginning + random.choice("[x ") * random.randint(MAX_UNCERTAIN, MAX_UNCERTAIN + 300)
        text += f" <tool_call>{CALL}</tool_call>."
        cuts = sorted(random.sample(range(len(text)), 50))
        parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        for some in ([text], parts):
            answer = WholeAnswer.of(itertools.chain(*read(of(HERMES), some)))
            assert [c.arguments for c in answer.calls] == [ARGUMENTS]
            assert answer.content.startswith(beginning) and answer.content.endswith(".")


def test_names_and_texts_that_are_no_unicode_do_no_harm() -> None:
    _, _, calls = whole(of(HERMES), '<tool_call>{"name": "f", "arguments": "\\ud800"}')
    assert calls == [("f", "\ufffd")]
    content, _, calls = whole(of(HERMES), '<tool_call>{"name": "a\\nb", "arguments": {}}')
    assert not calls and "a\\nb" in content
    json.dumps(content).encode()


def test_a_long_answer_is_read_in_little_time() -> None:
    nested = '<tool_call>{"a": [' * 20_000
    huge = f'<tool_call>{{"name": "f", "arguments": {{"a": "{"x" * 1_000_000}"}}}}</tool_call>'
    for text in (nested, huge, "<" * 1_000_000, huge * 3):
        with computes_within(2, time.thread_time):
            whole(of(HERMES, reasoning=THINK), text)
