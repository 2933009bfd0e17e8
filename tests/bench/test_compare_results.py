"""Results compared: what is worse, what is not comparable, and files that are damaged."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.bench.compare import compare_results, comparison_table
from halfbyte.bench.result import read_result, write_result
from halfbyte.bench.samples import run_samples
from halfbyte.bench.serve.figures import serve_figures
from halfbyte.bench.serve.load import LoadResult, RequestSample
from halfbyte.errors import ConfigError, ResultFileError

MACHINE = {"cpu": "A", "cores": 2, "gpus": [], "torch": "2", "git": "abc"}


def drawn_load(
    draw: np.random.Generator, slower: float = 1.0, count: int = 60, failed: int = 0
) -> LoadResult:
    """Eight requests at a time, each of 20 tokens, with 10 % of noise."""
    samples, starts = [], np.zeros(8)
    for number in range(count):
        place = int(starts.argmin())
        ttft = slower * 0.2 * draw.normal(1, 0.1)
        gaps = (slower * 0.05 * draw.normal(1, 0.1, 19)).tolist()
        start, latency = float(starts[place]), ttft + sum(gaps)
        starts[place] += latency
        error = "429" if number < failed else ""
        samples.append(
            RequestSample(start, 0.0, 30, 0 if error else 20, ttft, gaps, latency, "", error)
        )
    return LoadResult(samples, float(starts.max()))


def result(load: LoadResult, **more: Any) -> dict[str, Any]:
    limits = {"ttft": 230.0}
    return {
        "schema": 1,
        "kind": "serve",
        "machine": dict(MACHINE),
        "server": {"url": "http://127.0.0.1:1", "local": True, "version": "1"},
        "model": {"name": "m", "sha256": "x", "format": "Q4_0"},
        "flags": {"workload": {"seed": 0}, "limits_ms": limits},
        **serve_figures(load, (99.0,), limits),
        **more,
    }


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(random.randrange(1 << 32))


def write(folder: Path, name: str, found: dict[str, Any]) -> Path:
    write_result(folder / name, found)
    return folder / name


def test_the_samples_give_the_figures_of_the_file(draw, tmp_path: Path) -> None:
    """What is compared is what the file says: throughputs by way of Little's law."""
    found = result(drawn_load(draw, failed=random.randint(0, 9)))
    samples = run_samples(tmp_path, found)
    assert len(samples.figures) == 11 and samples.failed == found["failed"]
    for name, figure in samples.figures.items():
        whole = figure.statistic.taken(np.arange(figure.statistic.count)[None])[0]
        if not name.startswith("p95"):
            assert whole == pytest.approx(found[name]), name


def test_a_slower_run_is_a_regression_and_a_faster_one_is_none(draw, tmp_path: Path) -> None:
    """A tenth slower with 10 % of noise in 60 requests is eight standard errors."""
    a = write(tmp_path, "a.json", result(drawn_load(draw)))
    b = write(tmp_path, "b.json", result(drawn_load(draw, slower=1.1)))
    worse, better = compare_results(a, b), compare_results(b, a)
    assert worse.paired and not worse.differs and not worse.missing
    assert {"output_throughput", "mean_ttft_ms", "mean_itl_ms", "mean_tpot_ms", "mean_e2el_ms"} <= {
        *worse.regressions
    }
    assert better.regressions == []
    assert {f.verdict for f in better.figures if f.name != "p95_ttft_ms"} <= {"better", "same"}
    assert compare_results(a, b, tolerance=0.5).regressions == []
    lines = comparison_table(worse).splitlines()
    assert len(lines) == 2 + 11 and max(map(len, lines)) <= 80 and "worse" in lines[3]
    assert compare_results(a, a).regressions == []


def test_more_failures_are_a_regression(draw, tmp_path: Path) -> None:
    a = write(tmp_path, "a.json", result(drawn_load(draw)))
    b = write(tmp_path, "b.json", result(drawn_load(draw, failed=3)))
    assert "failed requests" in compare_results(a, b).regressions
    assert "| failed requests" in comparison_table(compare_results(a, b))
    assert "failed requests" not in compare_results(b, a).regressions


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"machine": MACHINE | {"cpu": "B"}}, "cpu is A and B"),
        ({"machine": MACHINE | {"gpus": ["H100"]}}, r"gpus is \[\] and \['H100'\]"),
        ({"server": {"local": False, "url": "http://far:80"}}, "server is the machine itself and"),
    ],
)
def test_other_machines_are_refused_unless_asked_for(
    draw, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    a = write(tmp_path, "a.json", result(drawn_load(draw)))
    b = write(tmp_path, "b.json", result(drawn_load(draw), **more))
    with pytest.raises(ResultFileError, match=f"different machines: {said}") as caught:
        compare_results(a, b)
    assert "--across-machines" in caught.value.hint
    assert compare_results(a, b, across_machines=True).differs


def test_what_differs_is_named(draw, tmp_path: Path) -> None:
    other = {"name": "m", "sha256": "y", "format": "F16"}
    flags = {"workload": {"seed": 1}, "limits_ms": {}}
    machine = MACHINE | {"git": "def"}
    a = write(tmp_path, "a.json", result(drawn_load(draw)))
    b = write(
        tmp_path, "b.json", result(drawn_load(draw), model=other, flags=flags, machine=machine)
    )
    found = compare_results(a, b)
    assert not found.paired and found.missing == ["request_goodput"]
    assert found.differs == [
        "machine.git is abc and def",
        "model.sha256 is x and y",
        "model.format is Q4_0 and F16",
        "flags.workload.seed is 0 and 1",
        "flags.limits_ms.ttft is 230.0 and None",
    ]


def test_other_kinds_are_compared_among_themselves(draw, tmp_path: Path) -> None:
    frame = {"schema": 1, "machine": MACHINE, "model": {}, "flags": {}}
    runs = [{"import": 1.0 + 0.01 * n, "first token": 0.5} for n in range(5)]
    slow = [{"import": 2.0 + 0.01 * n, "first token": 0.5} for n in range(5)]
    a = write(tmp_path, "a.json", {**frame, "kind": "startup", "runs": runs})
    b = write(tmp_path, "b.json", {**frame, "kind": "startup", "runs": slow})
    assert compare_results(a, b).regressions == ["import s"]
    rows = [{"test": "tg8", "batch": 1, "samples": [10.0, 10.1, 9.9, 10.2, 10.0]}]
    c = write(tmp_path, "c.json", {**frame, "kind": "engine", "rows": rows})
    assert [f.name for f in compare_results(c, c).figures] == ["tg8 b1"]
    points = [{"point": f"{n} at once", **result(drawn_load(draw))} for n in (1, 2)]
    d = write(tmp_path, "d.json", {**frame, "kind": "sweep", "points": points})
    assert "2 at once: mean_ttft_ms" in {f.name for f in compare_results(d, d).figures}
    with pytest.raises(ResultFileError, match=r"is of `bench startup` and .* of `bench engine`"):
        compare_results(a, c)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "not an object"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[" * 10_000, "values in JSON|nested|not valid JSON"),
        (b'{"kind": "x"}', "kind is 'x'; expected a result of `halfbyte bench`"),
        (b'{"mean_ttft_ms": 4}', "kind is None; expected a result"),
        (b'{"kind": "serve", "schema": 9}', "schema is 9; expected 1"),
        (b'{"kind": "serve", "schema": 1, "machine": 3}', "machine is 3; expected an object"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ResultFileError, match=said) as caught:
        read_result(path)
    assert str(path) in caught.value.message
    with pytest.raises(ResultFileError, match=r"cannot read .*none"):
        read_result(tmp_path / "none")
    with pytest.raises(ResultFileError, match="cannot read"):
        read_result(tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        write_result(tmp_path / "no" / "x.json", {})


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Ways to everything inside a JSON value; of a list the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3])
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, (dict, list)):
            found += places(inner, (*path, key))
    return found


def test_damaged_results_never_crash(draw, tmp_path: Path) -> None:
    """One thing at a time replaced, in any place: compared, or refused by the file's name."""
    whole = result(drawn_load(draw, count=6))
    a = write(tmp_path, "a.json", whole)
    wrong = [None, "x", -1, [], {}, True, 10**30, [[1]], {"a": 1}]
    refused = 0
    for way in places(whole):
        broken = copy.deepcopy(whole)
        inner: Any = broken
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = random.choice(wrong)
        b = tmp_path / "b.json"
        b.write_text(json.dumps(broken))
        try:
            comparison_table(compare_results(a, b, across_machines=True))
        except ResultFileError as error:
            refused += 1
            assert str(b) in error.message or "in common" in error.message
    assert refused > 10
