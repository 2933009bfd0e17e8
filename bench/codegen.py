"""``bench codegen``: what the compiler makes of every shipped kernel, without any GPU.

    python -m halfbyte.bench.codegen --arch sm_90 --kernel fused    a table
    python -m halfbyte.bench.codegen --check                        compare with the budget
    python -m halfbyte.bench.codegen --update                       write the budget

Instruction counts say what limits a kernel that memory should limit; they are no timings.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import ConfigError, HalfbyteError

from ..kernels.codegen.environment import compiling_environment
from ..kernels.codegen.report import VariantRow, measure, over_limits
from ..kernels.codegen.shipped import families, family_variants, unlisted
from ..kernels.codegen.targets import TARGETS, target
from .codegen_budget import UPDATE, check, granted_spills, save
from .machine import usable_cores


@dataclass(frozen=True, slots=True)
class CodegenPlan:
    """What to compile.

    Attributes:
        archs: names of targets; empty = all of them.
        kernels: prefixes of dotted kernel names; empty = all.
        limit: compile at most so many variants, spread over kernels and targets; 0 = all.
        jobs: processes; 0 = one for each usable core.
    """

    archs: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    limit: int = 0
    jobs: int = 0


@dataclass(frozen=True, slots=True)
class CompileJob:
    """One variant on one target, by names that another process can look up.

    Attributes:
        family: folder of the kernel.
        arch: target, such as ``sm_90``.
        kernel: the variant's dotted kernel name.
        config: the variant's configuration.
    """

    family: str
    arch: str
    kernel: str
    config: str

    def __str__(self) -> str:
        return f"{self.kernel} | {self.config} | {self.arch}"


@dataclass(frozen=True, slots=True)
class CodegenReport:
    """Figures of all variants that compiled, and messages about those that did not.

    Attributes:
        rows: figures, one row a variant and target.
        errors: messages, one a failure.
    """

    rows: tuple[VariantRow, ...]
    errors: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"rows": [row.to_dict() for row in self.rows], "errors": list(self.errors)}


def run_codegen(plan: CodegenPlan) -> CodegenReport:
    """Compile and count what ``plan`` names.

    In a process where kernels are interpreted (``TRITON_INTERPRET``) nothing can be compiled, so
    the work is done by a second process. Raises ConfigError for an unknown name in the plan and
    for a family that :mod:`halfbyte.kernels.codegen.shipped` does not list.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return _run_elsewhere(plan)
    jobs = find_jobs(plan)
    workers = min(plan.jobs or usable_cores(), max(1, len(jobs)))
    rows: list[VariantRow] = []
    errors: list[str] = []
    shows = sys.stderr.isatty()
    # Forked children would share Triton's compiler state with this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done, result in enumerate(pool.map(_measure, jobs), 1):
            (rows if isinstance(result, VariantRow) else errors).append(result)  # type: ignore[arg-type]
            if shows:
                print(f"\r{done}/{len(jobs)} compiled", end="", file=sys.stderr, flush=True)
    if shows:
        print(file=sys.stderr)
    return CodegenReport(tuple(rows), tuple(errors))


def find_jobs(plan: CodegenPlan) -> list[CompileJob]:
    """Everything that the plan asks for, in the order of families and targets.

    Raises:
        ConfigError: the plan names no known kernel or target, or a family is not listed.
    """
    if not plan.kernels and (extra := unlisted()):
        raise ConfigError(
            f"kernel families {', '.join(extra)} have variants but are not listed",
            hint="add them to OTHERS in kernels/codegen/shipped.py",
        )
    targets = [target(name) for name in plan.archs or TARGETS]
    jobs = [
        CompileJob(family, on.name, v.kernel, v.config)
        for family in families()
        if not plan.kernels or _near(family, plan.kernels)
        for on in targets
        for v in family_variants(family, on)
    ]
    for prefix in plan.kernels:
        if not any(_named(job, (prefix,)) for job in jobs):
            known = ", ".join(dict.fromkeys([*families(), *(job.kernel for job in jobs)]))
            raise ConfigError(f"no kernel is called {prefix!r}; known: {known}")
    if plan.kernels:
        jobs = [job for job in jobs if _named(job, plan.kernels)]
    return _spread(jobs, plan.limit) if plan.limit else jobs


def _near(family: str, prefixes: Sequence[str]) -> bool:
    """Whether a family can hold a kernel of these prefixes: kernels are named after theirs."""
    return any(
        f"{p}.".startswith(f"{family}.") or f"{family}.".startswith(f"{p}.") for p in prefixes
    )


def _named(job: CompileJob, prefixes: Sequence[str]) -> bool:
    return any(job.kernel == p or job.kernel.startswith(p + ".") for p in prefixes)


def _spread(jobs: Sequence[CompileJob], limit: int) -> list[CompileJob]:
    """At most ``limit`` jobs: kernels in turn, each time on another target and configuration."""
    kernels: dict[str, dict[str, list[CompileJob]]] = {}
    for job in jobs:
        kernels.setdefault(job.kernel, {}).setdefault(job.arch, []).append(job)
    chosen: dict[CompileJob, None] = {}
    for turn in range(len(jobs) * len(TARGETS)):
        for number, by_arch in enumerate(kernels.values()):
            archs = list(by_arch)
            some = by_arch[archs[(number + turn) % len(archs)]]
            chosen[some[(number + turn // len(archs)) % len(some)]] = None
            if len(chosen) >= min(limit, len(jobs)):
                return list(chosen)
    return list(chosen)


def _measure(job: CompileJob) -> VariantRow | str:
    on = target(job.arch)
    try:
        variant = next(
            v
            for v in family_variants(job.family, on)
            if (v.kernel, v.config) == (job.kernel, job.config)
        )
        return measure(variant, on)
    # Compiler errors are of many types, and one must not hide the other figures.
    except Exception as error:
        return f"{job}: {type(error).__name__}: {str(error).strip()[:2000]}"


def _run_elsewhere(plan: CodegenPlan) -> CodegenReport:
    """The same in a separate process, where kernels are compiled."""
    command = [sys.executable, "-m", "halfbyte.bench.codegen", "--json", "-"]
    for option, values in (("--arch", plan.archs), ("--kernel", plan.kernels)):
        if values:
            command += [option, ",".join(values)]
    command += ["--limit", str(plan.limit), "--jobs", str(plan.jobs)]
    environment = compiling_environment()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if not done.stdout.startswith("{"):
        raise ConfigError(f"compiling failed with exit code {done.returncode}; see above")
    read = json.loads(done.stdout)
    return CodegenReport(tuple(VariantRow(**row) for row in read["rows"]), tuple(read["errors"]))


_HEADS = (
    *("kernel", "config", "arch", "regs", "spill", "shared KB"),
    *("loop", "per weight", "I2F", "STS", "LDGSTS", "BAR", "tensor core"),
    *("waits", "fences", "MEMBAR"),
)


def table(rows: Iterable[VariantRow]) -> str:
    """One line a variant, as markdown."""
    cells = [_HEADS, tuple("---" for _ in _HEADS)]
    for r in rows:
        each = f"{r.instructions_per_weight:.2f}" if r.instructions_per_weight else ""
        shared = f"{r.shared_bytes / 1024:.1f}"
        figures = (r.registers, r.spill_bytes, shared, r.loop_instructions, each)
        counts = (r.i2f, r.sts, r.ldgsts, r.bar, r.tensor_core, r.wgmma_waits, r.fences, r.membars)
        cells.append((r.kernel, r.config, r.arch, *map(str, figures), *map(str, counts)))
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADS))]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    )


def failures(report: CodegenReport, with_budget: bool) -> list[str]:
    """Everything that the gate objects to, one line each."""
    found = [*report.errors]
    for row in report.rows:
        problems = over_limits(row, granted_spills(row) if with_budget else 0)
        problems += check(row) if with_budget else []
        found += [f"{row.kernel} | {row.config} | {row.arch}: {p}" for p in problems]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of ``python -m halfbyte.bench.codegen``; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m halfbyte.bench.codegen", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arch", default="", help="targets, by commas; all by default")
    parser.add_argument("--kernel", default="", help="prefixes of kernel names, by commas")
    parser.add_argument("--json", metavar="FILE", help="write all figures; - = stdout instead")
    parser.add_argument("--limit", type=int, default=0, help="compile a sample of so many")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 = all cores")
    parser.add_argument("--check", action="store_true", help="compare with the budget")
    parser.add_argument("--update", action="store_true", help="write the budget")
    args = parser.parse_args(argv)
    plan = CodegenPlan(_names(args.arch), _names(args.kernel), args.limit, args.jobs)
    try:
        report = run_codegen(plan)
    except HalfbyteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = json.dumps(report.to_dict(), indent=1)
    if args.json == "-":
        print(text)
    else:
        print(table(report.rows))
    if args.json not in (None, "-"):
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    if args.update:
        if args.limit:
            print(f"error: a sample cannot be a budget; {UPDATE}", file=sys.stderr)
            return 1
        good = [row for row in report.rows if not over_limits(row, row.spill_bytes)]
        for path in save(good, plan.kernels, plan.archs):
            print(f"wrote {path}", file=sys.stderr)
    problems = failures(report, args.check)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


if __name__ == "__main__":
    sys.exit(main())
