"""Decode, its splits joined by whoever arrives last, and prefill over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..codegen.case import OutputCheck, PreparedCase, PtxCase, type_of, undefined_workspace, within
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from ..formats.activations import KV_RULES
from .config import largest_code
from .op import decode_attention, prefill_attention
from .paged import PagedCache, paged_cache
from .reference import paged_attention
from .table import build_prefill_table, prefill_block

_WINDOW = 250
_SOFT_CAP = 30.0


def _decode_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Rows of one token, of a page and some, of none, and of two splits."""
    c = variant.constants
    window = c["WINDOW"]
    lengths = [1, c["PAGE"] + 3, 0, 420 if window else 300]
    heads, dtype = c["KV_HEADS"] * c["GROUP"], type_of(variant, "out_ptr")
    cache = paged_cache(rng, lengths, c["KV_HEADS"], c["PAGE"], c["DIM"], dtype, _codes(c))
    q = torch.randn(len(lengths), heads, c["DIM"], generator=rng).to(dtype)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    options = _options(variant, rng)
    # As many multiprocessors as make two splits of the longest row.
    emulation.multiprocessors = len(lengths) * c["KV_HEADS"]
    rows = torch.arange(len(lengths), dtype=torch.int32)
    want = _true(q, cache, positions, rows, options)
    if c.get("LISTED"):
        # The second token is another kernel's affair, and so is what stands in its place.
        options["tokens_S"] = torch.tensor([0, -1, 3, 2], dtype=torch.int32)
        options["row_index_T"] = rows
        options["out"] = torch.zeros_like(q)
        want[1] = 0.0
    space = undefined_workspace(emulation)

    def call() -> list[OutputCheck]:
        out = decode_attention(
            q, cache.k, cache.v, cache.tables, positions, max_length=max(lengths), workspace=space,
            **options, **cache.scales(),
        )  # fmt: skip
        return [within("out", out, want, _allowed(want, dtype))]

    return call


def _prefill_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """A row with a cached prefix and more tokens than a tile, a fresh row, and an empty line."""
    c = variant.constants
    page, kv_heads = c["PAGE"], c["KV_HEADS"]
    heads, dtype = kv_heads * c["GROUP"], type_of(variant, "out_ptr")
    block = c["ROWS"] // c["GROUP"]
    fresh = [block + 3, 5]
    lengths = [fresh[0] + (280 if c["WINDOW"] else 3 * page + 5), 5]
    cache = paged_cache(rng, lengths, kv_heads, page, c["DIM"], dtype, _codes(c))
    spans, positions, rows, begin = [], [], [], 0
    for row, (length, count) in enumerate(zip(lengths, fresh, strict=True)):
        spans.append((begin, begin + count, length - count))
        positions += range(length - count, length)
        rows += [row] * count
        begin += count
    q = torch.randn(begin, heads, c["DIM"], generator=rng).to(dtype)
    itemsize = cache.k.element_size()
    block_q = prefill_block(emulation.on.arch, heads, kv_heads, page, c["DIM"], itemsize)
    table = build_prefill_table(spans, block_q)
    table = build_prefill_table(spans, block_q, lines=table.shape[0] + 1)
    options = _options(variant, rng)
    want = _true(q, cache, torch.tensor(positions), torch.tensor(rows), options)

    def call() -> list[OutputCheck]:
        out = prefill_attention(
            q, cache.k, cache.v, cache.tables, table, block_q=block_q,
            **options, **cache.scales(),
        )  # fmt: skip
        return [within("out", out, want, _allowed(want, dtype))]

    return call


def _codes(constants: Mapping[str, Any]) -> torch.dtype | None:
    """What the cache holds in place of floats."""
    tops = {largest_code(dtype): dtype for dtype in KV_RULES}
    return tops.get(constants["QUANT"])


def _options(variant: Variant, rng: torch.Generator) -> dict[str, Any]:
    c = variant.constants
    sinks = torch.randn(c["KV_HEADS"] * c["GROUP"], generator=rng) * 3 if c["SINKS"] else None
    return {
        "scale": c["DIM"] ** -0.5,
        "window": _WINDOW if c["WINDOW"] else 0,
        "soft_cap": _SOFT_CAP if c.get("SOFT_CAP") else 0.0,
        "sinks_H": sinks,
    }


def _true(
    q: Tensor, cache: PagedCache, positions: Tensor, rows: Tensor, options: dict[str, Any]
) -> Tensor:
    return paged_attention(
        q.double(), cache.true_k, cache.true_v, cache.tables, positions, rows,
        options["scale"], options["window"], options["soft_cap"], options["sinks_H"],
    )  # fmt: skip


def _allowed(want: Tensor, dtype: torch.dtype) -> Tensor:
    """Probabilities are rounded, then the result.

    A mean of values is wrong by at most half a unit of the largest value where all of its weights
    are, and as much again where the result is. Values are drawn from a normal distribution: rows
    of the truth stand for their largest.
    """
    half = torch.finfo(dtype).eps / 2
    return torch.full_like(want, 2 * half * float(want.abs().max())) + 1e-6


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "attention.decode": _decode_case,
        "attention.prefill": _prefill_case,
    }
