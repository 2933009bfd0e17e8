"""Memory of a process while something runs in it, and the system's cache of files."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import IO

_SELF = "self"
_SECONDS = 0.005


def anonymous(process: int | str = _SELF) -> int:
    """Bytes of a process (its id; default this one) that belong to no file (Linux); 0 elsewhere."""
    return _status(process).get("RssAnon", 0)


def forget(file: IO[bytes]) -> None:
    """Ask the system to drop a file from its cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Peak:
    """The most memory of a process during a block, sampled at intervals (Linux); 0 elsewhere.

    Attributes:
        value: most anonymous bytes.
        resident: most resident bytes, mapped files included.

    Args:
        process: id of the process; default this one.
        interval: seconds between two looks.
    """

    def __init__(self, process: int | str = _SELF, interval: float = _SECONDS) -> None:
        self.value = 0
        self.resident = 0
        self._process = process
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            status = _status(self._process)
            self.value = max(self.value, status.get("RssAnon", 0))
            self.resident = max(self.resident, status.get("VmRSS", 0))


def _status(process: int | str) -> dict[str, int]:
    """Bytes by name from ``/proc``; empty where there is none, or the process is gone."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = int(value.removesuffix(" kB")) << 10
    return found
