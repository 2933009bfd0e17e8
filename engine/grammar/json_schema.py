"""JSON schemas: what of them can be honoured, and the grammar that llguidance makes of them.

llguidance leaves unknown keywords alone, as JSON Schema says. A misspelled or unimplemented one
would then be ignored without a word; here it is refused, and its place named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from halfbyte.errors import RequestError

WHITESPACE = r"\x20|\x0A[\x20\x09]{0,32}"
"""Blanks where JSON allows them: none, one space, or a line break and an indentation.

Models write such blanks themselves, so a text stays as likely as it was. Without a bound a small
model may write blanks until its tokens run out.
"""

_DRAFTS = {
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
}
_BEFORE_2020 = _DRAFTS - {"https://json-schema.org/draft/2020-12/schema"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SINGLE = {"items", "additionalItems", "additionalProperties"}
_VALUES = {"const", "enum"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_COUNTS = {"minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"}
_OTHERS = {"$ref", "type", "required", "pattern", "format"}
_OBEYED = _MAPS | _LISTS | _SINGLE | _VALUES | _NUMBERS | _COUNTS | _OTHERS
# What says nothing about which values are valid.
_ANNOTATIONS = {
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
}
_TOP = "#"
_AT_THE_TOP = {"$schema", "$id"}
# llguidance computes with float64.
_MAX_WHOLE = 1 << 53


def schema_grammar(text: str, param: str) -> dict[str, Any]:
    """The grammar of the JSON texts that a schema allows, in llguidance's format.

    Args:
        text: the schema.
        param: the field that an error names.

    Raises:
        RequestError: the schema has something that cannot be honoured; says where.
    """
    schema = json.loads(text)
    check_schema(schema, param)
    return {"json_schema": with_options(schema)}


def with_options(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what llguidance needs to know besides."""
    return {"x-guidance": {"whitespace_pattern": WHITESPACE}, **schema}


def check_schema(schema: dict[str, Any], param: str, name: str | None = None) -> None:
    """Refuse what llguidance would ignore or get wrong.

    Args:
        schema: parsed JSON.
        param: the field that an error names.
        name: what the text of an error calls the schema; the field when left out.

    Raises:
        RequestError: a keyword that is unknown or not implemented, a number that float64 does
            not hold, a reference to something else than a schema in here, a ``minProperties``
            that cannot be counted, or an unknown ``$schema``.
    """
    check = _Check(schema, param, name or param)
    places: list[tuple[Any, str]] = [(schema, _TOP)]
    references: list[tuple[str, str]] = []
    seen: set[str] = set()
    while places:
        inner, place = places.pop()
        seen.add(place)
        if isinstance(inner, bool):
            continue
        if not isinstance(inner, dict):
            check.refuse(place, f"is {json.dumps(inner):.60}; expected a schema")
        check.keywords(inner, place)
        if "$ref" in inner:
            references.append((inner["$ref"], f"{place}/$ref"))
        places.extend(_inner(inner, place))
    for target, place in references:
        if not isinstance(target, str) or not target.startswith("#"):
            check.refuse(place, f"is {target!r:.60}; expected a place in the schema, as #/$defs/x")
        if target not in seen:
            check.refuse(place, f"is {target!r:.60}, where no schema is")


def _inner(schema: dict[str, Any], place: str) -> Iterator[tuple[Any, str]]:
    """The schemas directly in a schema, and their places."""
    for key in schema:
        value, there = schema[key], f"{place}/{_escaped(key)}"
        if key in _MAPS and isinstance(value, dict):
            yield from ((value[name], f"{there}/{_escaped(name)}") for name in value)
        elif key in _LISTS | {"items"} and isinstance(value, list):
            yield from ((item, f"{there}/{index}") for index, item in enumerate(value))
        elif key in _SINGLE:
            yield value, there


class _Check:
    """The checks of one schema object at a time."""

    def __init__(self, root: dict[str, Any], param: str, name: str) -> None:
        self._param, self._name = param, name
        draft = root.get("$schema", "https://json-schema.org/draft/2020-12/schema")
        draft = draft.removesuffix("#") if isinstance(draft, str) else draft
        if not isinstance(draft, str) or draft not in _DRAFTS:
            known = ", ".join(sorted(_DRAFTS))
            self.refuse(f"{_TOP}/$schema", f"is {draft!r:.80}; expected one of {known}")
        self._old = draft in _BEFORE_2020

    def refuse(self, place: str, problem: str) -> NoReturn:
        raise RequestError(
            f"{self._name}: {place} {problem}", param=self._param, code="invalid_grammar"
        )

    def keywords(self, schema: dict[str, Any], place: str) -> None:
        known = _OBEYED | _ANNOTATIONS | (_AT_THE_TOP if place == _TOP else set())
        for key, value in schema.items():
            there = f"{place}/{_escaped(key)}"
            if key not in known:
                self.refuse(there, "is a keyword that cannot be honoured")
            if key in _MAPS and not isinstance(value, dict):
                self.refuse(there, "is no object; expected schemas by name")
            if key in _LISTS and not isinstance(value, list):
                self.refuse(there, "is no list; expected schemas")
            if key in _VALUES | _NUMBERS:
                self._numbers(value, there)
            if key in _COUNTS and not _is_count(value):
                self.refuse(there, f"is {value!r:.60}; expected a whole number from 0 up")
        self._tuples(schema, place)
        self._counted(schema, place)

    def _numbers(self, value: Any, place: str) -> None:
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                stack.extend(item.values())
            elif isinstance(item, list):
                stack.extend(item)
            elif isinstance(item, (int, float)) and abs(item) > _MAX_WHOLE:
                self.refuse(place, f"has {item:.6g}; expected numbers from -2^53 to 2^53")

    def _tuples(self, schema: dict[str, Any], place: str) -> None:
        """Lists whose items have schemas of their own are written in two ways."""
        as_list = isinstance(schema.get("items"), list)
        if "prefixItems" in schema and (self._old or as_list or "additionalItems" in schema):
            self.refuse(f"{place}/prefixItems", "goes with Draft 2020-12 and its 'items'")
        if "additionalItems" in schema and not as_list:
            self.refuse(f"{place}/additionalItems", "has no meaning without a list in 'items'")

    def _counted(self, schema: dict[str, Any], place: str) -> None:
        """A name that is in no list may come twice, and is one property then."""
        required = schema.get("required", ())
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        if schema.get("minProperties", 0) > named + 1:
            self.refuse(
                f"{place}/minProperties",
                f"is {schema['minProperties']}; expected at most one more than 'required' has",
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_WHOLE


def _escaped(key: str) -> str:
    """A key as a step of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
