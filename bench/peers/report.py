"""The tables of a comparison, of one report or of many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ..table import markdown_table
from .compare import REPORT_KIND, REPORT_SCHEMA
from .ours import OUR_LABEL

PeerReport = dict[str, Any]


def read_report(path: Path) -> PeerReport:
    """A report that an earlier run wrote. Raises ConfigError when the file is something else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    found = (report.get("kind"), report.get("schema")) if isinstance(report, dict) else None
    if found != (REPORT_KIND, REPORT_SCHEMA):
        raise ConfigError(
            f"{path} has kind and schema {found}; expected {(REPORT_KIND, REPORT_SCHEMA)}"
        )
    return report


def write_report(folder: Path, report: PeerReport) -> Path:
    """Write a report into a folder, named after its model."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report['file']['file'].removesuffix('.gguf')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def tables(reports: Sequence[PeerReport]) -> str:
    """Speeds, what the files hold, and shares of the ceiling with memory, as markdown."""
    parts = [_speeds(reports), _files(reports), _shares(reports)]
    notes = list(dict.fromkeys(_notes(reports)))
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _speeds(reports: Sequence[PeerReport]) -> str:
    """Tokens per second, median and range, and the ratios of ours to the others."""
    labels = _labels(reports)
    others = labels[1:]
    heads = ["file", "test", *labels, *(f"against {label}" for label in others)]
    lines = []
    for report in reports:
        rows = {(r["engine"], r["test"], r["batch"]): r["samples"] for r in report["rows"]}
        ratios = {(r["against"], r["test"], r["batch"]): r for r in report["ratios"]}
        medians = {(r["engine"], r["test"], r["batch"]): r["tok_s_median"] for r in report["rows"]}
        for test, batch in dict.fromkeys((r["test"], r["batch"]) for r in report["rows"]):
            title = test + (f" b{batch}" if batch > 1 else "")
            line = [_name(report), title]
            for label in labels:
                key = label, test, batch
                line.append(_range(medians[key], rows[key], _speed) if key in rows else "")
            for label in others:
                ratio = ratios.get((label, test, batch))
                low_high = [ratio["low"], ratio["high"]] if ratio else []
                line.append(_range(ratio["median"], low_high, _ratio) if ratio else "")
            lines.append(line)
    return markdown_table(heads, lines, right=heads[2:])


def _files(reports: Sequence[PeerReport]) -> str:
    """What each file holds by bytes, what a token must read of it, and reads as we pack it."""
    heads = ["file", "size", "bits a weight", "holds, by bytes", "a token reads", "as packed"]
    lines = []
    for report in reports:
        held = report["file"]
        packed = report["engines"][OUR_LABEL].get("packed_bytes_read_by_token")
        kinds = [f"{label} {_percent(size / held['nbytes'])}" for label, size in _types(held)]
        lines.append(
            [
                _name(report),
                f"{held['nbytes'] / 1e6:.0f} MB",
                f"{held['bits']:.2f}",
                ", ".join(kinds),
                f"{held['read'] / 1e6:.0f} MB",
                f"{packed / 1e6:.0f} MB" if packed else "",
            ]
        )
    return markdown_table(heads, lines, right=[*heads[1:3], *heads[4:]])


def _shares(reports: Sequence[PeerReport]) -> str:
    """Share of the ceiling at batch 1, and peaks of memory, an engine a line."""
    heads = ["file", "reads, GB/s", "ceiling, t/s", "engine", "of ceiling"]
    heads += ["anonymous, MB", "resident, MB"]
    lines = []
    for report in reports:
        reads, ceiling = report["bandwidth_gb_s"], report["ceiling"]["tok_s"]
        for label, facts in report["engines"].items():
            share = report["ceiling"]["shares"].get(label)
            low_high = [share["low"], share["high"]] if share else []
            lines.append(
                [
                    _name(report),
                    f"{min(reads):.1f} to {max(reads):.1f}",
                    _speed(ceiling["median"]),
                    label,
                    _range(share["median"], low_high, _percent) if share else "",
                    *(_megabytes(facts[f"peak_{kind}"]) for kind in ("anonymous", "resident")),
                ]
            )
    return markdown_table(heads, lines, right=[*heads[1:3], *heads[4:]])


def _notes(reports: Sequence[PeerReport]) -> list[str]:
    """What could not be measured, and why."""
    return [
        f"- {label}, {test}, {_name(report)}: {reason}"
        for report in reports
        for label, reasons in report["absent"].items()
        for test, reason in reasons.items()
    ]


def _labels(reports: Sequence[PeerReport]) -> list[str]:
    """All engines, ours first."""
    found = [label for report in reports for label in report["engines"]]
    return list(dict.fromkeys([OUR_LABEL, *found]))


def _name(report: PeerReport) -> str:
    return report["file"]["file"].removesuffix(".gguf")


def _types(held: dict[str, Any]) -> list[tuple[str, int]]:
    """Types with at least half a percent of the bytes."""
    return [item for item in held["types"].items() if item[1] >= 0.005 * held["nbytes"]]


def _range(median: float, values: Sequence[float], show: Any) -> str:
    return f"{show(median)} ({show(min(values))} to {show(max(values))})"


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.0f}" if value else ""
