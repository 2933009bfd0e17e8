"""What readers of calls share that take text off a buffer and pass JSON on."""

from __future__ import annotations

from abc import ABC, abstractmethod


class BufferedReader(ABC):
    """Reads one call.

    Attributes:
        name: the function, once it is certain that this is a call.
        failed: it is no call, or no longer one.
        done: it has ended.
        unread: text that was taken and is no part of the call.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._out: list[str] = []
        self.name: str | None = None
        self.failed = False
        self.done = False
        self.unread = ""

    def feed(self, text: str, at: int) -> int:
        """Take text from ``at`` on; returns where what was not taken begins."""
        self._buffer += text[at:]
        while not (self.failed or self.done) and self._take():
            pass
        if self.name is not None and (self.failed or self.done):
            self._close()
            self.unread, self._buffer = self._buffer, ""
        return len(text)

    def taken(self) -> str:
        """The text of the arguments that came since this was last called."""
        out, self._out = "".join(self._out), []
        return out

    @abstractmethod
    def _take(self) -> bool:
        """Take what is whole off the beginning of the buffer; whether there was something."""

    @abstractmethod
    def _close(self) -> None:
        """The call is over: pass on what its arguments lack."""
