import json
import sys

import pytest

from halfbyte.engine.grammar.base import MAX_SOURCE_BYTES, GrammarSpec
from halfbyte.errors import RequestError


def test_a_schema_keeps_its_order_and_loses_its_blanks() -> None:
    given = {"type": "object", "properties": {"b": {"const": "é"}, "a": {"type": "integer"}}}
    spec = GrammarSpec.json_schema(given)
    assert spec.text == json.dumps(given, ensure_ascii=False, separators=(",", ":"))
    assert spec == GrammarSpec.json_schema(json.dumps(given, indent=3))
    assert len({spec, GrammarSpec.json_schema(given), GrammarSpec.json_object()}) == 2


TOO_LONG = "é" * (MAX_SOURCE_BYTES // 2 + 1)
DEEP: dict = {}
for _ in range(5000):
    DEEP = {"items": DEEP}
ROUND: dict = {}
ROUND["items"] = ROUND


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "[1]",
        "true",
        '{"a": 1, "a": 2}',
        '{"minimum": NaN}',
        '{"minimum": 1e999}',
        '{"const": "\\ud800"}',
        "{" * 70,
        '{"items":' * 70 + "{}" + "}" * 70,
        '{"items":' * 100_000,
        DEEP,
        ROUND,
        {"minimum": float("inf")},
        {"const": "\ud800"},
        {"const": object()},
        {"enum": ["x" * MAX_SOURCE_BYTES]},
        "x" * 10_000_000,
        7,
        None,
        ["a"],
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_a_malformed_schema_is_refused(schema: object) -> None:
    with pytest.raises(RequestError) as caught:
        GrammarSpec.json_schema(schema, param="schema")  # pyright: ignore[reportArgumentType]
    assert caught.value.param == "schema" and "schema" in caught.value.message


@pytest.mark.parametrize(
    "choices", [[], "ab", None, [""], ["a", 1], ["\ud800"], {"a": 1}, ["x" * MAX_SOURCE_BYTES]]
)
def test_malformed_choices_are_refused(choices: object) -> None:
    with pytest.raises(RequestError) as caught:
        GrammarSpec.choice(choices, param="choice")  # pyright: ignore[reportArgumentType]
    assert caught.value.param == "choice"


@pytest.mark.parametrize("kind", ["regex", "lark", "gbnf"])
@pytest.mark.parametrize(
    "source", ["", " \n", None, 5, "\udfff", "é" * (MAX_SOURCE_BYTES // 2 + 1)]
)
def test_a_source_that_is_no_text_is_refused(kind: str, source: object) -> None:
    with pytest.raises(RequestError) as caught:
        getattr(GrammarSpec, kind)(source, param="pattern")
    assert caught.value.param == "pattern"


def test_sources_of_the_largest_size_are_taken() -> None:
    assert len(GrammarSpec.regex("a" * MAX_SOURCE_BYTES).text) == MAX_SOURCE_BYTES


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RequestError, match="expected one of json_schema"):
        GrammarSpec("yaml", "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="expected a text"):
        GrammarSpec("regex", None)  # pyright: ignore[reportArgumentType]


def test_a_spec_made_by_hand_is_checked_too() -> None:
    assert GrammarSpec("json_schema", '{ "type":\n"null"}') == GrammarSpec.json_schema(
        '{"type":"null"}'
    )
    assert GrammarSpec("choice", '["a" , "b"]') == GrammarSpec.choice(("a", "b"))
    for kind in ("json_schema", "choice"):
        with pytest.raises(RequestError, match="grammar"):
            GrammarSpec(kind, "[[[")


def test_a_spec_needs_no_library() -> None:
    assert sys.modules["halfbyte.engine.grammar.base"].__dict__.get("llguidance") is None
