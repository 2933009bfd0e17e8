"""``bench startup``: how long it takes from nothing to a first token, in fresh processes.

The phases of a run follow each other without a gap:

- ``process``: from starting the process until Python runs its first line of ours;
- ``import``: of the engine, torch among it;
- ``load``: making the engine, from opening the file to ready;
- ``first token``: of a short prompt;
- ``total``: all of them.

``next first token`` is that of a second prompt, for comparison, and in no total. What the engine
itself tells of loading is kept beside the runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.errors import EngineDeadError, HalfbyteError

from .process_memory import forget

_PROMPTS = ("Once upon a time", "The sky is")
PHASES = ("process", "import", "load", "first token", "total", "next first token")
"""Names of what a run has in seconds."""


@dataclass(slots=True)
class StartupRuns:
    """What was measured.

    Attributes:
        runs: seconds by phase, of each run.
        details: seconds of each part of loading by the engine's own names, of each run.
        interrupted: ctrl-C came before all runs were done.
    """

    runs: list[dict[str, float]] = field(default_factory=list)
    details: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False


def measure_startup(
    model: Path,
    options: Mapping[str, Any],
    count: int,
    files: tuple[Path, ...] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> StartupRuns:
    """Start ``count`` processes one after another; ctrl-C ends that early.

    Args:
        model: file or folder.
        options: of the engine.
        count: runs.
        files: what the system is asked to drop from its cache before each run.
        progress: told how many runs are done.

    Raises:
        EngineDeadError: a process ended with an error.
    """
    found = StartupRuns()
    try:
        for number in range(count):
            for path in files:
                with path.open("rb") as file:
                    forget(file)
            run, details = _run(model, options)
            found.runs.append(run)
            found.details.append(details)
            progress(number + 1)
    except KeyboardInterrupt:
        found.interrupted = True
    return found


def _run(model: Path, options: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one start. Raises EngineDeadError."""
    asked = {"model": str(model), "options": dict(options)}
    command = [sys.executable, "-m", "halfbyte.bench.startup"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, json.dumps(asked | {"begun": begun})], capture_output=True, text=True
    )
    answer: Any = None
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(done.stdout.splitlines()[-1])
    if not isinstance(answer, dict) or done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        raise EngineDeadError(
            f"starting {model.name} ended with status {done.returncode}: {last[:300]}",
            hint=f"`halfbyte generate -m {model} hello` may tell more",
        )
    return answer["run"], answer["details"]


def startup_table(found: StartupRuns) -> str:
    """A line for each phase, as markdown."""
    from .table import markdown_table

    rows = []
    for name in PHASES:
        seconds = [run[name] for run in found.runs]
        numbers = (statistics.median(seconds), min(seconds), max(seconds))
        rows.append((name, *(f"{number:.3f}" for number in numbers)))
    heads = ("phase s", "median", "lowest", "highest")
    return markdown_table(heads, rows, heads[1:])


def child(asked: Mapping[str, Any], first_line: float) -> dict[str, Any]:
    """Start an engine in this process, and what that took.

    Args:
        asked: model, options of the engine, and the clock (``time.monotonic``) at the beginning.
        first_line: the same clock when this process ran its first line.

    Raises:
        HalfbyteError: the model cannot be loaded or run.
    """
    times = [asked["begun"], first_line]
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams

    times.append(time.monotonic())
    with Engine(asked["model"], **asked["options"]) as engine:
        times.append(time.monotonic())
        one = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        for prompt in _PROMPTS:
            engine.generate([prompt], one)
            times.append(time.monotonic())
        details = dict(engine.startup)
    *phases, again = (b - a for a, b in itertools.pairwise(times))
    run = dict(zip(PHASES, (*phases, sum(phases), again), strict=True))
    return {"run": run, "details": details}


def main(first_line: float) -> None:
    """The process that starts: its order is an argument, its answer the last line of stdout."""
    try:
        print(json.dumps(child(json.loads(sys.argv[1]), first_line)))
    except HalfbyteError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(time.monotonic())
