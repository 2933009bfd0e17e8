"""Projections that a file stores stacked along N (Phi-3's ``qkv_proj``, ``gate_up_proj``).

The model asks for ``q_proj``, ``k_proj`` ... under their own names, whatever the file calls them;
the parts of a stacked tensor are rows of it: one range each, or one of each head (Qwen3-Next).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ..base import TensorInfo
from .config import ModelConfig

if TYPE_CHECKING:
    from ...kernels.formats.canonical import Weight

# Stacked name -> its parts, first rows first.
FUSED: dict[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "linear_attn.in_proj_qkv": tuple(f"linear_attn.in_proj_{part}" for part in "qkv"),
    # Head by head, see :func:`heads_of`.
    "linear_attn.in_proj_qkvz": tuple(f"linear_attn.in_proj_{part}" for part in "qkvz"),
    "linear_attn.in_proj_ba": tuple(f"linear_attn.in_proj_{part}" for part in "ba"),
    "self_attn.q_proj": ("self_attn.query_proj", "self_attn.output_gate_proj"),
}


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows ``start:stop`` of the stored tensor ``source``, and of the same after every ``period``
    rows, ``count`` times in all.
    """

    source: str
    start: int
    stop: int
    period: int = 0
    count: int = 1


def heads_of(config: ModelConfig) -> dict[str, int]:
    """Stacked tensors whose parts come head by head, and of how many heads."""
    if config.delta is None:
        return {}
    keys = config.delta.key_heads
    return {
        "linear_attn.in_proj_qkvz": keys,
        "linear_attn.in_proj_ba": keys,
        "self_attn.q_proj": config.num_heads,
    }


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
    heads: Mapping[str, int] | None = None,
) -> tuple[dict[str, TensorInfo], dict[str, RowRange]]:
    """Replace stacked tensors by their parts.

    Args:
        stored: name -> header.
        expected: name -> shape of what the model needs, parts unstacked.
        where: file or folder, for messages.
        spelled: canonical name -> the file's own, for messages.
        heads: see :func:`heads_of`.

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
        _, _, module = name.rpartition(".layers.")
        count = (heads or {}).get(module.partition(".")[2].rpartition(".")[0], 1)
        start, period = 0, height // count
        for part, shape in zip(parts, shapes, strict=True):
            stop = start + shape[0] // count
            size = whole.nbytes * shape[0] // height
            infos[part] = replace(whole, name=part, shape=shape, nbytes=size)
            rows[part] = RowRange(name, start, stop, period, count)
            start = stop
    return infos, rows


def take_rows(weight: Weight, rows: RowRange) -> Weight:
    """Rows of a stacked weight or bias, as a view where they are one range."""
    from ...kernels.formats.canonical import QuantizedLinear
    from ...kernels.formats.stored import StoredLinear

    if isinstance(weight, QuantizedLinear):
        begins = [head * rows.period for head in range(rows.count)]
        parts = [weight.rows(at + rows.start, at + rows.stop) for at in begins]
        return parts[0] if rows.count == 1 else StoredLinear.stack(parts)
    if rows.count == 1:
        return weight[rows.start : rows.stop]
    by_head = weight.unflatten(0, (rows.count, rows.period))
    return by_head[:, rows.start : rows.stop].flatten(0, 1)


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
