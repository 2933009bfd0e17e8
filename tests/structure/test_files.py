"""Files of the repository: their size, and words that must not ship."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

import pytest
from source_tree import FOLDERS, ROOT, tracked

MAX_LINES = 500
MAX_BYTES = 1_000_000
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|NotImplementedError)\b")
# A path of one machine; "https://host/home/" and "src/tmp/" are none.
MACHINE_PATH = re.compile(r"(?<![\w.~})-])/(?:tmp|home|work|root|Users)(?:/|\b(?![-.\w]))")
# (file, text of the line): where such a path is meant.
MEANT: set[tuple[str, str]] = set()


def _code() -> list[str]:
    return [p for p in tracked() if p.endswith((".py", ".c", ".h"))]


def _shipped() -> list[str]:
    """Everything outside the tests that is text: sources, documents, settings, results."""
    return [p for p in tracked() if not p.startswith("tests/") and b"\0" not in _bytes(p)]


def _bytes(path: str) -> bytes:
    return (ROOT / path).read_bytes()


def _lines(path: str) -> list[str]:
    return _bytes(path).decode("utf-8").splitlines()


def test_the_list_of_files_is_no_empty_promise():
    assert {p.split("/")[0] for p in _code()} >= {*FOLDERS, "tests"}
    assert "pyproject.toml" in _shipped() and "kernels/cpu/halfbyte.h" in _shipped()


def test_no_source_is_too_long():
    counts = {p: len(_lines(p)) for p in _code()}
    assert {p: n for p, n in counts.items() if n > MAX_LINES} == {}


def test_no_file_is_too_large():
    sizes = {p: (ROOT / p).stat().st_size for p in tracked()}
    assert {p: n for p, n in sizes.items() if n > MAX_BYTES} == {}


def test_nothing_that_a_build_or_run_leaves_is_tracked():
    parts = {part for p in tracked() for part in PurePosixPath(p).parts}
    assert parts.isdisjoint({"__pycache__", "build", "dist", ".venv", ".hypothesis"})
    assert [p for p in tracked() if re.search(r"\.(pyc|so|o|egg-info|log)(/|$)", p)] == []


def test_nothing_unfinished_ships():
    code = [p for p in _code() if not p.startswith("tests/")]
    assert [f"{p}: {line}" for p in code for line in _lines(p) if UNFINISHED.search(line)] == []


def test_no_path_of_one_machine_ships():
    found = [(p, line.strip()) for p in _shipped() for line in _lines(p)]
    assert [hit for hit in found if MACHINE_PATH.search(hit[1]) and hit not in MEANT] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cd /work/main && make", True),
        ("see '/home/me/model.gguf'", True),
        ('path = "/tmp"', True),
        ("--out=/tmp/x", True),
        ("https://host.example/home/page", False),
        ("src/tmp/file, ~/work/x, ../home/y, ${DIR}/tmp/z", False),
        ("prefill/work-mem, /tmpfs, /homepage", False),
    ],
)
def test_machine_paths_are_told_apart(line: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is found


def test_test_files_have_unique_names():
    """Without packages in the tests tree, pytest imports them by their base names."""
    names = Counter(
        PurePosixPath(p).name for p in tracked() if p.startswith("tests/") and p.endswith(".py")
    )
    del names["conftest.py"]
    assert {name: n for name, n in names.items() if n > 1} == {}
