"""Which CPU kernel each layer of a checkpoint takes, and why: from headers alone.

:mod:`.explain_triton` does the same for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...kernels.cpu.kinds import TILE_KINDS
from ...kernels.cpu.ops import PARTITION, RUN, SPAN
from ...kernels.formats.weight_format import InputRule, input_rounding
from ...kernels.kind import Kind, carrier, refusal
from ...loaders.base import Checkpoint
from ..backends.cpu_c import NEVER, SPLIT_TOKENS, CompiledOps
from ..backends.cpu_torch import TorchOps
from .products import Product, groups

PREFILL_ROWS = 1024
"""Most rows of a step, with the engine's default options."""

FEW_ROWS = 8
"""Rows up to which products of floats read codes as they lie (FEW_ROWS in product.h)."""

DIRECT_ROWS = {16: 32, 8: 16, 4: 16}
"""Lanes of a vector -> the same of products of rounded inputs (DIRECT_ROWS in integer.c)."""

AMX_BLOCK_ROWS = 16
"""Rows from which products of rounded inputs take AMX (AMX_ROWS in integer.c)."""


@dataclass(frozen=True, slots=True)
class ExplainedRow:
    """What runs for one product, or for attention, with up to ``m`` rows of activations.

    Attributes:
        layers: indices of the layers that this holds for; empty for the head.
        module: which product.
        shape: (N, K), or None for attention.
        format: the file's name of the weight's format; KV type for attention.
        m: rows, the largest of their bucket.
        family: how the weights are held (the name of a kind), or ``attention``.
        activations: how its inputs are rounded, see ``input_rounding``; "" for attention.
        kernel: the kernel of the family.
        config: its launch parameters.
        source: ``table``, ``neighbour``, ``formula``, ``exact`` or ``library``.
        detail: which table and entry, or why this family.
        rejected: the kernels that were not chosen, each with its reason.
    """

    layers: tuple[int, ...]
    module: str
    shape: tuple[int, int] | None
    format: str
    m: int
    family: str
    activations: str
    kernel: str
    config: dict[str, Any]
    source: str
    detail: str
    rejected: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def explain_cpu(checkpoint: Checkpoint, ops: CompiledOps | TorchOps) -> list[ExplainedRow]:
    """A row for each product and range of rows on a CPU backend; layers that are alike share.

    Args:
        checkpoint: only its headers are read.
        ops: the backend as the engine would make it.
    """
    product = _compiled if isinstance(ops, CompiledOps) else _torch
    rows = [
        row
        for linear, layers in groups(checkpoint)
        for row in product(linear, layers, ops)  # type: ignore[arg-type]
    ]
    return rows + list(_attention(checkpoint, ops))


def packed_for(linear: Product, ops: CompiledOps | TorchOps) -> int:
    """Bytes of a weight [N, K] as a CPU backend packs it, its bias apart."""
    kinds: Sequence[Kind] = TILE_KINDS if isinstance(ops, CompiledOps) else ops.kinds
    return carrier(kinds, linear.spec, 0).kind.packed_bytes(linear.spec)


def _compiled(linear: Product, layers: tuple[int, ...], ops: CompiledOps) -> Iterator[ExplainedRow]:
    kind = carrier(TILE_KINDS, linear.spec, 0).kind
    kept = kind.name, kind.input_rule(linear.spec, ops.activations)
    why = kind.how(linear.spec)
    config: dict[str, Any] = {"lanes": ops.library.lanes}
    form = linear.spec.format
    act = form is not None and form.act is not None
    floats = act or kept[1] == "float"
    first = ops.gemm_rows if floats else AMX_BLOCK_ROWS if ops.library.amx else NEVER
    few = FEW_ROWS if floats else DIRECT_ROWS[ops.library.lanes]
    few, most = min(few, first - 1), min(first - 1, PREFILL_ROWS)
    direct = f"from {few + 1} rows on unpacking a tile once serves all of them"
    panel = f"up to {few} rows the codes are read as they lie"
    yield _row(linear, layers, few, *kept, "direct", config, why, {"panel": direct})
    if few < most:
        yield _row(linear, layers, most, *kept, "panel", config, why, {"direct": panel})
    if first < NEVER and not floats:
        faster = f"from {first} rows on AMX sums the products of bytes, to the same bits"
        yield _row(linear, layers, PREFILL_ROWS, *kept, "tiles", {}, why, {"panel": faster})
    elif first < NEVER:
        faster = f"from {ops.gemm_rows} rows on AMX multiplies bfloat16 panels faster"
        config = {"inputs": "int8 or bfloat16" if act else "bfloat16"}
        yield _row(linear, layers, PREFILL_ROWS, *kept, "gemm", config, why, {"panel": faster})


def _torch(linear: Product, layers: tuple[int, ...], ops: TorchOps) -> Iterator[ExplainedRow]:
    dtype = str(ops.matmul).removeprefix("torch.")
    found = carrier(ops.kinds, linear.spec, 0)
    why = refusal(found.rejected) or f"torch has a kernel for such weights and {dtype}"
    yield _row(linear, layers, PREFILL_ROWS, found.kind.name, "float", "torch", {}, why, {})


def _row(
    linear: Product,
    layers: tuple[int, ...],
    m: int,
    family: str,
    rule: InputRule,
    kernel: str,
    config: dict[str, Any],
    detail: str,
    rejected: dict[str, str],
) -> ExplainedRow:
    shape = (linear.spec.n, linear.spec.k)
    source = "library" if kernel == "torch" else "formula"
    activations = input_rounding(linear.spec.format, rule)
    return ExplainedRow(
        layers,
        linear.module,
        shape,
        linear.label,
        m,
        family,
        activations,
        kernel,
        config,
        source,
        detail,
        rejected,
    )


def _attention(checkpoint: Checkpoint, ops: CompiledOps | TorchOps) -> Iterator[ExplainedRow]:
    compiled = isinstance(ops, CompiledOps)
    cfg = checkpoint.config
    windows: dict[int, list[int]] = {}
    for index in range(cfg.num_layers):
        windows.setdefault(cfg.window(index), []).append(index)
    for window, layers in windows.items():
        about = f"head {cfg.head_dim}" + (f", window {window}" if window else "")
        kinds = [(PREFILL_ROWS, "torch", {})]
        if isinstance(ops, CompiledOps):
            kinds = [
                (SPLIT_TOKENS, "split", {"keys": PARTITION}),
                (ops.span_tokens, "split", {"keys": SPAN * PARTITION, "tokens": RUN}),
                (PREFILL_ROWS, "run", {"keys": PARTITION, "tokens": RUN}),
            ]
        for m, kernel, config in kinds:
            yield ExplainedRow(
                tuple(layers),
                "attention",
                None,
                f"KV {str(ops.kv_dtype).removeprefix('torch.')}",
                m,
                "attention",
                "",
                kernel,
                config,
                "formula" if compiled else "library",
                about,
            )
