"""JSON text of what is sent, whatever numbers clients or models wrote into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson


def json_bytes(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """A value as JSON, UTF-8; orjson's, but for integers of more than 64 bits, which it refuses."""
    try:
        return orjson.dumps(value, default=default)
    except TypeError:
        return json.dumps(value, default=default, ensure_ascii=False).encode()
