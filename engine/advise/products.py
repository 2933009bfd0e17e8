"""The matrix products of a model, fused as the engine fuses them: from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...kernels.formats.weight_format import InputRule
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


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight of a model, stacked as the engine stacks it.

    Attributes:
        product: that it is for.
        layer: its layer; None for the head and the embedding.
        stored: bytes in the files.
        expert: it belongs to one expert of a mixture.
    """

    product: Product
    layer: int | None
    stored: int
    expert: bool = False


def matrices(checkpoint: Checkpoint, rule: InputRule = "float") -> Iterator[Matrix]:
    """Every weight that a step of a run with a rule multiplies by, the head last."""
    for matrix in _matrices(checkpoint):
        product = replace(matrix.product, spec=matrix.product.spec.under(rule))
        yield replace(matrix, product=product)


def _matrices(checkpoint: Checkpoint) -> Iterator[Matrix]:
    infos = {info.name: info for info in checkpoint.tensors()}
    for index in range(checkpoint.config.num_layers):
        for matrix in _layer(infos, index):
            # Only SiLU is a part of a product's kernel.
            spec = matrix.product.spec
            gated = spec.gated and checkpoint.config.activation == "silu"
            product = replace(matrix.product, spec=replace(spec, gated=gated))
            yield replace(matrix, product=product)
    if checkpoint.config.tie_word_embeddings:
        yield _matrix("lm_head", [infos["model.embed_tokens.weight"]], table=True)
    else:
        yield _matrix("lm_head", [infos["lm_head.weight"]])


def groups(
    checkpoint: Checkpoint, rule: InputRule = "float"
) -> list[tuple[Product, tuple[int, ...]]]:
    """The products of a model, each with the layers that have it; the head has none.

    Experts of one shape and format are one entry.
    """
    found: dict[Product, dict[int, None]] = {}
    for matrix in matrices(checkpoint, rule):
        layers = found.setdefault(matrix.product, {})
        if matrix.layer is not None:
            layers[matrix.layer] = None
    return [(product, tuple(layers)) for product, layers in found.items()]


def embedding(checkpoint: Checkpoint) -> Matrix:
    """The embedding, which a tied head shares."""
    infos = {info.name: info for info in checkpoint.tensors()}
    return _matrix("embedding", [infos["model.embed_tokens.weight"]], table=True)


def _layer(infos: dict[str, TensorInfo], index: int) -> Iterator[Matrix]:
    layer = f"model.layers.{index}"

    def take(block: str, names: Sequence[str]) -> list[TensorInfo]:
        return [infos[f"{layer}.{block}.{name}.weight"] for name in names]

    def mlp(block: str) -> Iterator[Matrix]:
        yield from _fused(("gate_proj", "up_proj"), take, block)
        yield _matrix("down_proj", take(block, ["down_proj"]))

    def mixer() -> Iterator[Matrix]:
        if f"{layer}.linear_attn.out_proj.weight" in infos:
            yield from _fused(tuple(f"in_proj_{part}" for part in "qkvz"), take, "linear_attn")
            yield from _fused(("in_proj_b", "in_proj_a"), take, "linear_attn")
            yield _matrix("out_proj", take("linear_attn", ["out_proj"]))
            return
        gated = f"{layer}.self_attn.output_gate_proj.weight" in infos
        query = "query_proj" if gated else "q_proj"
        yield from _fused((query, "k_proj", "v_proj"), take, "self_attn")
        if gated:
            yield _matrix("output_gate_proj", take("self_attn", ["output_gate_proj"]))
        yield _matrix("o_proj", take("self_attn", ["o_proj"]))

    def own() -> Iterator[Matrix]:
        yield from mixer()
        if router is None:
            yield from mlp("mlp")
            return
        yield _matrix("gate", [router])
        if f"{layer}.mlp.shared_expert_gate.weight" in infos:
            yield _matrix("shared_expert_gate", take("mlp", ["shared_expert_gate"]))
            yield from mlp("mlp.shared_expert")
        for expert in range(router.shape[0]):
            yield from (replace(m, expert=True) for m in mlp(f"mlp.experts.{expert}"))

    router = infos.get(f"{layer}.mlp.gate.weight")
    yield from (replace(matrix, layer=index) for matrix in own())


def _fused(
    names: tuple[str, ...],
    take: Callable[[str, Sequence[str]], list[TensorInfo]],
    block: str,
) -> Iterator[Matrix]:
    """One matrix when ``can_fuse`` would stack the weights, else one for each."""
    parts = take(block, names)
    forms = [p.format for p in parts]
    same = all(form == forms[0] for form in forms) and len({p.shape[1] for p in parts}) == 1
    same = same and len({p.encoding for p in parts}) == 1
    if not same or (forms[0] is None and len({p.label for p in parts}) > 1):
        for name, part in zip(names, parts, strict=True):
            yield _matrix(name, [part])
        return
    gated = names[0] == "gate_proj" and forms[0] is not None
    yield _matrix(" + ".join(names), parts, gated)


def _matrix(
    module: str, parts: list[TensorInfo], gated: bool = False, table: bool = False
) -> Matrix:
    labels = "/".join(dict.fromkeys(p.label for p in parts))
    first, n = parts[0], sum(p.shape[0] for p in parts)
    # Stacked scales have the widest of their types.
    wide = next((p.dtype for p in parts if p.dtype == "F32"), first.dtype)
    half = all(p.half for p in parts)
    shape = n, first.shape[1], first.format
    compact = first.compact if all(p.compact == first.compact for p in parts) else None
    spec = MatrixSpec(*shape, wide, half, gated, table, first.encoding, compact)
    return Matrix(Product(module, labels, spec), None, sum(p.nbytes for p in parts))
