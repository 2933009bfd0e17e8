"""JSON from strangers: size, depth, duplicate keys and non-finite numbers are checked."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from halfbyte.errors import CheckpointError

_MAX_DEPTH = 64
_DAMAGED = "the file is damaged or no JSON: download it again"
MAX_ITEMS = 1 << 18
# transformers writes int(1e30), 31 digits, where a tokenizer has no length of its own.
_MAX_DIGITS = 32
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(
    data: bytes,
    where: str,
    *,
    max_bytes: int,
    max_items: int = MAX_ITEMS,
    unique_keys: bool = True,
) -> dict[str, Any]:
    """The JSON object in ``data``.

    Refused with CheckpointError naming ``where``: more than ``max_bytes`` bytes, bad UTF-8 and
    half surrogate pairs, bad JSON, NaN and Infinity (also numbers that overflow to them), whole
    numbers of more than 32 digits, duplicate keys (unless ``unique_keys`` is off), more than 64
    levels or ``max_items`` brackets and commas, and anything but an object at the top.
    """
    if len(data) > max_bytes:
        raise CheckpointError(f"{where}: {len(data)} bytes of JSON; at most {max_bytes} are read")
    # An empty list costs 3 bytes of text and 64 of memory: bound the number before parsing.
    items = data.count(b"[") + data.count(b"{") + data.count(b",")
    if items > max_items:
        raise CheckpointError(
            f"{where}: {items} values in JSON, counted by brackets and commas; expected at most "
            f"{max_items}"
        )

    def bad_constant(name: str) -> NoReturn:
        raise CheckpointError(f"{where}: {name} is not a JSON number; expected a finite number")

    def whole(text: str) -> int:
        if len(text) > _MAX_DIGITS:
            raise CheckpointError(f"{where}: a whole number has {len(text)} digits")
        return int(text)

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise CheckpointError(f"{where}: the number {text[:40]} overflows; expected finite")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise CheckpointError(f"{where}: duplicate key {key[:80]!r}")
                seen.add(key)
        return found

    try:
        text = data.decode("utf-8")
        parsed = json.loads(
            text,
            parse_constant=bad_constant,
            parse_int=whole,
            parse_float=real,
            object_pairs_hook=unique if unique_keys else None,
        )
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 at byte {error.start}", hint=_DAMAGED) from error
    except RecursionError as error:
        raise CheckpointError(f"{where}: JSON is nested over {_MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise CheckpointError(
            f"{where}: not valid JSON: {str(error)[:120]}", hint=_DAMAGED
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: the top of the JSON is not an object", hint=_DAMAGED)
    _check_tree(parsed, where, strings=_SURROGATE.search(text) is not None)
    return parsed


def _check_tree(top: dict[str, Any], where: str, *, strings: bool) -> None:
    """Refuse too many levels and, where ``strings`` asks for it, text that is not Unicode."""
    level: list[Any] = [top]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            below.extend(child for child in children if isinstance(child, (dict, list)))
            if strings:
                texts = [*item, *children] if isinstance(item, dict) else children
                _check_text([text for text in texts if isinstance(text, str)], where)
        if not below:
            return
        level = below
    raise CheckpointError(f"{where}: JSON is nested over {_MAX_DEPTH} levels deep")


def _check_text(texts: list[str], where: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(
                f"{where}: the text {text[:60]!a} holds half a surrogate pair"
            ) from error
