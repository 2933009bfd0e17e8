"""A lock that threads get in the order in which they asked for it."""

from __future__ import annotations

import sys
import threading
from collections import deque
from types import FrameType

_HANDED_ON = 0  # no thread has this identifier


class Turns:
    """First come, first served mutual exclusion, as a context manager.

    ``threading.Lock`` may be taken again by the thread that just released it, however many
    others wait; a thread that computes one step after another would starve them all.

    A thread that asks again while it has its turn gets a RuntimeError instead of waiting for
    itself for ever: ask :attr:`mine` first where that can happen (finalizers, signal handlers).
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._owner: int | None = None
        self._frame: FrameType | None = None

    @property
    def taken(self) -> bool:
        """Whether any thread has its turn."""
        return self._owner is not None

    @property
    def mine(self) -> bool:
        """Whether the calling thread has its turn and is still inside it.

        A ctrl-C between a block's last line and its exit leaves the turn with a thread that has
        left the block; then the frame that took it is no longer on the stack.
        """
        if self._owner != threading.get_ident():
            return False
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def __enter__(self) -> None:
        frame, me = sys._getframe(1), threading.get_ident()
        if self.mine:
            raise RuntimeError("this thread has its turn already")
        with self._guard:
            if self._owner is None or self._owner == me:
                self._owner, self._frame = me, frame
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
            self._owner, self._frame = me, frame
        except BaseException:  # ctrl-C while waiting
            with self._guard:
                waits = gate in self._waiting
                if waits:
                    self._waiting.remove(gate)
            if not waits:
                self._pass_on()
            raise

    def __exit__(self, *exc: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        with self._guard:
            self._frame = None
            # While the next thread wakes up nobody else may slip in.
            self._owner = _HANDED_ON if self._waiting else None
            if self._waiting:
                self._waiting.popleft().release()
