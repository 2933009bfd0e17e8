"""What a folder of measurements holds, each file checked by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.errors import ResultFileError

from ..noise import ShareOf
from ..result import read_result
from ..samples import RunSamples, run_samples

_MOST_BYTES = 1 << 26
_FORMATS = ("bits", "megabytes", "prefill", "decode", "ppl", "kl", "top1")
_ACCURACY = ("kl_mean", "kl_p99", "top1", "ppl", "ppl_reference")


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """One file.

    Attributes:
        name: of the file.
        kind: what wrote it: ``serve``, ``sweep``, ``startup``, ``engine``, ``formats`` or
            ``accuracy``.
        model: what it tells of the model, in words.
        machine: what it was measured on, in words; "" where it tells nothing.
        samples: of a result of `bench`, None for the last two kinds.
        rows: figures by name, of each format or of the one judgement; empty for other kinds.
    """

    name: str
    kind: str
    model: str
    machine: str = ""
    samples: RunSamples | None = None
    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def figures(self) -> dict[str, float]:
        """Every figure of the samples, computed from them."""
        found = self.samples.figures if self.samples else {}
        return {
            name: float(f.statistic.taken(np.arange(f.statistic.count)[None])[0])
            for name, f in found.items()
            if f.statistic.count
        }

    def values(self, name: str) -> list[float]:
        """Samples of a mean, in their order; none where there is no such figure."""
        figure = self.samples.figures.get(name) if self.samples else None
        statistic = figure.statistic if figure else None
        return statistic.over_N.tolist() if isinstance(statistic, ShareOf) else []


def collect(folder: Path) -> tuple[list[MeasuredFile], list[tuple[str, str]]]:
    """The measurements of a folder by name, and which files are left out and why.

    Raises:
        ResultFileError: the folder cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise ResultFileError(f"cannot read {folder}: {error.strerror or error}") from error
    found, left_out = [], []
    for path in paths:
        try:
            found.append(_file(path))
        except ResultFileError as error:
            left_out.append((path.name, error.message.removeprefix(f"{path}: ")))
    return found, left_out


def _file(path: Path) -> MeasuredFile:
    """One file. Raises ResultFileError."""
    other = _other_kind(path)
    if other is not None:
        return other
    result = read_result(path)
    model, machine = result["model"], result["machine"]
    about = [str(model.get(name)) for name in ("name", "format") if model.get(name)]
    gpus = machine.get("gpus")
    parts = [str(machine.get("cpu", "")), f"{machine.get('cores')} cores"]
    parts += [str(gpu) for gpu in gpus] if isinstance(gpus, list) else []
    return MeasuredFile(
        path.name,
        result["kind"],
        ", ".join(about),
        f"{', '.join(parts)}; halfbyte {machine.get('halfbyte')}, {machine.get('git') or 'no git'}",
        run_samples(path, result),
    )


def _other_kind(path: Path) -> MeasuredFile | None:
    """What ``bench formats`` or ``accuracy`` wrote, which have no frame; None for anything else."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(found, list) and found and all(_has(row, _FORMATS, "format") for row in found):
        return MeasuredFile(path.name, "formats", "", rows=found)
    if isinstance(found, dict) and _has(found, _ACCURACY, "quantized"):
        about = f"{_last(found['quantized'])} beside {_last(str(found.get('reference')))}"
        return MeasuredFile(path.name, "accuracy", about, rows=(found,))
    return None


def _has(row: Any, numbers: Sequence[str], text: str) -> bool:
    """Whether an entry has these finite numbers, and that text."""
    if not isinstance(row, dict) or not isinstance(row.get(text), str):
        return False
    values = [row.get(name) for name in numbers]
    return all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
