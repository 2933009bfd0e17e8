"""What a grammar is to the rest of the engine: its source, its compiled form, its state in a text.

Nothing here needs the library that does the work; ``compiler`` is where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import CheckpointError, RequestError

from ...loaders.files.json_text import parse_object

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark", "gbnf"]

MAX_SOURCE_BYTES = 256 << 10
"""Size of the largest source, as UTF-8. Schemas that people write have a few KiB."""


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A grammar as the user gave it. Equal ones compile to the same thing.

    The class methods take what users write and refuse what is malformed.

    Attributes:
        kind: the language that ``text`` is in.
        text: a JSON schema as JSON text without blanks, its keys in the order given; ``{}`` for
            ``json_object``; a JSON list of strings for ``choice``; else the source.
        param: the field that an error of the compiler names.

    Raises:
        RequestError: an unknown kind, a text that is none or over 256 KiB, or no JSON where it
            must be.
    """

    kind: GrammarKind
    text: str
    param: str = field(default="grammar", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            known = ", ".join(get_args(GrammarKind))
            raise RequestError(
                f"the kind of grammar is {self.kind!r:.60}; expected one of {known}",
                param="grammar",
            )
        _check_source(self.text, "grammar")
        if self.kind == "json_schema":
            object.__setattr__(self, "text", _compact(_schema(self.text, "grammar")))
        if self.kind == "choice":
            object.__setattr__(self, "text", _compact(_choices(_list(self.text), "grammar")))

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, *, param: str = "grammar") -> GrammarSpec:
        """The texts that are JSON and valid under a schema (Draft 2020-12).

        Args:
            schema: the schema, or its JSON text.
            param: the field that an error names.

        Raises:
            RequestError: no JSON object, duplicate keys, numbers that are not finite, more than
                64 levels, or over 256 KiB.
        """
        text = schema if isinstance(schema, str) else _dumped(schema, param)
        return cls("json_schema", _compact(_schema(text, param)), param)

    @classmethod
    def json_object(cls, *, param: str = "grammar") -> GrammarSpec:
        """The texts that are a JSON object, whatever is in it; ``param`` as for the others."""
        return cls("json_object", "{}", param)

    @classmethod
    def regex(cls, pattern: str, *, param: str = "grammar") -> GrammarSpec:
        """The texts that a regular expression matches from their beginning to their end.

        Args:
            pattern: in the syntax of Rust's ``regex`` crate: that of Python's ``re`` without
                look-around and back references; classes such as ``\\d`` are Unicode's.
            param: the field that an error names.

        Raises:
            RequestError: no text, an empty one, or one over 256 KiB.
        """
        return cls("regex", _source(pattern, param), param)

    @classmethod
    def choice(cls, choices: Sequence[str], *, param: str = "grammar") -> GrammarSpec:
        """One of some texts.

        Args:
            choices: at least one; none is empty.
            param: the field that an error names.

        Raises:
            RequestError: anything but a list of such texts, or over 256 KiB of them.
        """
        text = _compact(_choices(choices, param))
        _check_source(text, param)
        return cls("choice", text, param)

    @classmethod
    def lark(cls, source: str, *, param: str = "grammar") -> GrammarSpec:
        """The texts of a context-free grammar in llguidance's variant of Lark.

        Args:
            source: its rules; the first one to apply is ``start``.
            param: the field that an error names.

        Raises:
            RequestError: no text, an empty one, or one over 256 KiB.
        """
        return cls("lark", _source(source, param), param)

    @classmethod
    def either(cls, source: str, *, param: str = "grammar") -> GrammarSpec:
        """The texts of a grammar in GBNF or Lark, whichever it is.

        Only GBNF defines its rules with ``::=``. Arguments and errors as for both.
        """
        known = isinstance(source, str) and "::=" in source
        return cls.gbnf(source, param=param) if known else cls.lark(source, param=param)

    @classmethod
    def gbnf(cls, source: str, *, param: str = "grammar") -> GrammarSpec:
        """The texts of a context-free grammar in the form that llama.cpp reads.

        Args:
            source: its rules; the first one to apply is ``root``.
            param: the field that an error names.

        Raises:
            RequestError: no text, an empty one, or one over 256 KiB.
        """
        return cls("gbnf", _source(source, param), param)


class GrammarState(Protocol):
    """Where one text stands in its grammar. Not thread-safe.

    Attributes:
        ended: nothing may follow but an end token.
    """

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but an end token."""
        ...

    def mask(self) -> NDArray[np.int32]:
        """The tokens that may follow.

        Returns:
            int32 [ceil(V / 32)], new at each call: bit ``t % 32`` of word ``t // 32`` is set when
            token t may follow. Those of the end tokens are set exactly when the text may end. At
            least one bit is set.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow.
        """
        ...

    def accept(self, token: int) -> bool:
        """Append a token.

        Returns:
            False when it may not follow; the state is then as before.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow.
        """
        ...

    def forced(self) -> list[int]:
        """Tokens whose text must follow, whatever the logits.

        They are cut as the tokenizer cuts that text; the mask may allow other cuts of the same
        text. There is no end token among them, and the state stays as it is.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow.
        """
        ...

    def fork(self) -> GrammarState:
        """A state of another text that begins in the same way; neither changes the other."""
        ...


class Grammar(Protocol):
    """A compiled grammar. Safe to share between requests and threads."""

    def start(self) -> GrammarState:
        """The state of an empty text."""
        ...


def _source(value: object, param: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(
            f"{param} is {value!r:.60}; expected a text that is not empty", param=param
        )
    _check_source(value, param)
    return value


def _check_source(text: object, where: str, param: str | None = None) -> None:
    """Refuse what is no text, no Unicode or too long."""
    param = param or where
    if not isinstance(text, str):
        raise RequestError(f"{where} is {text!r:.60}; expected a text", param=param)
    try:
        # The length in characters first, which costs nothing.
        size = len(text) if len(text) > MAX_SOURCE_BYTES else len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where} is not valid Unicode at character {error.start}: a lone surrogate",
            param=param,
            code="invalid_unicode",
        ) from error
    if size > MAX_SOURCE_BYTES:
        raise RequestError(
            f"{where} has {size} bytes or more; at most {MAX_SOURCE_BYTES} are allowed",
            param=param,
        )


def _schema(text: str, param: str) -> dict[str, Any]:
    _check_source(text, param)
    try:
        return parse_object(text.encode(), param, max_bytes=MAX_SOURCE_BYTES)
    except CheckpointError as error:
        raise RequestError(error.message, param=param) from error


def _choices(choices: object, param: str) -> list[str]:
    if not isinstance(choices, (list, tuple)) or not choices:
        raise RequestError(
            f"{param} is {choices!r:.60}; expected a list of at least one text", param=param
        )
    for index, text in enumerate(choices):
        if not isinstance(text, str) or not text:
            raise RequestError(
                f"{param}[{index}] is {text!r:.60}; expected a text that is not empty",
                param=param,
            )
        _check_source(text, f"{param}[{index}]", param)
    return list(choices)


def _list(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _dumped(schema: object, param: str) -> str:
    if not isinstance(schema, Mapping):
        raise RequestError(f"{param} is {schema!r:.60}; expected a JSON object", param=param)
    try:
        return json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise RequestError(f"{param} is nested too deep; at most 64 levels", param=param) from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"{param} is no JSON: {str(error)[:120]}", param=param) from error


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
