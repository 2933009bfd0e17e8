"""How many lines of one kind reach the log."""

from __future__ import annotations

import logging

from halfbyte.server.log import RepeatFilter


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("halfbyte.server", level, __file__, 1, message, args, None)


def test_repeated_warnings_are_counted_instead() -> None:
    now = 0.0
    repeats = RepeatFilter(lambda: now)
    written = [repeats.filter(record("accept failed: %d", i)) for i in range(1000)]
    assert sum(written) == 5 and all(written[:5])
    assert repeats.filter(record("another"))
    now = 10.0
    later = record("accept failed: %d", 7)
    assert repeats.filter(later)
    assert later.getMessage() == "accept failed: 7 (995 more like this were not logged)"
    following = record("accept failed: %d", 8)
    assert repeats.filter(following) and following.getMessage() == "accept failed: 8"


def test_a_line_for_each_request_passes() -> None:
    repeats = RepeatFilter(lambda: 0.0)
    assert all(repeats.filter(record("GET %s", i, level=logging.INFO)) for i in range(1000))


def test_kinds_do_not_pile_up() -> None:
    repeats = RepeatFilter(lambda: 0.0)
    for i in range(5000):
        repeats.filter(record(f"kind {i}"))
    assert len(repeats._seen) <= 1001
