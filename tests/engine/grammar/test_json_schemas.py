"""Schemas: what is drawn under one is valid, and what could not be honoured is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from grammar_cases import accepts, compiler, drawn_text, start

from halfbyte.bench.schemas import random_schema
from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.errors import RequestError

NAMES = ["byte-level", "sentencepiece"]


def check(schema: dict[str, Any], name: str, most: int = 300) -> bool:
    """Draw a text and validate it; False when it did not end."""
    text = drawn_text(start(GrammarSpec.json_schema(schema), name), name, most)
    if text is None:
        return False
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_texts_drawn_under_random_schemas_are_valid(name: str) -> None:
    seed = random.randrange(1 << 32)
    ended = sum(check(random_schema(random.Random(seed + i)), name) for i in range(12))
    assert ended >= 6, seed  # the others were still within a long text or number


SCHEMAS: list[dict[str, Any]] = [
    {"type": ["integer", "null"]},
    {"type": "integer", "minimum": -5, "exclusiveMaximum": 5, "multipleOf": 2},
    {"type": "number", "minimum": 0.25, "maximum": 0.75, "multipleOf": 0.25},
    {"type": "string", "pattern": "^(ab|é)+$", "minLength": 2, "maxLength": 5},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"enum": [1, 1.5, "a", None, True, [1, {"b": "c"}], {"a": []}]},
    {"const": {"a": [1, "x"], "b": {}}},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "items": False},
    {"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "null"}, "maxItems": 3},
    {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"},
    {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^x": {"const": 1}}, "additionalProperties": False},
    {"type": "object", "required": ["a"], "minProperties": 2, "maxProperties": 2},
    {"anyOf": [{"type": "integer", "maximum": 3}, {"type": "string", "maxLength": 1}]},
    {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "string", "maxLength": 1}]},
    {"oneOf": [{"properties": {"k": {"const": c}, c: {"const": 1}}, "required": ["k", c],
                "type": "object", "additionalProperties": False} for c in "ab"]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}, {"multipleOf": 3}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"properties": {"b": {"type": "null"}}, "required": ["b"]}], "maxProperties": 2},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
     "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": False},
    {"$defs": {"t": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/t"},
                                                 "maxItems": 2}]}}, "$ref": "#/$defs/t"},
    {"$defs": {"a/b~c": {"const": 5}}, "$ref": "#/$defs/a~1b~0c"},
    {"type": "object", "properties": {"n": {"$ref": "#"}}, "additionalProperties": False},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://x.org/y",
     "title": "T", "description": "d", "default": 3, "examples": [3], "type": "integer",
     "deprecated": True, "readOnly": True, "$comment": "c", "maximum": 5, "minimum": 0},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_texts_drawn_under_a_schema_are_valid(schema: dict[str, Any]) -> None:
    assert sum(check(schema, random.choice(NAMES)) for _ in range(8)) > 0


def test_lists_of_schemas_before_2020_are_honoured() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"const": 1}, {"type": "boolean"}],
        "additionalItems": {"type": "null"},
        "minItems": 2,
        "maxItems": 3,
    }
    for _ in range(8):
        text = drawn_text(start(GrammarSpec.json_schema(schema)))
        assert text is not None
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft7Validator)


def test_an_object_is_any_object() -> None:
    spec = GrammarSpec.json_object()
    for text in ('{"a": [1, {"b": null}]}', "{}", '{\n  "é\\n": 1.5e3\n}'):
        assert accepts(spec, text)
    for text in ("[]", "1", '{"a"}', "", " {}", "{} "):
        assert not accepts(spec, text)
    ended = [text for _ in range(10) if (text := drawn_text(start(spec), most=200)) is not None]
    assert all(isinstance(json.loads(text), dict) for text in ended) and ended


@pytest.mark.parametrize("count", [0, 1, 2, 40, 200])
def test_blanks_are_bounded(count: int) -> None:
    spec = GrammarSpec.json_schema({"type": "array", "items": {"const": 1}})
    assert accepts(spec, "[" + " " * count + "1]") == (count <= 1)
    assert accepts(spec, "[\n" + " " * count + "1]") == (count <= 32)
    assert accepts(spec, "[" + "\n" * count + "1]") == (count <= 1)


# What is refused, and the place that the error names.
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
    ({"not": {}}, "#/not"),
    ({"contains": {}}, "#/contains"),
    ({"type": "object", "properties": {"a/b": {"if": {}}}}, "#/properties/a~1b/if"),
    ({"items": {"then": {}}}, "#/items/then"),
    ({"anyOf": [{}, {"dependentRequired": {}}]}, "#/anyOf/1/dependentRequired"),
    ({"$defs": {"x": {"propertyNames": {}}}}, "#/$defs/x/propertyNames"),
    ({"additionalProperties": {"unevaluatedProperties": False}},
     "#/additionalProperties/unevaluatedProperties"),
    ({"prefixItems": [{"minContains": 1}]}, "#/prefixItems/0/minContains"),
    ({"patternProperties": {"a": {"dependentSchemas": {}}}}, "#/patternProperties/a/dependent"),
    ({"type": "string", "nullable": True}, "#/nullable"),
    ({"type": "string", "contentEncoding": "base64"}, "#/contentEncoding"),
    ({"type": "integer", "minimun": 3}, "#/minimun"),
    ({"x-guidance": {"lenient": True}}, "#/x-guidance"),
    ({"$anchor": "a"}, "#/$anchor"),
    ({"$dynamicRef": "#"}, "#/$dynamicRef"),
    ({"items": {"$schema": "http://json-schema.org/draft-07/schema"}}, "#/items/$schema"),
    ({"items": {"$id": "x"}}, "#/items/$id"),
    ({"$schema": "http://json-schema.org/draft-04/schema#"}, "#/$schema"),
    ({"$schema": ["a"]}, "#/$schema"),
    ({"$schema": "http://json-schema.org/draft-07/schema", "prefixItems": []}, "#/prefixItems"),
    ({"prefixItems": [], "additionalItems": {}}, "#/prefixItems"),
    ({"items": {}, "additionalItems": {}}, "#/additionalItems"),
    ({"const": 2**53 + 1}, "#/const"),
    ({"enum": [{"a": [1e300]}]}, "#/enum"),
    ({"minimum": -(2**60)}, "#/minimum"),
    ({"minItems": -1}, "#/minItems"),
    ({"maxLength": 2.5}, "#/maxLength"),
    ({"maxItems": True}, "#/maxItems"),
    ({"minProperties": 2}, "#/minProperties"),
    ({"properties": []}, "#/properties"),
    ({"anyOf": {}}, "#/anyOf"),
    ({"items": 5}, "#/items"),
    ({"$ref": "https://example.org/x"}, "#/$ref"),
    ({"$ref": "other.json#/a"}, "#/$ref"),
    ({"$ref": 5}, "#/$ref"),
    ({"$ref": "#/$defs/none"}, "#/$ref"),
    ({"$ref": "#/default", "default": {"not": {}}}, "#/$ref"),
    ({"$ref": "#/enum/0", "enum": [{}]}, "#/$ref"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "place"), UNSUPPORTED, ids=[place for _, place in UNSUPPORTED])
def test_what_cannot_be_honoured_is_refused_with_its_place(
    schema: dict[str, Any], place: str
) -> None:
    with pytest.raises(RequestError) as caught:
        compiler("byte-level").compile(GrammarSpec.json_schema(schema), param="response_format")
    assert caught.value.param == "response_format"
    assert caught.value.message.startswith(f"response_format: {place}")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"type": "string", "format": "json-pointer"}, "Unknown format: json-pointer"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "two branches of a 'oneOf'"),
        ({"type": "bogus"}, "Invalid type: bogus"),
        ({"type": 5}, "type must be a string"),
        ({"enum": []}, "Unsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "no integer"),
        ({"required": "a"}, "Expected array for 'required'"),
        ({"minimum": "3"}, "Expected f64 for 'minimum'"),
        ({"$ref": "#"}, "no text can follow"),
        ({"patternProperties": {"a": {}, "b": {}}}, "not disjoint"),
    ],
)
def test_what_the_library_refuses_is_an_error_of_the_request(
    schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        compiler("byte-level").compile(GrammarSpec.json_schema(schema))
    assert words in caught.value.message and caught.value.code == "invalid_grammar"
    assert "non-verbose" not in caught.value.message
