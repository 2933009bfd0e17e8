"""Formats of one model beside each other: their size, their speed, and what they lose.

Each is judged by the dense model with activations as the engine rounds them, since that is what the
speeds are measured with; ``halfbyte accuracy`` tells what weights alone lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from halfbyte.errors import ConfigError

from ..engine.config import EngineConfig
from ..engine.engine import Engine
from ..kernels.formats.canonical import QuantizedLinear
from ..loaders import open_checkpoint
from ..loaders.base import Checkpoint
from ..loaders.model.quantizing import DENSE_FORMATS, QuantizingCheckpoint, is_decoder_linear
from ..loaders.model.schemes import SchemeName
from ..loaders.store.model_store import resolve_model
from ..quantize.judge import compare, perplexity
from ..quantize.report.sensitivity import stored_bits
from ..quantize.report.sizes import model_size
from ..quantize.windows import Windows, common_windows
from .engine import BenchPlan, Say, TokenSource, measure
from .table import markdown_table

SCHEME_NAMES: tuple[SchemeName, ...] = get_args(SchemeName)
_HEADS = ("format", "bits", "MB", "pp t/s", "tg t/s", "ppl", "KL", "top-1")


@dataclass(frozen=True, slots=True)
class FormatRow:
    """One format of the model.

    Attributes:
        format: ``dense``, a scheme of ``--quantize``, or the name of a quantized file or folder.
        bits: bits of a weight over the matrices of the layers, with their scales.
        megabytes: of all tensors, in 1e6 bytes.
        prefill: tokens of a prompt per second.
        decode: tokens of an answer per second.
        ppl: perplexity.
        kl: mean KL divergence from the dense model, nats a token.
        top1: share of places with the dense model's first choice.
    """

    format: str
    bits: float
    megabytes: float
    prefill: float
    decode: float
    ppl: float
    kl: float
    top1: float


def run_formats(
    model: str,
    formats: Sequence[str],
    text: str,
    length: int,
    limit: int | None,
    plan: BenchPlan,
    threads: int,
    say: Say,
) -> list[FormatRow]:
    """The dense model's row, and one for each format.

    Args:
        model: a dense model, by name or path.
        formats: schemes, and names or paths of models that were made from it.
        text: what all are judged on.
        length: tokens of a window.
        limit: most windows; None = all.
        plan: one prompt length, one answer length, and how often.
        threads: of the engine; 0 = one for each core.
        say: takes one line before each step.

    Raises:
        ConfigError: the model is quantized, or another is not made from it.
        ModelNotFoundError: there is no such model.
        RequestError: the text is too short for a window.
    """
    rows: list[FormatRow] = []
    reference = resolve_model(model)
    for name in ("dense", *formats):
        scheme = cast(SchemeName, name) if name in SCHEME_NAMES else None
        path = reference if scheme or name == "dense" else resolve_model(name)
        with closing(open_checkpoint(reference)) as dense, closing(open_checkpoint(path)) as opened:
            _check_dense(dense)
            ours = QuantizingCheckpoint(opened, scheme) if scheme else opened
            say(f"{name}: judging")
            windows = common_windows(ours, dense, text, length, limit)
            loss = _loss(ours, dense, windows, threads, name == "dense")
            bits, size = _size(ours, scheme is not None)
        say(f"{name}: speed")
        speed = _speed(path, scheme, plan, threads)
        label = name if scheme or name == "dense" else path.name
        rows.append(FormatRow(label, bits, size / 1e6, *speed, *loss))
    return rows


def formats_table(rows: Sequence[FormatRow]) -> str:
    """The rows in markdown."""
    cells = [
        (
            row.format,
            f"{row.bits:.2f}",
            f"{row.megabytes:.1f}",
            f"{row.prefill:.0f}",
            f"{row.decode:.1f}",
            f"{row.ppl:.3f}",
            f"{row.kl:.4f}",
            f"{100 * row.top1:.1f} %",
        )
        for row in rows
    ]
    return markdown_table(_HEADS, cells, _HEADS[1:])


def formats_facts(rows: Sequence[FormatRow]) -> list[dict[str, Any]]:
    """The rows as plain JSON types."""
    return [asdict(row) for row in rows]


def _check_dense(model: Checkpoint) -> None:
    labels = set(model_size(model).formats) - set(DENSE_FORMATS)
    if labels:
        raise ConfigError(
            f"{model.path.name} is quantized already: {', '.join(sorted(labels)[:5])}; expected a "
            "dense model",
            hint="name the model that quantized ones were made from",
        )


def _loss(
    ours: Checkpoint, dense: Checkpoint, windows: Windows, threads: int, same: bool
) -> tuple[float, float, float]:
    """Perplexity, KL and equal first choices."""
    config = EngineConfig(threads=threads)
    if same:
        return perplexity(ours, windows, config)[0], 0.0, 1.0
    found = compare(ours, dense, windows, config)
    return found.ppl, found.kl_mean, found.top1


def _size(model: Checkpoint, on_load: bool) -> tuple[float, int]:
    """Bits of a weight in the layers, and bytes of all tensors; on load as if they were stored."""
    if not on_load:
        size = model_size(model)
        return size.layer_bits, size.nbytes
    bits = weights = others = 0
    for info in model.tensors():
        if not is_decoder_linear(info.name, info.shape):
            others += info.nbytes
            continue
        weight = model.load(info.name)
        assert isinstance(weight, QuantizedLinear)
        bits, weights = bits + stored_bits(weight), weights + math.prod(info.shape)
        model.release([info.name])
    return bits / max(1, weights), others + bits // 8


def _speed(
    path: Path, scheme: SchemeName | None, plan: BenchPlan, threads: int
) -> tuple[float, float]:
    """Tokens per second of prefill and of decode."""
    with Engine(path, quantize=scheme, threads=threads, **plan.engine_options()) as engine:
        ids = TokenSource(engine, plan.seed)
        prefill, decode = (
            measure(engine, test, plan.repetitions, ids).mean for test in plan.tests()
        )
    return prefill, decode
