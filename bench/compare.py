"""``bench compare``: two results as ratios, with the band that noise alone would explain.

The bands of all lines together hold with 95 %: each is taken at 0.05 divided by their number. What
they cover is the noise within the two runs. What differs from one start of a server to the next, or
between a cool and a warm machine, is in no sample of theirs; ``tolerance`` is for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halfbyte.errors import ResultFileError

from .noise import RatioBand, ratio_band
from .result import read_result
from .samples import FigureSamples, run_samples
from .table import markdown_table

_CHANCE = 0.05
_SAME_MACHINE = ("cpu", "cores", "gpus")
# Part of the flags that decide which requests are sent, and when.
_REQUESTS = ("workload", "arrivals", "form")
Verdict = Literal["worse", "better", "same", "?"]


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of both results.

    Attributes:
        name: of the figure.
        band: both values, and the band of their ratio.
        verdict: ``worse`` and ``better`` are beyond noise; ``?`` where there are too few samples.
    """

    name: str
    band: RatioBand
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two results say of each other.

    Attributes:
        figures: that both have.
        missing: names of those that only one has.
        differs: what else is different, a line each.
        failed: requests that failed, of the first and the second, as shares.
        paired: whether samples were compared request by request.
    """

    figures: list[ComparedFigure]
    missing: list[str]
    differs: list[str]
    failed: tuple[float, float]
    paired: bool

    @property
    def regressions(self) -> list[str]:
        """What got worse beyond noise."""
        worse = [figure.name for figure in self.figures if figure.verdict == "worse"]
        return worse + ["failed requests"] * (self.failed[1] > self.failed[0])


def compare_results(
    before: Path, after: Path, *, tolerance: float = 0.0, across_machines: bool = False
) -> Comparison:
    """Compare two files.

    Args:
        before: the first result.
        after: the second one.
        tolerance: share of a figure by which it may be worse without being called so.
        across_machines: compare what different machines measured, too.

    Raises:
        ResultFileError: a file cannot be used, they are of different kinds, of different machines
            without ``across_machines``, or have no figure in common.
    """
    first, second = read_result(before), read_result(after)
    if first["kind"] != second["kind"]:
        raise ResultFileError(
            f"{before} is of `bench {first['kind']}` and {after} of `bench {second['kind']}`; "
            "expected two of one kind"
        )
    machines = _machine_differences(first, second)
    if machines and not across_machines:
        raise ResultFileError(
            f"{before} and {after} were measured on different machines: {'; '.join(machines)}",
            hint="give --across-machines to compare them all the same",
        )
    ones, others = run_samples(before, first), run_samples(after, second)
    common = [name for name in ones.figures if name in others.figures]
    if not common:
        raise ResultFileError(f"{before} and {after} have no figure in common")
    paired = _same_requests(first, second)
    figures = [
        _compared(name, ones.figures[name], others.figures[name], len(common), paired, tolerance)
        for name in common
    ]
    alone = ones.figures.keys() ^ others.figures.keys()
    return Comparison(
        figures,
        missing=[name for name in (*ones.figures, *others.figures) if name in alone],
        differs=[*machines, *_differences(first, second)],
        failed=(ones.failed / max(ones.requests, 1), others.failed / max(others.requests, 1)),
        paired=paired,
    )


def comparison_table(found: Comparison) -> str:
    """A line for each figure, as markdown within 80 columns."""
    rows = []
    for figure in found.figures:
        band = figure.band
        ratio = "" if band.ratio is None else f"{band.ratio:.3f}"
        ends = "" if band.low is None else f"{band.low:.3f} to {band.high:.3f}"
        values = (f"{band.before:.4g}", f"{band.after:.4g}")
        rows.append((figure.name, *values, ratio, ends, figure.verdict))
    if any(found.failed):
        rows.append(("failed requests", *(f"{share:.1%}" for share in found.failed), "", "", ""))
    heads = ("figure", "A", "B", "B/A", "noise", "verdict")
    return markdown_table(heads, rows, heads[1:5])


def _compared(
    name: str,
    one: FigureSamples,
    other: FigureSamples,
    lines: int,
    paired: bool,
    tolerance: float,
) -> ComparedFigure:
    together = paired and one.statistic.count == other.statistic.count
    band = ratio_band(one.statistic, other.statistic, chance=_CHANCE / lines, paired=together)
    verdict: Verdict = "same"
    if band.low is None or band.high is None:
        verdict = "?"
    elif band.high < 1 / (1 + tolerance):
        verdict = "worse" if one.better == "higher" else "better"
    elif band.low > 1 + tolerance:
        verdict = "better" if one.better == "higher" else "worse"
    return ComparedFigure(name, band, verdict)


def _same_requests(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether both runs sent the same requests in the same order, and the same ones failed."""
    if first["kind"] != "serve":
        return False
    flags = [{name: found["flags"].get(name) for name in _REQUESTS} for found in (first, second)]
    failed = [[bool(error) for error in found["errors"]] for found in (first, second)]
    return flags[0] == flags[1] and failed[0] == failed[1]


def _machine_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What tells the machines apart that were measured."""
    pairs = [
        (name, *(found["machine"].get(name) for found in (first, second))) for name in _SAME_MACHINE
    ]
    pairs.append(("server", _host(first), _host(second)))
    return [f"{name} is {_short(a)} and {_short(b)}" for name, a, b in pairs if a != b]


def _host(found: Mapping[str, Any]) -> str:
    """Where the server ran."""
    server = _server(found)
    if server.get("local", True):
        return "the machine itself"
    return str(server.get("url")).partition("://")[2]


def _server(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the server; nothing where there was none."""
    server = found.get("server")
    return server if isinstance(server, dict) else {}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Facts and flags that differ, apart from those that tell machines apart."""
    facts = [
        {
            **{f"machine.{k}": v for k, v in found["machine"].items() if k not in _SAME_MACHINE},
            **dict(_leaves("model", found["model"])),
            **dict(_leaves("flags", found["flags"])),
            "server.version": _server(found).get("version"),
        }
        for found in (first, second)
    ]
    names = [*facts[0], *(name for name in facts[1] if name not in facts[0])]
    return [
        f"{name} is {_short(facts[0].get(name))} and {_short(facts[1].get(name))}"
        for name in names
        if facts[0].get(name) != facts[1].get(name)
    ]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
