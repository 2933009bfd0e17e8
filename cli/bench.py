"""``halfbyte bench``: ``engine``, the table that llama-bench users know, and ``codegen``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as opt
from .console import fit_markdown, is_terminal, note, terminal_width
from .loading import open_engine

if TYPE_CHECKING:
    from ..bench.engine import Report

JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write all figures; - = stdout instead."),
]


@opt.flat
def engine(
    model: opt.ModelOption = "smollm2",
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="N,..", help="Prompt lengths; 0 = none.")
    ] = "512",
    generate: Annotated[
        str, typer.Option("--generate", "-n", metavar="N,..", help="Answer lengths; 0 = none.")
    ] = "128",
    batch: Annotated[
        str, typer.Option("--batch", "-b", metavar="N,..", help="Sequences decoded at once.")
    ] = "1",
    depth: Annotated[
        str, typer.Option("--depth", "-d", metavar="N,..", help="Tokens of context before a test.")
    ] = "0",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", metavar="N", help="Samples of each test.")
    ] = 5,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write all samples too; - = stdout instead."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the random prompts.")] = 0,
    *,
    made_with: opt.EngineFlags,
) -> None:
    """Measure prefill (pp) and decode (tg) in tokens per second, mean ± standard deviation.

    The last column is the share of the measured memory bandwidth that decoding reached.
    """
    lengths = numbers(prompt, "--prompt"), numbers(generate, "--generate")
    batches, depths = numbers(batch, "--batch"), numbers(depth, "--depth")
    options = made_with.fields()
    target = writable(json_file)
    # Known to be wanted and well-formed from here on: the first import of torch is below.
    from ..bench.engine import BenchPlan, run_bench
    from ..bench.table import compact, markdown

    prompts, generates = (tuple(n for n in some if n) for some in lengths)
    plan = BenchPlan(prompts, generates, batches, depths, repetitions, seed)
    with open_engine(model, {**options, **plan.engine_options()}) as running:
        from ..loaders.store.model_store import resolve_model

        report = run_bench(running, resolve_model(model), plan, note)
    if json_file == "-":
        print(_json(report), end="")
        return
    if target is not None:
        write(target, _json(report))
    table = markdown(report)
    if is_terminal(sys.stdout) and terminal_width() < table.find("\n"):
        table = compact(report)
    print(fit_markdown(table))
    note(f"read bandwidth {report.bandwidth / 1e9:.1f} GB/s with {report.threads} threads")
    if any(row.bandwidth_share is not None for row in report.rows):
        # Reading the weights is all that a step of one row cannot do without.
        note(
            "of bandwidth, decode of one sequence: from 70% on memory is the limit, which is good; "
            "below 50% something else is: other programs, too few threads, a very small model. "
            "Larger batches share one reading of the weights, so their share falls as t/s rises"
        )
    cache = report.machine.get("cache_mib", 0)
    if report.step_bytes < cache << 20:
        note(f"the weights fit into the processor's {cache} MiB cache: a share can pass 100% here")


def codegen(
    arch: Annotated[
        str, typer.Option("--arch", metavar="NAME,..", help="Such as sm_90; all when not given.")
    ] = "",
    kernel: Annotated[
        str, typer.Option("--kernel", metavar="NAME,..", help="Such as fused; all when not given.")
    ] = "",
    json_file: JsonFile = None,
    check: Annotated[bool, typer.Option("--check", help="Compare with the budget.")] = False,
) -> None:
    """Compile the shipped kernels, without a GPU, and count registers and instructions.

    Kernels that do not compile or that exceed their limits are refused.
    """
    target = writable(json_file)
    from halfbyte.errors import HalfbyteError

    from ..bench.codegen import CodegenPlan, failures, run_codegen, table

    report = run_codegen(CodegenPlan(names(arch), names(kernel)))
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    print(text if json_file == "-" else fit_markdown(table(report.rows)) + "\n", end="")
    if target is not None:
        write(target, text)
    if problems := failures(report, check):
        raise HalfbyteError("\n".join(problems))


def names(text: str) -> tuple[str, ...]:
    """``a, b`` as ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str, option: str) -> tuple[int, ...]:
    """``1,8`` as (1, 8). Raises a usage error that names the option."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (-1,)
    if min(values) < 0:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 1,8", param_hint=option
        )
    return values


def writable(file: str | None, option: str = "--json") -> Path | None:
    """The file to write, checked before minutes are spent. Raises ConfigError."""
    if file is None or file == "-":
        return None
    from halfbyte.errors import ConfigError

    path = Path(file)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"cannot write {option} {file}: "
            + ("it is a folder" if path.is_dir() else "its folder does not exist")
        )
    return path


def write(path: Path, text: str, option: str = "--json") -> None:
    """Raises ConfigError when the file cannot be written."""
    from halfbyte.errors import ConfigError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {option} {path}: {error.strerror or error}") from error


def _json(report: Report) -> str:
    return json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n"
