"""Where log lines go, and how many of one kind: an attacker must not fill a disk with them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

# Of each kind of warning or error, this many lines in a window of this many seconds.
_MOST_LINES = 5
_WINDOW_S = 10.0
_MOST_KINDS = 1000


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


def log_to_stderr() -> None:
    """Show our log lines and uvicorn's warnings, unless the calling program set up logging."""
    ours = logging.getLogger("halfbyte")
    if ours.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(RepeatFilter())
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.WARNING)
