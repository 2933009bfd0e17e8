"""What was typed into chats, kept for the arrow keys: a private file of bounded size."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

from .console import warn

ENTRIES = 1000
"""Most entries that are read back."""
MAX_BYTES = 1 << 20
"""Size beyond which the file is cut to its newer half."""


class ChatHistory(History):
    """One JSON text a line, newest last, readable for its owner only.

    A file that cannot be used is told of once, and the chat goes on without it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._usable = True

    def load_history_strings(self) -> Iterable[str]:
        """Entries, newest first."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(size - MAX_BYTES, 0))
                lines = file.read(MAX_BYTES).split(b"\n")
            if size > MAX_BYTES:
                lines = lines[1:]  # the first one may have lost its beginning
                self._rewrite(lines[len(lines) // 2 :])
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)
            return
        found = 0
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                text = json.loads(line)
                if isinstance(text, str) and found < ENTRIES:
                    found += 1
                    yield text

    def store_string(self, string: str) -> None:
        """Append an entry."""
        if not self._usable:
            return
        line = json.dumps(string).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with open(os.open(self._path, flags, 0o600), "wb") as file:
                file.write(line)
        except OSError as error:
            self._give_up(error)

    def _rewrite(self, lines: list[bytes]) -> None:
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(b"\n".join(lines))
        os.replace(new, self._path)

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        warn(f"the history {self._path} is not kept: {error.strerror or error}")
