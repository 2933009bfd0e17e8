"""``halfbyte tune``: time configurations on this machine's GPU and keep the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import OnProgress, progress_bar
from .explain import local_device

if TYPE_CHECKING:
    from ..kernels.device.gpus import Device
    from ..kernels.tables.measure import Bench
    from ..kernels.tables.tuning import TunedProblem
    from ..loaders.base import Checkpoint

_LEAST_GAIN = 0.98


def tune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ] = "smollm2",
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Activations in float16 instead of bfloat16.")
    ] = False,
    max_rows: Annotated[
        int, typer.Option("--max-rows", min=1, metavar="M", help="Largest number of rows timed.")
    ] = 512,
    again: Annotated[
        bool, typer.Option("--again", help="Also time what the table has already.")
    ] = False,
    gpu: Annotated[
        str,
        typer.Option("--gpu", metavar="NAME", help="Time nothing: count what this one would."),
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Table to write; default: yours.")
    ] = None,
) -> None:
    """Write the fastest configurations of a model's layers to your table.

    Needs a GPU that nothing else uses. Each entry is kept as soon as it is found: interrupt at
    any time, and go on with the same command.
    """
    from halfbyte.errors import ConfigError

    from ..kernels.device.gpus import gpu as find_gpu
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import cache_root, resolve_model

    path = resolve_model(model)
    device = find_gpu(gpu) if gpu else local_device()
    if device is None:
        raise ConfigError(
            "tuning needs a CUDA GPU, and torch sees none",
            hint="run `halfbyte doctor`; `halfbyte explain` works without a GPU",
        )
    from ..kernels.tables import table_name, tunings
    from ..kernels.tables.measure import Bench

    checkpoint = open_checkpoint(path)
    try:
        todo = problems(checkpoint, device, fp16, max_rows)
    finally:
        checkpoint.close()
    if not todo:
        names = ", ".join(tunings())
        raise ConfigError(
            f"{path} has no weights of a kind that takes tables ({names}): nothing to tune",
            hint="`halfbyte explain` shows what runs",
        )
    target = cache_root() / "tables" / table_name(device) if out is None else out
    if gpu:
        plan = pending(todo, target, again)
        count = sum(len(values) for _, values in plan)
        print(f"{device.name}: {len(plan)} entries to time, {count} configurations; {target}")
        return
    with progress_bar(f"tuning {model}", unit="steps") as progress:
        done, kept = tune_all(todo, device, target, Bench, again=again, progress=progress)
    print(f"{target}: {done} entries timed, {kept} were there already")


def problems(
    checkpoint: Checkpoint, device: Device, fp16: bool, max_rows: int = 512
) -> list[TunedProblem]:
    """The problems of a model that tables know, each once, those of one weight size together."""
    from ..engine.advise.products import groups
    from ..kernels.kind import BUCKETS, Conditions

    where = Conditions(device, fp16)
    found = dict.fromkeys(linear.problem(1, where) for linear, _ in groups(checkpoint))
    buckets = [m for m in BUCKETS if m <= max(max_rows, BUCKETS[0])]
    return [replace(size, m=m) for size in found if size is not None for m in buckets]


def pending(
    todo: Sequence[TunedProblem], target: Path, again: bool = False
) -> list[tuple[TunedProblem, list[dict[str, Any]]]]:
    """The problems that a table has no entry of, or all ``again``, with what is worth timing.

    Raises ConfigError when the table cannot be read.
    """
    from ..kernels.tables import read_table, tunings

    table = read_table(target)
    there = set() if table is None or again else set(table.entries)
    how = tunings()
    return [(p, how[p.kind].candidates(p)) for p in todo if how[p.kind].table_key(p) not in there]


def tune_all(
    todo: Sequence[TunedProblem],
    device: Device,
    target: Path,
    make_bench: Callable[[TunedProblem], Bench],
    *,
    again: bool = False,
    progress: OnProgress = lambda done, total: None,
) -> tuple[int, int]:
    """Time problem after problem, each written at once; (timed, there already).

    ``make_bench`` is called once for each weight size. Raises ConfigError when the table cannot
    be read or written, or when memory is short.
    """
    from ..kernels.tables import entry, write_entry

    plan = pending(todo, target, again)
    total = sum(len(values) for _, values in plan)
    steps, size, bench = 0, None, None
    progress(0, total)
    for problem, values in plan:
        if bench is None or replace(problem, m=1) != size:
            bench = None  # The old copies must go before the new ones are made.
            size, bench = replace(problem, m=1), make_bench(problem)

        def step() -> None:
            nonlocal steps
            steps += 1
            progress(steps, total)

        best, us, formula_us = fastest(problem, values, bench, step)
        write_entry(target, device, entry(problem, best, us, formula_us))
    return len(plan), len(todo) - len(plan)


def fastest(
    problem: TunedProblem,
    values: Iterable[dict[str, Any]],
    bench: Bench,
    step: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], float, float]:
    """(values, microseconds, the formula's microseconds); the first candidate is the formula's.

    Another one must be faster by more than what timing scatters. Raises ConfigError when the
    formula's own configuration does not run.
    """
    from halfbyte.errors import ConfigError

    first, *others = values
    timing = bench.time(problem, first, None)
    if timing.us is None:
        raise ConfigError(f"the kernel {first} cannot be timed: {timing.problem}")
    like, formula_us = timing.result, timing.us
    best, us = first, formula_us
    step()
    for candidate in others:
        timing = bench.time(problem, candidate, like)
        limit = formula_us * _LEAST_GAIN if best is first else us
        if timing.us is not None and timing.us < limit:
            best, us = candidate, timing.us
        step()
    return best, us, formula_us
