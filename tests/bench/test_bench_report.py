"""The page of a folder: what is on it, what is left out, and that no file can run anything."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from halfbyte.bench.report.collect import collect
from halfbyte.bench.report.write import report_page, save_plots
from halfbyte.bench.serve.figures import serve_figures
from halfbyte.bench.serve.load import LoadResult, RequestSample
from halfbyte.errors import ConfigError, ResultFileError

EVIL = "<script>alert(1)</script>\u202e&\"'$x^$"
FRAME = {
    "schema": 1,
    "machine": {"cpu": EVIL, "cores": 2, "gpus": []},
    "model": {"name": EVIL, "format": "Q4_0"},
    "flags": {},
}


def requests(count: int = 8) -> dict[str, Any]:
    samples = [
        RequestSample(0.1 * n, 0.0, 9, 4, random.uniform(0.1, 0.2), [0.05] * 3, 0.4, "", "")
        for n in range(count)
    ]
    return serve_figures(LoadResult(samples, 3.0), (99.0,), {})


def results() -> dict[str, Any]:
    """A file of each kind by its name."""
    points = [{"point": f"{n} at once", **requests()} for n in (1, 2, 4)]
    row = {"format": EVIL, "bits": 4.5, "megabytes": 100.0, "prefill": 9.0, "decode": 8.0}
    accuracy = {"quantized": f"a/{EVIL}", "reference": "b/dense", "kl_mean": 0.1, "kl_p99": 1.0}
    return {
        "a-serve.json": {**FRAME, "kind": "serve", **requests()},
        "b-sweep.json": {**FRAME, "kind": "sweep", "points": points},
        "c-startup.json": {**FRAME, "kind": "startup", "runs": [{"import": 1.0}, {"import": 1.5}]},
        "d-engine.json": {
            **FRAME,
            "kind": "engine",
            "rows": [{"test": "tg8", "batch": 1, "samples": [4.0, 6.0]}],
        },
        "e-formats.json": [{**row, "ppl": 20.0, "kl": 0.02, "top1": 0.9}] * 2,
        "f-accuracy.json": {**accuracy, "top1": 0.8, "ppl": 21.0, "ppl_reference": 20.0},
    }


def test_what_can_be_compared_stands_in_one_chart_and_one_table(tmp_path: Path) -> None:
    found = results()
    again = {f"z-{n}.json": found["b-sweep.json"] for n in range(9)}
    files, _ = collect(
        folder_of(tmp_path, {**found, **again, "z-serve.json": found["a-serve.json"]})
    )
    text = report_page("x", files, [])
    page = Page(text)
    # Ten sweeps are too many for one chart; two runs are not.
    assert page.tags.count("svg") == 2 * 2 + 2 + 2 and page.tags.count("table") == 1 + 6
    assert "TPOT by load (2 of 2)" in page.texts
    assert {"a-serve", "z-serve", *(f"z-{n}" for n in range(9))} <= set(page.texts)
    colours = {value for name, value in page.attributes if name == "class" and "line" in str(value)}
    assert colours == {f"line c{n}" for n in range(8)}


def folder_of(path: Path, files: dict[str, Any]) -> Path:
    for name, found in files.items():
        (path / name).write_text(json.dumps(found))
    return path


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_everything_is_on_the_page_and_nothing_runs(tmp_path: Path) -> None:
    files, left_out = collect(folder_of(tmp_path, results()))
    assert [file.kind for file in files] == [
        *("serve", "sweep", "startup", "engine", "formats", "accuracy")
    ]
    assert left_out == []
    page = Page(report_page(EVIL, files, left_out))
    # Two charts of runs, two of sweeps and two of the formats.
    assert page.tags.count("svg") == 6 and page.tags.count("table") == 1 + 6
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    names = {name for name, _ in page.attributes}
    assert names.isdisjoint({"src", "href"}) and not any(n.startswith("on") for n in names)
    texts = " ".join(page.texts)
    assert "alert(1)" in texts and "\u202e" not in texts
    # 24 tokens in 3 s, a mean of 1.25 s and of 5 tokens/s.
    assert all(figure in texts for figure in ("10.67", "1.25", "tg8 b1", "0.02", "4 at once"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ('{"kind": "serving"}', "kind is 'serving'"),
        ('[{"format": "x", "bits": NaN}]', "NaN"),
        ('{"kind": "serve", "schema": 1, "machine": {}, "model": {}, "flags": {}}', "errors is"),
    ],
)
def test_damaged_files_are_named_and_lose_nothing(tmp_path: Path, text: str, why: str) -> None:
    folder_of(tmp_path, results())
    (tmp_path / "z.json").write_text(text)
    (tmp_path / "z.txt").write_text("no measurement")
    files, left_out = collect(tmp_path)
    assert len(files) == 6 and [name for name, _ in left_out] == ["z.json"]
    assert why in left_out[0][1]
    assert "z.json" in report_page("x", files, left_out)
    with pytest.raises(ResultFileError, match="cannot read"):
        collect(tmp_path / "none")


def test_plots_are_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files, _ = collect(folder_of(tmp_path, results()))
    written = save_plots(tmp_path, files)
    assert len(written) == len({path.name for path in written}) == 12
    for path in written:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")
    with pytest.raises(ConfigError, match="cannot write"):
        save_plots(tmp_path / "none", files)


def test_without_matplotlib_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="--plots needs matplotlib") as caught:
        save_plots(tmp_path, [])
    assert "halfbyte[plots]" in caught.value.hint
