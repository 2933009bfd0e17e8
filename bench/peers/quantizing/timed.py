"""A command in a process of its own: how long it took, and the most memory it had."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Timed:
    """What a process used, with those of its children that it waited for.

    Attributes:
        user_s: processor seconds in the program, start and imports included.
        system_s: in the system.
        wall_s: by the clock.
        peak_rss: most resident bytes of one process, mapped files included.
        said: its last line of output, if that is JSON; else empty.
    """

    user_s: float
    system_s: float
    wall_s: float
    peak_rss: int
    said: dict[str, Any]


def timed(command: list[str], variables: dict[str, str], log: Path) -> Timed:
    """Run a command; all that it prints goes to ``log``.

    Raises:
        ConfigError: it failed, or there is no such command.
    """
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **variables},
            )
        except OSError as error:
            raise ConfigError(f"{command[0]} cannot be run: {error}") from None
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begin
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise ConfigError(f"{' '.join(command)} failed, see {log}: {text[-_TAIL:]}")
    return Timed(used.ru_utime, used.ru_stime, wall, used.ru_maxrss << 10, _last_json(text))


def _last_json(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    try:
        said = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
