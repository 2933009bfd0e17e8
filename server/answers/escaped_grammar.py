"""What may stand for a JSON value in Gemma's form of calls; see :mod:`escaped_call`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from halfbyte.errors import RequestError

from .grammar_rules import GrammarRules, quoted

# What says nothing of a value, or is looked at here.
_KNOWN = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("title", "description", "default", "examples", "$schema"),
    )
)
_NUMBERS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_SIGNS = frozenset("{}[]:,<> \t\r\n")  # not in a bare key
_SCALARS = ("number", "integer", "boolean", "null")


class EscapedValues:
    """Makes rules of schemas.

    Args:
        rules: what they are added to.
        quote: the mark before and after a text.
        param: the field that errors name.
    """

    def __init__(self, rules: GrammarRules, quote: str, param: str) -> None:
        self._rules, self._param = rules, param
        self._mark = rules.text(quote)
        self._text = f"{self._mark} {rules.until(quote)}"
        self._any = ""

    def value(self, schema: Any) -> str:
        """What a value of a schema is, as a part of a rule. Raises RequestError."""
        if schema is True or schema == {}:
            return self._anything()
        if not isinstance(schema, Mapping):
            raise self._refused("false")
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return "(" + " | ".join(map(self._literal, values)) + ")"
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        known = _KNOWN | _NUMBERS if set(kinds) <= {*_SCALARS} else _KNOWN
        if other := sorted(key for key in schema if key not in known):
            raise self._refused(other[0])
        if not kinds:
            raise self._refused("no type")
        return "(" + " | ".join(self._kind(kind, schema) for kind in kinds) + ")"

    def _kind(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            return self._text
        if kind == "array":
            item = self.value(schema.get("items", True))
            return f'"[" ({item} ("," {item})*)? "]"'
        if kind == "object":
            return self._object(schema)
        return f"%json {json.dumps({**schema, 'type': kind})}"

    def _object(self, schema: Mapping[str, Any]) -> str:
        """Its properties in the order of the schema; any, where it has none and forbids none."""
        properties = schema.get("properties") or {}
        if not properties and schema.get("additionalProperties", True) is not False:
            self._anything()
            return "any_object"
        required = set(schema.get("required") or ())
        if missing := sorted(required.difference(properties)):
            raise self._refused(f"a required {missing[0]!r} that it does not describe")
        odd = next((key for key in properties if not key or set(key) & _SIGNS), None)
        if odd is not None:
            raise self._refused(f"the key {odd!r}")
        pairs = [f"{quoted(key + ':')} {self.value(kind)}" for key, kind in properties.items()]
        names = [self._rules.fresh("pair", pair) for pair in pairs]
        optional = ["" if key in required else "?" for key in properties]
        rest = [f'("," {name}){may}' for name, may in zip(names, optional, strict=True)]
        choices: list[str] = []
        for place, key in enumerate(properties):
            choices.append(" ".join([names[place], *rest[place + 1 :]]))
            if key in required:
                break
        inner = f"({' | '.join(choices)})" if choices else ""
        return f'"{{" {inner}{"" if required or not choices else "?"} "}}"'

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._mark} {quoted(value)} {self._mark}"
        if isinstance(value, (list, Mapping)):
            raise self._refused("lists or objects as values")
        return quoted(json.dumps(value))

    def _anything(self) -> str:
        """A value of any kind."""
        if not self._any:
            self._any = "any_value"
            rules = self._rules
            rules.add("ANY_KEY", r"/[^<>:{}\[\],\n]{1,128}/")
            pair = 'ANY_KEY ":" any_value'
            rules.add("any_object", f'"{{" ({pair} ("," {pair})*)? "}}"')
            scalar = f"%json {json.dumps({'type': ['number', 'boolean', 'null']})}"
            array = '"[" (any_value ("," any_value)*)? "]"'
            rules.add("any_value", f"any_object | {array} | {self._text} | {scalar}")
        return self._any

    def _refused(self, what: str) -> RequestError:
        return RequestError(
            f"{self._param}: a schema has {what:.140}, which cannot be enforced in the form in "
            "which this model writes calls",
            param=self._param,
            code="unsupported_value",
            hint="leave it out, or describe it to the model",
        )
