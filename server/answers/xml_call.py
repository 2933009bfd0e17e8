"""A tool call whose arguments have tags, Qwen3-Coder's and GLM's form, read as its text comes.

``<function=NAME>``, then ``<parameter=KEY>``, a value and ``</parameter>`` for each argument, then
``</function>``; or with the other tags of a `CallTags`. A value is written bare, so that the
function's schema says what it is: a text, or JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from .buffered_call import BufferedReader
from .call_reader import MAX_FUNCTION_NAME
from .formats import CallTags
from .json_value import JSON_KINDS, PYTHON_WORDS, json_kind

_BLANKS = " \t\r\n"
_BARE_NAME = re.compile(r"[^\s<]*")


class XmlReader(BufferedReader):
    """Reads one call; each argument is passed on when it is whole.

    Args:
        tags: how it is written.
        schemas: function -> schema of its arguments.
        names: functions that there are.

    Attributes:
        name: the function, once it is certain that this is a call.
        failed: it is no call, or no longer one.
        done: it has ended.
        unread: text that was taken and is no part of the call.
    """

    def __init__(
        self, tags: CallTags, schemas: Mapping[str, Mapping[str, Any]], names: Collection[str]
    ) -> None:
        super().__init__()
        self._tags = tags
        self._schemas = schemas
        self._names = names
        self._searched = 0  # of the buffer, for the end of a value
        self._count = 0

    def _close(self) -> None:
        if self.failed:
            self._out.append("}" if self._count else "{}")

    def _take(self) -> bool:
        if self.name is None:
            return self._head()
        text, tags = self._buffer.lstrip(_BLANKS), self._tags
        if text.startswith(tags.end):
            self._buffer = text[len(tags.end) :]
            self._out.append("}" if self._count else "{}")
            self.done = True
            return True
        if text.startswith(tags.key):
            self._searched = max(0, self._searched - (len(self._buffer) - len(text)))
            self._buffer = text
            return self._argument()
        self.failed = not (tags.end.startswith(text) or tags.key.startswith(text))
        return False

    def _head(self) -> bool:
        text, tags = self._buffer, self._tags
        if not text.startswith(tags.begin):
            self.failed = not tags.begin.startswith(text)
            return False
        text = text[len(tags.begin) :]
        if tags.named:
            name, found, rest = text.partition(tags.named)
            name = name.strip()
        else:
            match = _BARE_NAME.match(text)
            assert match is not None  # the pattern matches the empty text
            name, rest = match[0], text[match.end() :].lstrip(_BLANKS)
            # A function that is not known has arguments, or this is no call.
            signs = (tags.key, tags.end) if name in self._names else (tags.key,)
            found = next((sign for sign in signs if rest.startswith(sign)), "")
            self.failed = not found and not any(sign.startswith(rest) for sign in signs)
        if len(name) > MAX_FUNCTION_NAME or "\n" in name or not (name or not found):
            self.failed = True
        self.failed |= bool(found) and not name.isprintable()
        if found and not self.failed:
            self.name, self._buffer = name, rest
        return bool(found) and not self.failed

    def _argument(self) -> bool:
        text, tags = self._buffer, self._tags
        end = text.find(tags.value_end, self._searched)
        if end < 0:
            self._searched = max(0, len(text) - len(tags.value_end))
            return False
        key, value, found = "", text[len(tags.key) : end], ""
        for sign in tags.value:
            before, found, value = value.partition(sign)
            key = key or before.strip()
            if not found or (sign != tags.value[0] and before.strip()):
                self.failed = True
                return False
        if tags.padded:
            value = value.removeprefix("\n").removesuffix("\n")
        self._out.append("{" if self._count == 0 else ", ")
        self._out.append(f"{json.dumps(key, ensure_ascii=False)}: {self._json(key, value)}")
        self._count += 1
        self._buffer, self._searched = text[end + len(tags.value_end) :], 0
        return True

    def _json(self, key: str, raw: str) -> str:
        """A bare value as JSON, of a type that the schema has for it where it is one."""
        schema = self._schemas.get(self.name or "", {}).get("properties") or {}
        allowed = value_types(schema.get(key)) if key in schema else frozenset({"string"})
        if allowed != {"string"}:
            text = PYTHON_WORDS.get(raw.strip(), raw.strip())
            kind = json_kind(text)
            if kind is not None and (not allowed or _fits(kind, allowed)):
                return text
        return json.dumps(raw, ensure_ascii=False)


def value_types(schema: Any) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says so by itself; none: any."""
    if not isinstance(schema, Mapping):
        return frozenset()
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return frozenset(JSON_KINDS[type(value)] for value in values if type(value) in JSON_KINDS)
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


def _fits(kind: str, allowed: frozenset[str]) -> bool:
    return kind in allowed or (kind == "integer" and "number" in allowed)
