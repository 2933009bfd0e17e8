"""Where log lines go, in which form, and how many of one kind: none may fill a disk."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
"""Lines for people, or one JSON object a line."""

# Of each kind of warning or error, this many lines in a window of this many seconds.
_MOST_LINES = 5
_WINDOW_S = 10.0
_MOST_KINDS = 1000
# Loggers of libraries that have something to say while serving.
_LIBRARIES = ("uvicorn", "asyncio", "opentelemetry")


class RepeatFilter(logging.Filter):
    """Passes a few records of each warning in a time window and counts the rest.

    A kind is a logger and an unformatted message. The first record of the next window says how
    many were left out. Records below WARNING pass always: a line for each request is wanted.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record may be written."""
        if record.levelno < logging.WARNING:
            return True
        if len(self._seen) > _MOST_KINDS:
            self._seen.clear()
        kind = (record.name, str(record.msg))
        now = self._clock()
        began, count = self._seen.get(kind, (now, 0))
        if now - began >= _WINDOW_S:
            if count > _MOST_LINES:
                left_out = f" ({count - _MOST_LINES} more like this were not logged)"
                record.msg, record.args = record.getMessage() + left_out, ()
            began, count = now, 0
        self._seen[kind] = (began, count + 1)
        return count < _MOST_LINES


class JsonLines(logging.Formatter):
    """One JSON object for a record: ``time``, ``level``, ``logger``, ``message``.

    A record's ``fields`` (:func:`with_fields`) are keys beside them, and the traceback of an
    exception is ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def with_fields(**fields: Any) -> dict[str, Any]:
    """The ``extra`` of a log call whose record has these fields."""
    return {"fields": fields}


def log_to_stderr(form: LogFormat = "text") -> None:
    """Show our log lines and uvicorn's warnings, unless the calling program set up logging.

    As JSON, everything that any library logs or warns of is shown, so that no other line comes
    between.
    """
    ours, root = logging.getLogger("halfbyte"), logging.getLogger()
    if ours.handlers or root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RepeatFilter())
    ours.setLevel(logging.INFO)
    if form == "json":
        handler.setFormatter(JsonLines())
        root.addHandler(handler)
        logging.captureWarnings(True)
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours.addHandler(handler)
    for name in _LIBRARIES:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.WARNING)
