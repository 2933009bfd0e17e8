"""Projections that a file stores stacked along N (Phi-3's ``qkv_proj``, ``gate_up_proj``).

The model asks for ``q_proj``, ``k_proj`` ... under their own names, whatever the file calls them;
the parts of a stacked tensor are rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ..base import TensorInfo

if TYPE_CHECKING:
    from ...kernels.formats.canonical import Weight

# Stacked name -> its parts, first rows first.
FUSED: dict[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows ``start:stop`` of the stored tensor ``source``."""

    source: str
    start: int
    stop: int


def fused_shapes(expected: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """``expected`` and, for every set of parts in it, the stacked tensor's name and shape."""
    shapes = dict(expected)
    for name, parts in stacked_parts(expected):
        rows = sum(expected[part][0] for part in parts)
        shapes[name] = (rows, *expected[parts[0]][1:])
    return shapes


def split_fused(
    stored: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    spelled: Callable[[str], str],
) -> tuple[dict[str, TensorInfo], dict[str, RowRange]]:
    """Replace stacked tensors by their parts.

    Args:
        stored: name -> header.
        expected: name -> shape of what the model needs, parts unstacked.
        where: file or folder, for messages.
        spelled: canonical name -> the file's own, for messages.

    Returns:
        name -> header with the parts in place of each stacked tensor, and part -> rows.

    Raises:
        CheckpointError: a stacked tensor has the wrong number of rows, or a part is stored twice.
    """
    infos, rows = dict(stored), {}
    for name, parts in stacked_parts(expected):
        whole = stored.get(name)
        if whole is None:
            continue
        shapes = [expected[part] for part in parts]
        height = sum(shape[0] for shape in shapes)
        if whole.shape != (height, *shapes[0][1:]):
            raise CheckpointError(
                f"{where}: {spelled(name)} is {list(whole.shape)}; expected "
                f"{[height, *shapes[0][1:]]}"
            )
        twice = next((part for part in parts if part in stored), None)
        if twice is not None:
            raise CheckpointError(
                f"{where}: {spelled(twice)} is stored alone and in {spelled(name)}"
            )
        del infos[name]
        start = 0
        for part, shape in zip(parts, shapes, strict=True):
            stop = start + shape[0]
            size = whole.nbytes * shape[0] // height
            infos[part] = replace(whole, name=part, shape=shape, nbytes=size)
            rows[part] = RowRange(name, start, stop)
            start = stop
    return infos, rows


def take_rows(weight: Weight, rows: RowRange) -> Weight:
    """Rows of a stacked weight or bias, as a view."""
    from ...kernels.formats.canonical import QuantizedLinear

    if isinstance(weight, QuantizedLinear):
        return weight.rows(rows.start, rows.stop)
    return weight[rows.start : rows.stop]


def stacked_parts(
    expected: Mapping[str, tuple[int, ...]], stacks: Iterable[str] = tuple(FUSED)
) -> list[tuple[str, list[str]]]:
    """Stacked name -> parts, for all parts that ``expected`` holds of some ``stacks``."""
    found = []
    for fused in stacks:
        parts = FUSED[fused]
        first = parts[0]
        for name in expected:
            prefix, _, suffix = name.rpartition(f"{first}.")
            if suffix not in ("weight", "bias") or not prefix:
                continue
            names = [f"{prefix}{part}.{suffix}" for part in parts]
            if all(part in expected for part in names):
                found.append((f"{prefix}{fused}.{suffix}", names))
    return found
