"""The fields that ask for a grammar: OpenAI's, vLLM's newer and older ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.errors import RequestError
from halfbyte.server.schema import ChatCompletionRequest, CompletionRequest, parse

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
GBNF = 'root ::= "a"'
LARK = 'start: "a"'


def asked(**fields: Any) -> Any:
    return parse(CompletionRequest, json.dumps({"prompt": "x", **fields}).encode())


ASKED: list[tuple[dict[str, Any], GrammarSpec | None]] = [
    ({}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "structured_outputs": None, "guided_json": None}, None),
    ({"response_format": {"type": "json_object"}}, GrammarSpec.json_object()),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        GrammarSpec.json_schema(SCHEMA),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, GrammarSpec.json_schema(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, GrammarSpec.json_schema(SCHEMA)),
    ({"structured_outputs": {"json_object": True}}, GrammarSpec.json_object()),
    ({"structured_outputs": {"json_object": False}}, None),
    ({"structured_outputs": {"regex": "a+"}}, GrammarSpec.regex("a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, GrammarSpec.choice(["a", "b"])),
    ({"structured_outputs": {"grammar": GBNF}}, GrammarSpec.gbnf(GBNF)),
    ({"guided_json": SCHEMA}, GrammarSpec.json_schema(SCHEMA)),
    ({"guided_regex": "a"}, GrammarSpec.regex("a")),
    ({"guided_choice": ["a"]}, GrammarSpec.choice(["a"])),
    ({"guided_grammar": LARK}, GrammarSpec.lark(LARK)),
]


@pytest.mark.parametrize(("fields", "grammar"), ASKED)
def test_each_field_asks_for_its_grammar(fields: Any, grammar: GrammarSpec | None) -> None:
    assert asked(**fields).sampling(4).grammar == grammar


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        "response_format.json_schema.schema",
    ),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    ({"guided_choice": [""]}, "guided_choice"),
    ({"guided_json": "no json"}, "guided_json"),
    ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_is_malformed_or_doubled_is_refused_by_its_name(fields: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        asked(**fields).sampling(4)
    assert caught.value.param == param and param.split(".")[-1] in str(caught.value)


def test_the_compiler_is_told_the_name_of_the_field() -> None:
    grammar = asked(guided_regex="a").sampling(1).grammar
    assert grammar is not None and grammar.param == "guided_regex"
    body = {"messages": [{"role": "user", "content": "x"}], "structured_outputs": {"regex": "a"}}
    chat = parse(ChatCompletionRequest, json.dumps(body).encode()).sampling(1).grammar
    assert chat is not None and chat.param == "structured_outputs.regex"
