"""``halfbyte bench serve``: what users of a server see, as ``vllm bench serve`` measures it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.errors import ConfigError, HalfbyteError

from . import options as opt
from .bench import JsonFile, writable
from .bench_serve_options import (
    FiguresAsked,
    RequestsAsked,
    ServerAsked,
    key_values,
    serve_plan,
)
from .console import INTERRUPT_EXIT, batch_bar, fit_markdown, note, warn

if TYPE_CHECKING:
    from ..bench.serve.load import LoadResult
    from ..bench.serve.run import ServePlan

_EVERY_S = 10.0
_REASONS = 5


@dataclass(frozen=True, slots=True)
class ResultAsked:
    """Where results go, ``json_file`` first; a parameter of this type stands for these options."""

    json_file: JsonFile = None
    save_result: Annotated[
        bool, typer.Option("--save-result", help="Write them under a name made of the flags.")
    ] = False
    result_dir: Annotated[
        Path | None, typer.Option("--result-dir", metavar="DIR", help="The folder of that file.")
    ] = None
    result_filename: Annotated[
        str | None, typer.Option("--result-filename", metavar="NAME", help="Its name instead.")
    ] = None
    save_detailed: Annotated[
        bool, typer.Option("--save-detailed", help="Keep the texts of the answers, too.")
    ] = False
    label: Annotated[
        str | None, typer.Option("--label", metavar="TEXT", help="Name of the run.")
    ] = None
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Kept in it; repeatable."),
    ] = None

    def facts(self) -> dict[str, str]:
        """Metadata by key.

        Raises:
            ConfigError: one is no ``KEY=VALUE``.
        """
        return key_values(self.metadata or (), "--metadata")

    def check(self) -> None:
        """Raises ConfigError for a file that cannot be written, before minutes are spent."""
        writable(self.json_file)
        self.facts()
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--result-dir {self.folder} is no folder")

    @property
    def folder(self) -> Path:
        """Where a file with a name of its own goes; made if need be."""
        return self.result_dir or Path()

    def write(self, result: Mapping[str, Any], name: str, table: str) -> None:
        """Write a result where it is wanted, and print its table or itself.

        Raises:
            ConfigError: a file cannot be written.
        """
        from ..bench.result import result_text, write_result

        if self.json_file == "-":
            print(result_text(result), end="")
        else:
            print(fit_markdown(table))
        targets = [Path(self.json_file)] if self.json_file not in (None, "-") else []
        if self.save_result or self.result_filename or self.result_dir:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"cannot make {self.folder}: {error.strerror}") from error
            targets.append(self.folder / (self.result_filename or name))
        for target in targets:
            write_result(target, result)
            note(f"wrote {target}")


@opt.flat
def serve(
    request_rate: Annotated[
        float,
        typer.Option("--request-rate", metavar="X", help="Requests per second; inf = all at once."),
    ] = math.inf,
    max_concurrency: Annotated[
        int | None,
        typer.Option("--max-concurrency", metavar="N", min=1, help="Most requests at once."),
    ] = None,
    *,
    server: ServerAsked,
    requests: RequestsAsked,
    figures: FiguresAsked,
    results: ResultAsked,
) -> None:
    """Send requests to a server and measure TTFT, TPOT, ITL, E2EL and throughput.

    Options and keys of the JSON are those of `vllm bench serve`. Tokens are counted by the
    server's usage. Ctrl-C ends the run and keeps what was measured.
    """
    results.check()
    server.address()
    plan = serve_plan(server, requests, figures, request_rate, max_concurrency)
    from ..bench.result import new_result
    from ..bench.serve import run

    with server.running() as (target, identity):
        found, measured = measured_run(target, plan)
    keys = run.vllm_keys(plan, found, measured, results.label)
    if results.save_detailed:
        keys["generated_texts"] = [sample.text for sample in measured.samples]
    result = new_result(
        "serve",
        model=identity or {"name": found.model},
        flags={**run.plan_flags(plan), "serve_args": server.serve_args},
        seed=requests.seed,
        figures={**keys, "metadata": results.facts()},
        server=run.server_facts(target, found),
    )
    name = run.result_name(keys, datetime.now())
    results.write(result, name, run.serve_table(keys, plan.percentiles))
    settle([measured])


def measured_run(target: Any, plan: ServePlan) -> tuple[Any, LoadResult]:
    """A run with a bar on stderr.

    Raises:
        ConfigError: nobody listens there.
    """
    from ..bench.serve.run import measure_serving

    with batch_bar(plan.workload.num_prompts, "requests", every_s=_EVERY_S) as bar:

        def progress(done: int, failed: int, tokens: int) -> None:
            bar.update(done, tokens, f" | {failed} failed" if failed else "")

        return measure_serving(target, plan, warn, progress)


def settle(runs: Sequence[LoadResult]) -> None:
    """Say what failed, and end the command as it went.

    Raises:
        HalfbyteError: not one request was answered.
    """
    samples = [sample for run in runs for sample in run.samples]
    failed = Counter(sample.error for sample in samples if sample.error)
    for reason, count in failed.most_common(_REASONS):
        warn(f"{count} of {len(samples)} requests failed: {reason}")
    if len(failed) > _REASONS:
        warn(f"and {failed.total()} failed in all, for {len(failed)} reasons")
    if any(run.interrupted for run in runs):
        raise typer.Exit(INTERRUPT_EXIT)
    if failed and failed.total() == len(samples):
        raise HalfbyteError("no request was answered", hint="see the reasons above")
