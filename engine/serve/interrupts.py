"""Holds ctrl-C back while data that belongs together is being changed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Run the block to its end; a ctrl-C in it is delivered behind it, a second one at once.

    A KeyboardInterrupt may otherwise come between any two lines. Only the main thread gets
    signals, so elsewhere this does nothing; neither where ctrl-C has no handler in Python.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        if len(held) > 1:
            deliver()

    def deliver() -> None:
        while held:  # a handler may count them
            handler(*held.pop(0))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        deliver()
