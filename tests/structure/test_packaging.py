"""The wheel: what is in it, under which names, and that it works without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from source_tree import FOLDERS, ROOT, tracked

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
assert all((folder / name).is_file() for name in (*build.SOURCES, *build.HEADERS))
ours = {m for name, m in sys.modules.items() if name.split(".")[0] == "halfbyte"}
print(*sorted({m.__file__ for m in ours if m.__file__}), sep="\\n")
"""


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """``pyproject.toml``; pytest brings tomli where Python has no tomllib."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))


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


def _installed_as(path: str) -> str:
    """Place of a source in the wheel: every folder but the face goes into ``halfbyte/``."""
    return path if path.startswith("halfbyte/") else f"halfbyte/{path}"


def _ships(path: str) -> bool:
    # Results under bench/ are JSON too, and stay in the repository.
    table = path.startswith("kernels/tables/") and path.endswith(".json")
    code = path.endswith((".py", ".c", ".h", "py.typed"))
    return table or (code and path.split("/")[0] in FOLDERS)


def test_packages_are_the_folders_with_an_init(settings: dict[str, Any]) -> None:
    packages = settings["tool"]["setuptools"]["packages"]
    places = settings["tool"]["setuptools"]["package-dir"]
    assert places == {"halfbyte" if f == "halfbyte" else f"halfbyte.{f}": f for f in FOLDERS}
    folders = {str(PurePosixPath(p).parent) for p in tracked() if _ships(p)}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)
    named = [_installed_as(f"{folder}/").rstrip("/").replace("/", ".") for folder in folders]
    assert sorted(packages) == sorted(named)


def test_type_checkers_see_the_same_packages():
    links = {p.name: p.resolve() for p in (ROOT / "typings" / "halfbyte").iterdir()}
    assert links.pop("__init__.py") == ROOT / "halfbyte" / "__init__.py"
    assert links == {folder: ROOT / folder for folder in FOLDERS if folder != "halfbyte"}


def test_wheel_holds_the_sources_and_nothing_else(wheel: Path, settings: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
        info = f"halfbyte-{settings['project']['version']}.dist-info"
        assert {n.split("/")[0] for n in names} == {"halfbyte", info}
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["halfbyte"]
        assert (
            "halfbyte = halfbyte.__main__:main"
            in archive.read(f"{info}/entry_points.txt").decode().splitlines()
        )
    code = {n for n in names if n.startswith("halfbyte/")}
    assert code == {_installed_as(p) for p in tracked() if _ships(p)}
    assert {"halfbyte/py.typed", "halfbyte/kernels/cpu/halfbyte.h"} <= code
    assert any(n.endswith(".c") for n in code)
    assert not [n for n in names if {"tests", "__pycache__"} & set(n.split("/"))]
    assert wheel.stat().st_size < 1_000_000


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
