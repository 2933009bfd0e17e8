"""The matrix products of a model, fused as the engine fuses them: from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...kernels.kind import Carrier, Conditions, MatrixSpec, carrier
from ...loaders.base import Checkpoint, TensorInfo

if TYPE_CHECKING:
    from ...kernels.kind import TritonKind
    from ...kernels.tables.tuning import TunedProblem


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a layer, fused as the engine fuses it.

    Attributes:
        module: name within the layer, such as ``q_proj + k_proj + v_proj``.
        label: the file's name of its format, for people.
        spec: its weight; gated for quantized gate and up as one product.
    """

    module: str
    label: str
    spec: MatrixSpec

    def carrier(self, arch: int) -> Carrier[TritonKind[Any]]:
        """The Triton kind that carries it on ``sm_<arch>``.

        Raises ModuleNotFoundError without triton, UnsupportedWeightError when none does.
        """
        from ...kernels.kinds import KINDS

        return carrier(KINDS, self.spec, arch)

    def problem(self, m: int, where: Conditions) -> TunedProblem | None:
        """The problem of ``m`` rows as tuned tables know it; None where they know none."""
        found = self.carrier(where.device.arch)
        return found.kind.problem(found.spec, m, where)


def groups(checkpoint: Checkpoint) -> list[tuple[Product, tuple[int, ...]]]:
    """The products of a model, each with the layers that have it; the head has none."""
    infos = {info.name: info for info in checkpoint.tensors()}
    found: dict[Product, list[int]] = {}
    for index in range(checkpoint.config.num_layers):
        # Experts of one shape and format are one entry.
        for linear in dict.fromkeys(_layer(infos, f"model.layers.{index}")):
            # Only SiLU is a part of a product's kernel.
            gated = linear.spec.gated and checkpoint.config.activation == "silu"
            linear = replace(linear, spec=replace(linear.spec, gated=gated))
            found.setdefault(linear, []).append(index)
    out = [(linear, tuple(layers)) for linear, layers in found.items()]
    if checkpoint.config.tie_word_embeddings:
        out.append((_linear("lm_head", [infos["model.embed_tokens.weight"]], table=True), ()))
    else:
        out.append((_linear("lm_head", [infos["lm_head.weight"]]), ()))
    return out


def embedding(checkpoint: Checkpoint) -> Product:
    """The embedding, which a tied head shares."""
    infos = {info.name: info for info in checkpoint.tensors()}
    return _linear("embedding", [infos["model.embed_tokens.weight"]], table=True)


def _layer(infos: dict[str, TensorInfo], layer: str) -> Iterator[Product]:
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
) -> Iterator[Product]:
    """One product when ``can_fuse`` would stack the weights, else one for each."""
    parts = take(block, names)
    forms = [p.format for p in parts]
    same = forms[0] == forms[-1] == forms[1] and len({p.shape[1] for p in parts}) == 1
    same = same and len({p.encoding for p in parts}) == 1
    if not same or (forms[0] is None and len({p.label for p in parts}) > 1):
        for name, part in zip(names, parts, strict=True):
            yield _linear(name, [part])
        return
    gated = block != "self_attn" and forms[0] is not None
    yield _linear(" + ".join(names), parts, gated)


def _linear(
    module: str, parts: list[TensorInfo], gated: bool = False, table: bool = False
) -> Product:
    labels = "/".join(dict.fromkeys(p.label for p in parts))
    first, n = parts[0], sum(p.shape[0] for p in parts)
    # Stacked scales have the widest of their types.
    wide = next((p.dtype for p in parts if p.dtype == "F32"), first.dtype)
    half = all(p.half for p in parts)
    shape = n, first.shape[1], first.format
    return Product(module, labels, MatrixSpec(*shape, wide, half, gated, table, first.encoding))
