"""Which Triton kernel each layer of a checkpoint takes on a GPU, and why: from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ...kernels.attention.config import (
    DIMS,
    decode_tile,
    length_bucket,
    next_power_of_2,
    prefill_tile,
    split_count,
)
from ...kernels.tables import Device, Tables
from ...kernels.tables.schema import COUNTERS, PARTIAL_BYTES
from ...kernels.w4a16.config import BUCKETS, choose, crossover, table_key
from ...kernels.w4a16.layout import ROW_ALIGN
from ...kernels.w8a8 import config as w8a8
from ...kernels.w8a8.layout import ALIGN
from ...kernels.w8a16 import config as w8a16
from ...loaders.base import Checkpoint
from .explain import Row
from .products import Linear, groups

DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Rows of the decode steps that are explained."""

_SIXTEEN_BIT = 2


def explain(
    checkpoint: Checkpoint,
    device: Device,
    *,
    tables: Tables | None = None,
    fp16: bool = False,
    exact: bool = False,
    page: int = 64,
    context: int = 4096,
) -> list[Row]:
    """A row for each product and M bucket; layers that are alike share theirs.

    Args:
        checkpoint: only its headers are read.
        device: where it would run.
        tables: tuned configurations.
        fp16: activations are float16, else bfloat16.
        exact: as the engine's option.
        page: tokens of a KV block.
        context: tokens that decode attends to, cut to the model's length.
    """
    rows = [
        _linear_row(linear, layers, m, device, tables, fp16, exact)
        for linear, layers in groups(checkpoint)
        for m in BUCKETS
    ]
    return rows + list(_attention_rows(checkpoint, device, exact, page, context))


def _linear_row(
    linear: Linear,
    layers: tuple[int, ...],
    m: int,
    device: Device,
    tables: Tables | None,
    fp16: bool,
    exact: bool,
) -> Row:
    carrier, why = linear.carrier(device.arch)
    kernel, config, source, rejected = {
        "w4a16": _w4a16,
        "w8a16": _fragments,
        "codebook": _fragments,
        "w8a8": _w8a8,
        "fp8": _w8a8,
        "dense": _dense,
    }[carrier](linear, m, device, tables, fp16, exact)
    if source == "table" and tables is not None:
        found = tables.find(table_key(linear.problem(m, device, fp16)))
        assert found is not None
        source, why = found.kind, found.detail
    shape = (linear.n, linear.k)
    return Row(
        layers,
        linear.module,
        shape,
        linear.label,
        m,
        carrier,
        kernel,
        config,
        source,
        why,
        rejected,
    )


_Picked = tuple[str, dict[str, Any], str, dict[str, str]]


def _w4a16(
    linear: Linear, m: int, device: Device, tables: Tables | None, fp16: bool, exact: bool
) -> _Picked:
    problem = linear.problem(m, device, fp16, exact)
    choice = choose(problem, partial_bytes=PARTIAL_BYTES, counters=COUNTERS, overrides=tables)
    source = choice.source if choice.source in ("exact", "formula") else "table"
    config = {} if choice.kernel == "dequantize" else asdict(choice.config)
    return choice.kernel, config, source, dict(choice.rejected)


def _fragments(
    linear: Linear, m: int, device: Device, tables: Tables | None, fp16: bool, exact: bool
) -> _Picked:
    assert linear.format is not None
    codebook = linear.format.zero == "table"
    planes = 4 if codebook else 2
    config = w8a16.choose(
        device.arch,
        m,
        planes,
        _up(linear.n, ROW_ALIGN),
        -(-linear.k // (32 * planes)),
        device.sms,
        exact=exact,
        # Codes of 8 bits without a zero point are the only integers read as signed bytes.
        offset=not codebook and (linear.format.zero != "none" or linear.format.bits != 8),
        partials=PARTIAL_BYTES // 4,
        counters=COUNTERS,
    )
    limit = crossover(device.arch)
    if config.dense:
        why = f"{m} rows: above {limit} on sm_{device.arch} a dense product is faster"
        return "dequantize", {}, "formula", {"fused": why}
    if exact:
        why = "exact: one tile, split and order of sums for every number of rows"
    else:
        why = f"{m} rows: up to {limit} on sm_{device.arch} reading the codes wins"
    values = {key: value for key, value in asdict(config).items() if key != "dense"}
    return "fused", values, "exact" if exact else "formula", {"dequantize": why}


def _w8a8(
    linear: Linear, m: int, device: Device, tables: Tables | None, fp16: bool, exact: bool
) -> _Picked:
    assert linear.format is not None and linear.format.act is not None
    floating = linear.format.zero == "e4m3"
    if floating and exact:
        m = 1
    zero = not linear.format.act.symmetric
    tile = w8a8.choose(
        device.arch, m, linear.n, floating=floating, zero=zero, residual=False, interpreted=False
    )
    splits = w8a8.choose_split(tile, m, linear.n, _up(linear.k, ALIGN), device.sms)
    config = {"bm": tile.bm, "bn": tile.bn, "bk": tile.bk, "splits": splits, **tile.launch}
    why = "activations are quantized: the checkpoint asks for 8-bit products"
    rejected = {"w8a16": why, "dense": why}
    if exact:
        # Sums of integers are exact in any order; those of float8 go row by row.
        return "w8a8", {**config, "rows": 1} if floating else config, "exact", rejected
    return "w8a8", config, "formula", rejected


def _dense(
    linear: Linear, m: int, device: Device, tables: Tables | None, fp16: bool, exact: bool
) -> _Picked:
    _, why = linear.carrier(device.arch)
    rejected = {"w4a16": why, "w8a16": why}
    if exact:
        return "torch", {"rows": 1}, "exact", rejected
    return "torch", {}, "library", rejected


def _attention_rows(
    checkpoint: Checkpoint, device: Device, exact: bool, page: int, context: int
) -> Iterator[Row]:
    cfg = checkpoint.config
    group, width = cfg.num_heads // cfg.num_kv_heads, next_power_of_2(cfg.head_dim)
    shape = (device.arch, group, page, width, _SIXTEEN_BIT)
    windows: dict[int, list[int]] = {}
    for index in range(cfg.num_layers):
        windows.setdefault(cfg.window(index), []).append(index)
    known = "" if cfg.head_dim in DIMS else ", a size that is not among the tested ones"
    for window, layers in windows.items():
        length = length_bucket(min(context, cfg.max_position))
        about = f"head {cfg.head_dim}{known}, window {window}" if window else f"head {cfg.head_dim}"
        for m in DECODE_ROWS:
            splits = split_count(device.sms, m * cfg.num_kv_heads, length, exact)
            config = {**asdict(decode_tile(*shape)), "splits": splits, "page": page}
            yield _attention(
                (tuple(layers), "attention, decode", m, "decode", config, exact),
                f"{about}, {length} tokens of context",
                {"prefill": "rows of one token: nothing to share a tile with but the group"},
            )
        # In exact mode the tokens of a prompt go through the decode kernel too.
        for m in () if exact else BUCKETS:
            config = {**asdict(prefill_tile(*shape)), "page": page}
            yield _attention(
                (tuple(layers), "attention, prefill", m, "prefill", config, False),
                about,
                {"decode": "tokens of one prompt read the same keys and values: one tile"},
            )


def _attention(
    what: tuple[tuple[int, ...], str, int, str, dict[str, Any], bool],
    detail: str,
    rejected: dict[str, str],
) -> Row:
    layers, module, m, kernel, config, exact = what
    source = "exact" if exact else "formula"
    return Row(
        layers, module, None, "KV 16 bit", m, "attention", kernel, config, source, detail, rejected
    )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
