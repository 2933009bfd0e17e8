"""The repository as text and syntax trees, for the tests of its structure."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folder of sources -> package; ``halfbyte`` itself is the face.
FOLDERS = ("halfbyte", "engine", "kernels", "loaders", "server", "bench", "quantize", "cli")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file of the package: path from the root, module name, syntax tree."""

    path: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Dotted name, such as ``halfbyte.engine.backends``."""
        return module_name(self.path)


@dataclass(frozen=True)
class Definition:
    """A class or function with the classes around it, outermost first."""

    source: Source
    node: ast.ClassDef | Function
    owners: tuple[ast.ClassDef, ...]

    @property
    def where(self) -> str:
        """``path:line Class.name`` for messages."""
        names = ".".join(n.name for n in (*self.owners, self.node))
        return f"{self.source.path}:{self.node.lineno} {names}"

    @property
    def public(self) -> bool:
        """No name on the way starts with an underscore."""
        return not any(n.name.startswith("_") for n in (*self.owners, self.node))


def module_name(path: str) -> str:
    """``engine/plan.py`` -> ``halfbyte.engine.plan``; packages lose their ``__init__``."""
    parts = path.removesuffix(".py").split("/")
    if parts[0] != "halfbyte":
        parts.insert(0, "halfbyte")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the package."""
    paths = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
    return tuple(
        Source(p.relative_to(ROOT).as_posix(), ast.parse(p.read_text("utf-8"))) for p in paths
    )


def definitions(source: Source) -> Iterator[Definition]:
    """Classes, functions and methods that are not inside a function, overload stubs left out."""

    def walk(body: Iterable[ast.AST], owners: tuple[ast.ClassDef, ...]) -> Iterator[Definition]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield Definition(source, node, owners)
                yield from walk(node.body, (*owners, node))
            elif isinstance(node, Function):
                if "overload" not in [ast.unparse(d) for d in node.decorator_list]:
                    yield Definition(source, node, owners)
            elif isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
                yield from walk(ast.iter_child_nodes(node), owners)

    return walk(source.tree.body, ())


@cache
def tracked() -> tuple[str, ...]:
    """Paths that git tracks or would take up, without links; skips outside a checkout."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(
            [*command, "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    # --others lists all of a folder with its own .git; links lead to files listed already.
    paths = {p for p in done.stdout.split("\0") if p and not _through_link(p)}
    return tuple(sorted(p for p in paths if (ROOT / p).is_file()))


def _through_link(path: str) -> bool:
    return any((ROOT / p).is_symlink() for p in (path, *map(str, Path(path).parents)))
