"""All engines on one file: sample by sample in turn, between readings of the bandwidth."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ..engine import EngineCase
from ..machine import machine_info, read_bandwidth
from .contents import Contents, contents
from .ours import OUR_LABEL
from .peer import Contestant, Peer, Sample, Setting

REPORT_SCHEMA = 2
REPORT_KIND = "peers"


def compare(
    model: Path, peers: Sequence[Peer], setting: Setting, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run all engines on one model -> the report as plain JSON types.

    Every round takes one sample of each test of each engine; the read bandwidth is measured
    before the first round and after every one. A test in which a peer fails is left out and the
    report says why; ours must not fail.

    Args:
        model: file or folder.
        peers: engines, ours first.
        setting: tests, threads and rounds.
        say: takes a line about what happens.

    Raises:
        ConfigError: ours failed.
    """
    held, load = contents(model), os.getloadavg()
    absent: dict[str, dict[str, str]] = {peer.label: {} for peer in peers}
    series: dict[tuple[str, EngineCase], list[Sample]] = {}
    with ExitStack() as stack:
        running: dict[str, Contestant] = {}
        for peer in peers:
            for case in setting.cases:
                if reason := peer.lacks(model, case):
                    absent[peer.label][case.title] = reason
                else:
                    series[peer.label, case] = []
            if not any(label == peer.label for label, _ in series):
                continue
            try:
                running[peer.label] = peer.open(model, setting)
            except ConfigError as error:
                for case in [case for label, case in series if label == peer.label]:
                    _drop(peer.label, case, error, series, absent, say)
            else:
                stack.callback(running[peer.label].close)
        bandwidth = [read_bandwidth(setting.threads)]
        for turn in range(setting.rounds):
            for case in setting.cases:
                for label, contestant in running.items():
                    if (label, case) not in series:
                        continue
                    try:
                        series[label, case].append(contestant.sample(case))
                    except ConfigError as error:
                        _drop(label, case, error, series, absent, say)
            bandwidth.append(read_bandwidth(setting.threads))
            say(f"{held.file}: round {turn + 1} of {setting.rounds}")
        facts = {label: contestant.facts for label, contestant in running.items()}
    return {
        "schema": REPORT_SCHEMA,
        "kind": REPORT_KIND,
        "machine": machine_info(),
        "load_average": load,
        "file": {**asdict(held), "bits": held.bits},
        "setting": asdict(setting),
        "bandwidth_gb_s": [value / 1e9 for value in bandwidth],
        "engines": {
            label: facts.get(label, {}) | _memory(label, series)
            for label in dict.fromkeys(label for label, _ in series)
        },
        "absent": {label: reasons for label, reasons in absent.items() if reasons},
        "rows": [_row(label, case, samples) for (label, case), samples in series.items()],
        "ratios": _ratios(series),
        "ceiling": _ceiling(held, bandwidth, series),
    }


def _drop(
    label: str,
    case: EngineCase,
    error: ConfigError,
    series: dict[tuple[str, EngineCase], list[Sample]],
    absent: dict[str, dict[str, str]],
    say: Callable[[str], None],
) -> None:
    """Leave out a test of an engine; raises the error when it is ours."""
    if label.split()[0] == OUR_LABEL:
        raise error
    say(f"left out: {case.title}: {error}")
    absent[label][case.title] = str(error)
    del series[label, case]


def _memory(label: str, series: dict[tuple[str, EngineCase], list[Sample]]) -> dict[str, int]:
    """Peaks of an engine over all samples."""
    samples = [s for (found, _), row in series.items() if found == label for s in row]
    return {
        "peak_anonymous": max(sample.anonymous for sample in samples),
        "peak_resident": max(sample.resident for sample in samples),
    }


def _row(label: str, case: EngineCase, samples: list[Sample]) -> dict[str, Any]:
    speeds = [sample.speed for sample in samples]
    return {
        "engine": label,
        "test": case.name,
        "batch": case.batch,
        "tok_s_median": statistics.median(speeds),
        "samples": speeds,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _ratios(series: dict[tuple[str, EngineCase], list[Sample]]) -> list[dict[str, Any]]:
    """Ours over each of the others, round by round."""
    out = []
    for (label, case), others in series.items():
        ours = series.get((OUR_LABEL, case))
        if label == OUR_LABEL or ours is None:
            continue
        pairs = zip(ours, others, strict=True)
        ratios = spread([a.speed / b.speed for a, b in pairs])
        out.append({"against": label, "test": case.name, "batch": case.batch, **ratios})
    return out


def _ceiling(
    held: Contents,
    bandwidth: Sequence[float],
    series: dict[tuple[str, EngineCase], list[Sample]],
) -> dict[str, Any]:
    """What reading the file's bytes allows at batch 1, and the share that each engine reaches.

    Each sample is compared with the mean of the readings before and after its round.
    """
    rounds = [(a + b) / 2 / held.read for a, b in itertools.pairwise(bandwidth)]
    shares = {
        label: spread([s.speed / most for s, most in zip(samples, rounds, strict=True)])
        for (label, case), samples in series.items()
        if case.kind == "tg" and case.batch == 1
    }
    return {"tok_s": spread(rounds), "shares": shares}
