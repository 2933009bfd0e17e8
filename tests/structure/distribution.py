"""What a wheel and a source distribution of this repository hold."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from source_tree import FOLDERS, tracked

BESIDES = ("LICENSE", "README.md", "pyproject.toml", "MANIFEST.in")
"""Files at the top that a source distribution holds besides what the wheel is built from."""


def installed_as(path: str) -> str:
    """Place of a source in the wheel: every folder but the face goes into ``halfbyte/``."""
    return path if path.startswith("halfbyte/") else f"halfbyte/{path}"


def ships(path: str) -> bool:
    """Whether a file of the repository belongs to the package."""
    # Results under bench/ are JSON too, and stay in the repository.
    table = path.startswith("kernels/tables/") and path.endswith(".json")
    code = path.endswith((".py", ".c", ".h", "py.typed"))
    page = path.startswith("server/page/static/")
    return table or page or (code and path.split("/")[0] in FOLDERS)


def wheel_problems(wheel: Path) -> list[str]:
    """How the files of a wheel differ from what it should hold, one line each."""
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    written = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")
    expected = {installed_as(p) for p in tracked() if ships(p)}
    expected |= {f"{info}/{name}" for name in (*written, "licenses/LICENSE")}
    return _differences(expected, names)


def sdist_problems(sdist: Path) -> list[str]:
    """How the files of a source distribution differ from what it should hold, one line each."""
    top = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        names = {m.name.removeprefix(f"{top}/") for m in archive.getmembers() if not m.isdir()}
    docs = {p for p in tracked() if p.startswith("docs/") and p.endswith((".md", ".json"))}
    names = {n for n in names if not n.startswith("halfbyte.egg-info/")}
    # setuptools writes the last two.
    expected = {p for p in tracked() if ships(p)} | docs | {*BESIDES, "PKG-INFO", "setup.cfg"}
    return _differences(expected, names)


def _differences(expected: set[str], names: set[str]) -> list[str]:
    return [f"missing: {n}" for n in sorted(expected - names)] + [
        f"not expected: {n}" for n in sorted(names - expected)
    ]


def normal(name: str) -> str:
    """A project's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Normal name to version of each line ``name==version``. Raises ValueError for another."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, sign, version = line.partition("==")
            if not sign or not re.fullmatch(r"[\w.]+", version) or normal(name) in found:
                raise ValueError(f"not one pin: {line!r}")
            found[normal(name)] = version
    return found


def contradictions(found: dict[str, str], requirements: Iterable[str], by: str) -> list[str]:
    """Pins outside of what ``by`` requires of the same package (extras aside), one line each."""
    from packaging.requirements import Requirement

    problems = []
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and "extra" in str(wanted.marker):
            continue
        version = found.get(normal(wanted.name))
        if version and not wanted.specifier.contains(version, prereleases=True):
            problems.append(f"{wanted.name}=={version}, but {by} wants {wanted}")
    return problems
