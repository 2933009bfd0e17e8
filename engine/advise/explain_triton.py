"""Which Triton kernel each layer of a checkpoint takes on a GPU, and why: from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from halfbyte.errors import UnsupportedWeightError

from ...kernels.attention.config import (
    DIMS,
    decode_tile,
    length_bucket,
    prefill_tile,
    split_count,
    tile_width,
)
from ...kernels.device.gpus import Device
from ...kernels.formats.weight_format import InputRule, input_rounding
from ...kernels.kind import BUCKETS, Conditions
from ...kernels.tables import Tables
from ...loaders.base import Checkpoint
from .explain import ExplainedRow
from .products import Product, groups

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
    rule: InputRule = "float",
) -> list[ExplainedRow]:
    """A row for each product and M bucket; layers that are alike share theirs.

    Args:
        checkpoint: only its headers are read.
        device: where it would run.
        tables: tuned configurations.
        fp16: activations are float16, else bfloat16.
        exact: as the engine's option.
        page: tokens of a KV block.
        context: tokens that decode attends to, cut to the model's length.
        rule: how a run takes the inputs of weight-only quantized matrices.

    Raises:
        UnsupportedWeightError: no kernel takes a matrix so; the message names it.
    """
    where = Conditions(device, fp16, exact, tables)
    rows = [
        _linear_row(linear, layers, m, where)
        for linear, layers in groups(checkpoint, rule)
        for m in BUCKETS
    ]
    return rows + list(_attention_rows(checkpoint, device, exact, page, context))


def _linear_row(
    linear: Product, layers: tuple[int, ...], m: int, where: Conditions
) -> ExplainedRow:
    try:
        found = linear.carrier(where.device.arch)
    except UnsupportedWeightError as error:
        raise UnsupportedWeightError(
            f"{linear.module}, {linear.label}: {error.message}", hint="use activations='auto'"
        ) from error
    chosen = found.kind.choose(found.spec, m, where)
    return ExplainedRow(
        layers,
        linear.module,
        (linear.spec.n, linear.spec.k),
        linear.label,
        m,
        found.kind.name,
        input_rounding(found.spec.format if found.kind.rounds else None, "float"),
        chosen.kernel,
        chosen.config,
        chosen.source,
        chosen.detail or "; ".join(dict.fromkeys(found.rejected.values())),
        # A kind of one kernel: why the kinds before it are none for this weight.
        dict(chosen.rejected) or found.rejected,
    )


def _attention_rows(
    checkpoint: Checkpoint, device: Device, exact: bool, page: int, context: int
) -> Iterator[ExplainedRow]:
    cfg = checkpoint.config
    group, width = cfg.num_heads // cfg.num_kv_heads, tile_width(cfg.head_dim)
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
) -> ExplainedRow:
    layers, module, m, kernel, config, exact = what
    source = "exact" if exact else "formula"
    return ExplainedRow(
        layers,
        module,
        None,
        "KV 16 bit",
        m,
        "attention",
        "",
        kernel,
        config,
        source,
        detail,
        rejected,
    )
