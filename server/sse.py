"""Server-sent events: how the chunks of a stream look on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_bytes import json_bytes

SSE = "text/event-stream"
"""Media type of a stream."""
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
SSE_HEADERS: Mapping[str, str] = {
    "Content-Type": f"{SSE}; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event holding one JSON object, UTF-8."""
    return b"data: " + json_bytes(payload) + b"\n\n"
