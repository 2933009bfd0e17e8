"""The wheel: what is in it, under which names, and that it works without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from distribution import (
    contradictions,
    installed_as,
    normal,
    pins,
    ships,
    wheel_problems,
)
from source_tree import FOLDERS, ROOT, tracked

from halfbyte.engine.advise import doctor

CONSTRAINTS, README = ROOT / "constraints.txt", ROOT / "README.md"

BUILD = """
import sys
from setuptools import build_meta
print("wheel", build_meta.build_wheel(sys.argv[1]))
"""

RUN = """
import pathlib, sys
import halfbyte, halfbyte.engine.config, halfbyte.kernels, halfbyte.cli.main
from halfbyte.kernels.cpu import build
folder = pathlib.Path(build.__file__).parent
assert all((folder / name).is_file() for name in (*build.SOURCES, *build.C_HEADERS))
ours = {m for name, m in sys.modules.items() if name.split(".")[0] == "halfbyte"}
print(*sorted({m.__file__ for m in ours if m.__file__}), sep="\\n")
"""


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """``pyproject.toml``."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files, without network."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def test_packages_are_the_folders_with_an_init(settings: dict[str, Any]) -> None:
    packages = settings["tool"]["setuptools"]["packages"]
    places = settings["tool"]["setuptools"]["package-dir"]
    assert places == {"halfbyte" if f == "halfbyte" else f"halfbyte.{f}": f for f in FOLDERS}
    # Data of a package may lie in folders below it; code may not.
    code = [p for p in tracked() if ships(p) and p.endswith((".py", ".c", ".h"))]
    folders = {str(PurePosixPath(p).parent) for p in code}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)
    named = [installed_as(f"{folder}/").rstrip("/").replace("/", ".") for folder in folders]
    assert sorted(packages) == sorted(named)


def test_type_checkers_see_the_same_packages():
    links = {p.name: p.resolve() for p in (ROOT / "typings" / "halfbyte").iterdir()}
    assert links.pop("__init__.py") == ROOT / "halfbyte" / "__init__.py"
    assert links == {folder: ROOT / folder for folder in FOLDERS if folder != "halfbyte"}


def test_wheel_holds_the_sources_and_nothing_else(wheel: Path, settings: dict[str, Any]) -> None:
    assert wheel_problems(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"halfbyte-{settings['project']['version']}.dist-info"
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["halfbyte"]
        assert (
            "halfbyte = halfbyte.__main__:main"
            in archive.read(f"{info}/entry_points.txt").decode().splitlines()
        )
    assert {"halfbyte/py.typed", "halfbyte/kernels/cpu/halfbyte.h"} <= names
    assert any(n.endswith(".c") for n in names)
    assert not [n for n in names if {"tests", "__pycache__"} & set(n.split("/"))]
    # Sources and tuned tables alone: a checkpoint or a library that slipped in would be larger than
    # any of these files, of which the largest is a table of 105 kB.
    with zipfile.ZipFile(wheel) as archive:
        assert max(item.file_size for item in archive.infolist()) < 150_000
    assert wheel.stat().st_size < 2_000_000


def test_files_that_are_missing_or_too_many_are_named(wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(other, "w") as partial:
        for name in whole.namelist():
            if not name.endswith(("py.typed", "licenses/LICENSE")):
                partial.writestr(name, whole.read(name))
        partial.writestr("engine/schedule/plan.py", "")
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert wheel_problems(other) == [
        f"missing: {info}/licenses/LICENSE",
        "missing: halfbyte/py.typed",
        "not expected: engine/schedule/plan.py",
    ]


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The folder comes before site-packages, so an editable install is not asked.
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert site / "halfbyte" / "cli" / "main.py" in files
    assert [f for f in files if not f.is_relative_to(site)] == []


def test_pins_contradict_no_installed_package() -> None:
    """torch's above all; it is pinned, so what it asks for is what the installed one asks for."""
    found = pins(CONSTRAINTS.read_text("utf-8"))
    installed = {normal(d.name): d for d in metadata.distributions() if d.name}
    assert {"torch", "transformers"} <= installed.keys() & found.keys()
    problems = [
        problem
        for name in sorted(found.keys() & installed.keys())
        if installed[name].version.split("+")[0] == found[name]
        for problem in contradictions(found, installed[name].requires or (), by=name)
    ]
    assert problems == []


def test_nothing_is_pinned_that_torch_chooses() -> None:
    """Its build for CUDA asks for one exact version of these; the one installed here may not."""
    found = pins(CONSTRAINTS.read_text("utf-8"))
    chosen = re.compile(r"triton|pytorch-triton.*|nvidia-.*|cuda-.*|networkx|sympy|mpmath")
    assert [name for name in found if chosen.fullmatch(name)] == []


def test_a_contradiction_is_found() -> None:
    wanted = [
        "triton==3.7.1; platform_system == 'Linux'",
        "sympy>=1.13.3",
        "optree>=0.13; extra == 'optree'",
    ]
    found = {"triton": "3.9.0", "sympy": "1.14.0", "optree": "0.1"}
    (problem,) = contradictions(found, wanted, by="torch")
    assert problem.startswith("triton==3.9.0, but torch wants triton==3.7.1")


def test_pins_are_within_the_ranges(settings: dict[str, Any]) -> None:
    project = settings["project"]
    ranges = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        ranges += extra
    found = pins(CONSTRAINTS.read_text("utf-8"))
    assert contradictions(found, ranges, by="pyproject.toml") == []
    named = {normal(re.split(r"[\[<>=;]", text)[0]) for text in ranges}
    assert named - found.keys() == {"triton"}


def test_versions_of_python_agree(settings: dict[str, Any]) -> None:
    lead = "Programming Language :: Python :: 3."
    of_project = [c.removeprefix(lead) for c in settings["project"]["classifiers"] if lead in c]
    floor = min(map(int, of_project))
    assert settings["project"]["requires-python"] == f">=3.{floor}"
    assert settings["tool"]["ruff"]["target-version"] == f"py3{floor}"
    assert settings["tool"]["pyright"]["pythonVersion"] == f"3.{floor}"
    assert (3, floor) == doctor._MIN_PYTHON
    assert f"With Python 3.{floor} or newer" in README.read_text("utf-8")
    assert f"sys.version_info < (3, {floor})" in (ROOT / "Makefile").read_text("utf-8")


def test_readme_links_hold_outside_of_the_repository() -> None:
    """A package index shows the README alone: only its own headings and whole addresses hold."""
    text = README.read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [t for t in links if t.startswith("#") and t[1:] not in headings] == []
    assert [t for t in links if not t.startswith(("#", "https://"))] == []
    # What it names by path instead is there, and comes with the source distribution.
    for path in re.findall(r"`(docs/[\w.]+)`", text):
        assert (ROOT / path).is_file(), path
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
