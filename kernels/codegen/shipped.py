"""Every family of kernels that has configurations to compile, by name.

The list is explicit so that a family can neither vanish nor be left out unnoticed: a
``variants.py`` below ``kernels/`` that is not listed here, or the reverse, is an error.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from .targets import Target
from .variant import Variant

FAMILIES: tuple[str, ...] = ("attention", "codebook", "fused", "sampling", "w4a16", "w8a16", "w8a8")
"""Dotted names below ``halfbyte.kernels`` of the packages that hold a ``variants.py``."""

_ROOT = Path(__file__).parents[1]


def unlisted() -> list[str]:
    """Families with a ``variants.py`` on disk that :data:`FAMILIES` does not name."""
    found = (p.parent.relative_to(_ROOT) for p in _ROOT.glob("**/variants.py"))
    return sorted({".".join(p.parts) for p in found} - set(FAMILIES))


def family_variants(family: str, target: Target) -> Iterator[Variant]:
    """The configurations of one family that ship for one target."""
    package = __name__.removesuffix(".codegen.shipped")
    module = importlib.import_module(f"{package}.{family}.variants")
    seen: set[tuple[str, str]] = set()
    for variant in module.variants(target.arch):
        key = variant.kernel, variant.config
        if key in seen:
            raise ValueError(f"{family} lists {' '.join(key)} twice for {target.name}")
        seen.add(key)
        yield variant
