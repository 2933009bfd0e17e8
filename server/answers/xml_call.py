"""A tool call in Qwen3-Coder's form, read as its text comes.

``<function=NAME>``, then ``<parameter=KEY>``, a value and ``</parameter>`` for each argument, then
``</function>``. A value is written bare, so that the function's schema says what it is: a text, or
JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .call_reader import MAX_FUNCTION_NAME

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_BLANKS = " \t\r\n"
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_KINDS: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}


class XmlReader:
    """Reads one call; each argument is passed on when it is whole.

    Args:
        schemas: function -> schema of its arguments.

    Attributes:
        name: the function, once it is certain that this is a call.
        failed: it is no call, or no longer one.
        done: it has ended.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = schemas
        self._buffer = ""
        self._searched = 0  # of the buffer, for the end of a value
        self._count = 0
        self._out: list[str] = []
        self.name: str | None = None
        self.failed = False
        self.done = False

    def feed(self, text: str, at: int) -> int:
        """Take text from ``at`` on; returns where what was not taken begins."""
        self._buffer += text[at:]
        while not (self.failed or self.done) and self._step():
            pass
        if not (self.failed or self.done):
            return len(text)
        if self.failed and self.name is not None:
            self._out.append("}" if self._count else "{}")
        left, self._buffer = min(len(self._buffer), len(text) - at), ""
        return len(text) - left

    def taken(self) -> str:
        """The text of the arguments that came since this was last called."""
        out, self._out = "".join(self._out), []
        return out

    def _step(self) -> bool:
        """Take what is whole at the beginning of the buffer; whether there was something."""
        if self.name is None:
            return self._head()
        text = self._buffer.lstrip(_BLANKS)
        if text.startswith(FUNCTION_END):
            self._buffer = text[len(FUNCTION_END) :]
            self._out.append("}" if self._count else "{}")
            self.done = True
            return True
        if text.startswith(PARAMETER):
            self._searched = max(0, self._searched - (len(self._buffer) - len(text)))
            self._buffer = text
            return self._argument()
        self.failed = not (FUNCTION_END.startswith(text) or PARAMETER.startswith(text))
        return False

    def _head(self) -> bool:
        text = self._buffer
        if not text.startswith(FUNCTION):
            self.failed = not FUNCTION.startswith(text)
            return False
        end = text.find(">")
        name = text[len(FUNCTION) : end if end >= 0 else None].strip()
        if len(name) > MAX_FUNCTION_NAME or "\n" in name or (end >= 0 and not name.isprintable()):
            self.failed = True
        elif end >= 0:
            self.failed = not name
            if not self.failed:
                self.name, self._buffer = name, text[end + 1 :]
        return end >= 0 and not self.failed

    def _argument(self) -> bool:
        text = self._buffer
        end = text.find(PARAMETER_END, self._searched)
        if end < 0:
            self._searched = max(0, len(text) - len(PARAMETER_END))
            return False
        key, found, value = text[len(PARAMETER) : end].partition(">")
        if not found:
            self.failed = True
            return False
        value = value.removeprefix("\n").removesuffix("\n")
        key = key.strip()
        self._out.append("{" if self._count == 0 else ", ")
        self._out.append(f"{json.dumps(key, ensure_ascii=False)}: {self._json(key, value)}")
        self._count += 1
        self._buffer, self._searched = text[end + len(PARAMETER_END) :], 0
        return True

    def _json(self, key: str, raw: str) -> str:
        """A bare value as JSON, of a type that the schema has for it where it is one."""
        schema = self._schemas.get(self.name or "", {}).get("properties") or {}
        allowed = value_types(schema.get(key)) if key in schema else frozenset({"string"})
        if allowed != {"string"}:
            text = _PYTHON.get(raw.strip(), raw.strip())
            kind = _kind(text)
            if kind is not None and (not allowed or _fits(kind, allowed)):
                return text
        return json.dumps(raw, ensure_ascii=False)


def value_types(schema: Any) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says so by itself; none: any."""
    if not isinstance(schema, Mapping):
        return frozenset()
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return frozenset(_KINDS[type(value)] for value in values if type(value) in _KINDS)
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return frozenset({kinds})
    if isinstance(kinds, list):
        return frozenset(kind for kind in kinds if isinstance(kind, str))
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list):
            each = [value_types(part) for part in schema[name]]
            return frozenset() if frozenset() in each else frozenset().union(*each)
    return frozenset()


def _kind(text: str) -> str | None:
    """The type of a JSON text; None: it is none."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return _KINDS[type(value)]


def _fits(kind: str, allowed: frozenset[str]) -> bool:
    return kind in allowed or (kind == "integer" and "number" in allowed)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
