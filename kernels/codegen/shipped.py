"""Every kernel that ships: those of the kinds of weights, and the others.

A family is a folder of kernels. A ``variants.py`` that belongs neither to a kind nor to a folder
named here is an error, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .targets import CompileTarget
from .variant import Variant

if TYPE_CHECKING:
    from .case import PtxCase

OTHERS = ("attention", "experts", "fused", "sampling")
"""Folders below ``kernels`` with kernels of no kind of weight."""

_ROOT = Path(__file__).parents[1]
_PACKAGE = __name__.removesuffix(".codegen.shipped")


@functools.cache
def families() -> tuple[str, ...]:
    """Names of all families that have something to compile."""
    return tuple(sorted({*OTHERS, *_owned()} & set(_on_disk())))


def unlisted() -> list[str]:
    """Folders with a ``variants.py`` that no kind of weight and no entry of OTHERS accounts for."""
    return sorted(set(_on_disk()) - set(families()))


def family_variants(family: str, target: CompileTarget) -> Iterator[Variant]:
    """The configurations of one family that ship for one target."""
    sources = _owned().get(family)
    if sources is None:
        sources = [importlib.import_module(f"{_PACKAGE}.{family}.variants")]
    seen: set[tuple[str, str]] = set()
    for source in sources:
        for variant in source.variants(target.arch):
            key = variant.kernel, variant.config
            if key in seen:
                raise ValueError(f"{family} lists {' '.join(key)} twice for {target.name}")
            seen.add(key)
            yield variant


def family_cases(family: str) -> dict[str, PtxCase]:
    """A case for each kernel of one family, by the kernel's dotted name."""
    return importlib.import_module(f"{_PACKAGE}.{family}.cases").cases()


def _owned() -> dict[str, list[Any]]:
    """Kinds of weights by their folder; imports triton."""
    from ..kinds import KINDS

    found: dict[str, list[Any]] = {}
    for kind in KINDS:
        folder = type(kind).__module__.removeprefix(f"{_PACKAGE}.").split(".")[0]
        found.setdefault(folder, []).append(kind)
    return found


def _on_disk() -> list[str]:
    return [".".join(p.parent.relative_to(_ROOT).parts) for p in _ROOT.glob("**/variants.py")]
