"""The matrix products of a model, fused as the engine fuses them: from headers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...kernels.device.gpus import Device
from ...kernels.formats.canonical import WeightFormat
from ...kernels.w4a16.config import Problem
from ...kernels.w4a16.layout import ROW_ALIGN, SLICE
from ...loaders.base import Checkpoint, TensorInfo

if TYPE_CHECKING:
    from ..backends.triton_weights import Family


@dataclass(frozen=True, slots=True)
class Linear:
    """One product of a layer, fused as the engine fuses it.

    Attributes:
        module: name within the layer, such as ``q_proj + k_proj + v_proj``.
        n: rows of the weight.
        k: columns.
        label: the file's name of its format.
        format: canonical format, or None for dense weights.
        gated: quantized gate and up as one product, which ends in ``silu(gate) * up``.
        table: the matrix is the embedding, too.
    """

    module: str
    n: int
    k: int
    label: str
    format: WeightFormat | None
    gated: bool = False
    table: bool = False

    def carrier(self, arch: int = 90) -> tuple[Family, str]:
        """Triton kernel family on ``sm_<arch>``, and why. Raises ModuleNotFoundError without it."""
        from ..backends.triton_weights import family, table_family

        if self.format is None:
            return "dense", f"{self.label} weights have no codes"
        return table_family(self.format) if self.table else family(self.format, arch)

    def problem(self, m: int, device: Device, fp16: bool, exact: bool = False) -> Problem:
        """The W4A16 problem of ``m`` rows."""
        assert self.format is not None
        # Gate and up are interleaved in blocks of 64 rows, each side padded.
        rows = _up(self.n // 2, ROW_ALIGN // 2) * 2 if self.gated else _up(self.n, ROW_ALIGN)
        group = self.format.group_size
        if group == -1:
            group = 0
        elif group % SLICE:
            group = math.gcd(group, SLICE)
        return Problem(m, rows, self.k, group, fp16, device.arch, device.sms, exact)


def groups(checkpoint: Checkpoint) -> list[tuple[Linear, tuple[int, ...]]]:
    """The products of a model, each with the layers that have it; the head has none."""
    infos = {info.name: info for info in checkpoint.tensors()}
    found: dict[Linear, list[int]] = {}
    for index in range(checkpoint.config.num_layers):
        # Experts of one shape and format are one entry.
        for linear in dict.fromkeys(_layer(infos, f"model.layers.{index}")):
            # Only SiLU is a part of a product's kernel.
            gated = linear.gated and checkpoint.config.activation == "silu"
            linear = replace(linear, gated=gated)
            found.setdefault(linear, []).append(index)
    out = [(linear, tuple(layers)) for linear, layers in found.items()]
    if checkpoint.config.tie_word_embeddings:
        head = _linear("lm_head", [infos["model.embed_tokens.weight"]])
        out.append((replace(head, table=True), ()))
    else:
        out.append((_linear("lm_head", [infos["lm_head.weight"]]), ()))
    return out


def _layer(infos: dict[str, TensorInfo], layer: str) -> Iterator[Linear]:
    def take(block: str, names: Sequence[str]) -> list[TensorInfo]:
        return [infos[f"{layer}.{block}.{name}.weight"] for name in names]

    yield from _fused(("q_proj", "k_proj", "v_proj"), take, "self_attn")
    yield _linear("o_proj", take("self_attn", ["o_proj"]))
    blocks = ["mlp"]
    if f"{layer}.mlp.gate.weight" in infos:
        router = infos[f"{layer}.mlp.gate.weight"]
        yield _linear("gate", [router])
        blocks = [f"mlp.experts.{index}" for index in range(router.shape[0])]
    for block in blocks:
        yield from _fused(("gate_proj", "up_proj"), take, block)
        yield _linear("down_proj", take(block, ["down_proj"]))


def _fused(
    names: tuple[str, ...],
    take: Callable[[str, Sequence[str]], list[TensorInfo]],
    block: str,
) -> Iterator[Linear]:
    """One product when ``can_fuse`` would stack the weights, else one for each."""
    parts = take(block, names)
    forms = [p.format for p in parts]
    same = forms[0] == forms[-1] == forms[1] and len({p.shape[1] for p in parts}) == 1
    if not same or (forms[0] is None and len({p.label for p in parts}) > 1):
        for name, part in zip(names, parts, strict=True):
            yield _linear(name, [part])
        return
    gated = block != "self_attn" and forms[0] is not None
    yield _linear(" + ".join(names), parts, gated)


def _linear(module: str, parts: list[TensorInfo], gated: bool = False) -> Linear:
    labels = "/".join(dict.fromkeys(p.label for p in parts))
    form = parts[0].format
    n = sum(p.shape[0] for p in parts)
    return Linear(module, n, parts[0].shape[1], labels, form, gated)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
