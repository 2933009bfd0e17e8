"""Bits of a weight in its file and as a backend packs it: from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...loaders.base import Checkpoint
from .products import Product, embedding, matrices


@dataclass(frozen=True, slots=True)
class Density:
    """What the matrices of one format take.

    Attributes:
        label: the file's name of the format.
        weights: their elements.
        stored: their bytes in the files.
        packed: their bytes in memory.
    """

    label: str
    weights: int
    stored: int
    packed: int

    @property
    def stored_bits(self) -> float:
        """Bits of a weight in the files."""
        return 8 * self.stored / self.weights

    @property
    def packed_bits(self) -> float:
        """Bits of a weight in memory."""
        return 8 * self.packed / self.weights


def densities(checkpoint: Checkpoint, size: Callable[[Product], int]) -> list[Density]:
    """The formats of a model's matrices, the largest in the files first, and all together last.

    Vectors (norms, biases) are left out. ``size`` gives the packed bytes of a product's weight.
    """
    size = cache(size)
    every = list(matrices(checkpoint))
    if not checkpoint.config.tie_word_embeddings:
        every.append(embedding(checkpoint))
    found: dict[str, list[Density]] = {}
    for matrix in every:
        spec, label = matrix.product.spec, matrix.product.label
        one = Density(label, spec.n * spec.k, matrix.stored, size(matrix.product))
        found.setdefault(label, []).append(one)
    rows = [_sum(label, parts) for label, parts in found.items()]
    return [*sorted(rows, key=lambda row: -row.stored), _sum("all", rows)]


def density_facts(rows: Iterable[Density]) -> list[dict[str, Any]]:
    """The same as plain JSON types; sizes in bytes."""
    return [
        {
            "format": row.label,
            "weights": row.weights,
            "stored": row.stored,
            "packed": row.packed,
            "stored_bits": round(row.stored_bits, 3),
            "packed_bits": round(row.packed_bits, 3),
        }
        for row in rows
    ]


def _sum(label: str, parts: Iterable[Density]) -> Density:
    parts = list(parts)
    return Density(
        label,
        sum(part.weights for part in parts),
        sum(part.stored for part in parts),
        sum(part.packed for part in parts),
    )
