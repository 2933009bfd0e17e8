"""An engine in a process of its own, which waits on a pipe while it is not measured."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from halfbyte.errors import ConfigError

from ..engine import EngineCase
from ..process_memory import Peak
from .peer import Sample

_SECONDS = 0.02  # between two looks at the memory


class Worker:
    """A process that runs one function, which calls ``answer``; a ``Contestant``.

    Args:
        label: name for messages.
        function: of a module; it is called in the process with the pipe and ``args``.
        args: its other arguments.

    Raises:
        ConfigError: the process ended, or its engine failed, before it was ready.
    """

    def __init__(self, label: str, function: Callable[..., None], *args: Any) -> None:
        self.facts: dict[str, Any] = {}
        self._label = label
        self._failed = ""
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=function, args=(other, *args), daemon=True)
        self._process.start()
        other.close()
        with self._peak() as self._loading:
            self.facts = self._receive()

    def sample(self, case: EngineCase) -> Sample:
        """See :class:`~.peer.Contestant`."""
        if self._failed:
            raise ConfigError(self._failed)
        with self._peak() as peak:
            self._pipe.send(case)
            speed = self._receive()
        return Sample(
            speed,
            max(peak.value, self._loading.value),
            max(peak.resident, self._loading.resident),
        )

    def close(self) -> None:
        """End the process."""
        # After a failure it is gone, or about to be.
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join()
        self._pipe.close()

    def _peak(self) -> Peak:
        return Peak(self._process.pid or 0, _SECONDS)

    def _receive(self) -> Any:
        try:
            failed, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            self._failed = f"{self._label} stopped with code {self._process.exitcode}"
            raise ConfigError(self._failed) from None
        if failed:
            self._failed = f"{self._label} failed: {value}"
            raise ConfigError(self._failed)
        return value


def answer(
    pipe: Connection, start: Callable[[], tuple[dict[str, Any], Callable[[EngineCase], float]]]
) -> None:
    """The loop of a worker's process.

    Args:
        pipe: takes tests until None comes, and gives pairs of whether it failed, and what.
        start: makes and warms up the engine -> its facts, and what runs a test once and returns
            tokens per second.
    """
    try:
        facts, run = start()
        pipe.send((False, facts))
        while (case := pipe.recv()) is not None:
            pipe.send((False, run(case)))
    except Exception as error:
        pipe.send((True, f"{type(error).__name__}: {error}"))
