"""Physical floors: the time below which no kernel can go, from bytes and operations alone.

    floor = max(bytes / bandwidth, operations / rate)

Bandwidth is what a copy reaches on the card, not the datasheet's; rates are the datasheet's for
dense products with fp32 (or int32) accumulation. Bytes are counted once each: weights with their
scales, activations in, results out. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halfbyte.errors import ConfigError

from ...kernels.device.gpus import Gpu
from ...kernels.formats.weight_format import WeightFormat

if TYPE_CHECKING:
    from ...kernels.kind import TritonKind

BASELINE = "fp16"
"""Name of dense 16-bit weights, which are no kind and what every kind is compared with."""
BODY = WeightFormat(4, 128)
HEAD = WeightFormat(8, -1)
"""Formats of the layers and of the head in the decode step."""

SHOWN_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048)
"""M that the tables show."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer.

    Attributes:
        name: such as ``8B qkv``.
        n: outputs.
        k: inputs.
        gated: outputs are gate and up, combined by ``silu(gate) * up``.
    """

    name: str
    n: int
    k: int
    gated: bool = False


LAYERS = (
    Layer("8B qkv", 6144, 4096),
    Layer("8B o", 4096, 4096),
    Layer("8B gate_up", 28672, 4096, gated=True),
    Layer("8B down", 4096, 14336),
    Layer("70B qkv", 10240, 8192),
    Layer("70B o", 8192, 8192),
    Layer("70B gate_up", 57344, 8192, gated=True),
    Layer("70B down", 8192, 28672),
)
"""Layers of Llama-3-8B and 70B."""


@dataclass(frozen=True, slots=True)
class Floor:
    """A floor.

    Attributes:
        us: microseconds.
        bound: ``m`` when memory sets it, ``c`` when arithmetic does.
    """

    us: float
    bound: str

    def __str__(self) -> str:
        digits = 1 if self.us < 100 else 0
        return f"{self.us:.{digits}f} {self.bound}"


def floor(bytes_moved: float, operations: float, bandwidth: float, rate: float) -> Floor:
    """The larger of the two times; rates per second."""
    memory, compute = bytes_moved / bandwidth * 1e6, operations / rate * 1e6
    return Floor(max(memory, compute), "m" if memory >= compute else "c")


def kind_named(name: str) -> TritonKind[Any]:
    """The kind of that name. Raises ConfigError, naming those that have something to time."""
    from ...kernels.kinds import KINDS

    known = {kind.name: kind for kind in KINDS if kind.cases}
    if name not in known:
        raise ConfigError(f"no kind of layer is called {name!r}; known: {', '.join(known)}")
    return known[name]


def usual_kinds() -> tuple[str, ...]:
    """Names of the kinds that other people have kernels for."""
    from ...kernels.kinds import KINDS

    return tuple(kind.name for kind in KINDS if kind.peers)


def usual_format(kind: str) -> WeightFormat | None:
    """The first case of a kind, None for the baseline. Raises ConfigError for another name."""
    return None if kind == BASELINE else kind_named(kind).cases[0].format


def format_bytes(form: WeightFormat | None, n: int, k: int) -> float:
    """Bytes of a weight [N, K], which is dense in 16 bits without a format.

    Rows have a float32 scale; groups one of fp16 and, but for tables, a zero point as a code.
    """
    if form is None:
        return 2 * n * k
    codes, code = n * k * form.bits / 8, 0 if form.zero == "table" else form.bits / 8
    return codes + (4 * n if form.group_size == -1 else n * k * (2 + code) / form.group_size)


def weight_bytes(kind: str, n: int, k: int) -> float:
    """The same of a kind's usual weight or the baseline. Raises ConfigError for another name."""
    return format_bytes(usual_format(kind), n, k)


def narrow_inputs(kind: str) -> bool:
    """Whether a kind multiplies numbers of 8 bits. Raises ConfigError for an unknown one."""
    form = usual_format(kind)
    return form is not None and form.act is not None


def linear_bytes(kind: str, m: int, n: int, k: int) -> float:
    """Bytes that ``m`` rows through a layer must move."""
    return weight_bytes(kind, n, k) + m * k * (1 if narrow_inputs(kind) else 2) + 2 * m * n


def linear_floor(card: Gpu, kind: str, m: int, n: int, k: int) -> Floor:
    """Floor of one layer; ``kind`` as in :func:`weight_bytes`."""
    rate = card.int8 if narrow_inputs(kind) else card.half
    return floor(linear_bytes(kind, m, n, k), 2 * m * n * k, card.copy, rate)


def attention_cost(
    tokens: int, start: int, heads: int, kv_heads: int, dim: int, size: int = 2
) -> tuple[float, float]:
    """(bytes, operations) of one row: ``tokens`` new ones from position ``start``, causal.

    ``size``: bytes of a cached value. The KV is read once, q in and the result out.
    """
    seen = tokens * start + tokens * (tokens + 1) / 2
    moved = 2 * (start + tokens) * kv_heads * dim * size + 4 * tokens * heads * dim
    return moved, 4 * seen * heads * dim


def step_bytes(batch: int, context: int, head: WeightFormat | None = HEAD) -> float:
    """Bytes of one decode step of the 8B shape: every weight once, and every row's KV.

    ``head``: its format, None for 16 bits.
    """
    linears = 32 * sum(format_bytes(BODY, x.n, x.k) for x in LAYERS[:4])
    return linears + format_bytes(head, 128256, 4096) + batch * context * 32 * 2 * 8 * 128 * 2


def step_floor(card: Gpu, batch: int, context: int, head: WeightFormat | None = HEAD) -> Floor:
    """Floor of that step."""
    weights = 32 * sum(x.n * x.k for x in LAYERS[:4]) + 128256 * 4096
    operations = batch * (2 * weights + context * 32 * 4 * 32 * 128)
    return floor(step_bytes(batch, context, head), operations, card.copy, card.half)


def floor_table(
    card: Gpu, kinds: Sequence[str] = (), rows: tuple[int, ...] = SHOWN_ROWS
) -> list[tuple[str, ...]]:
    """Cells, heads first: one line a kind and layer, one column an M, in microseconds.

    Without ``kinds`` the usual ones; the baseline comes last. Raises ConfigError for a wrong name.
    """
    kinds = tuple(dict.fromkeys((*(kinds or usual_kinds()), BASELINE)))
    table = [("kind", "layer", "N x K", "MB", *(f"M={m}" for m in rows))]
    for kind in kinds:
        for x in LAYERS:
            size = f"{weight_bytes(kind, x.n, x.k) / 1e6:.1f}"
            floors = (str(linear_floor(card, kind, m, x.n, x.k)) for m in rows)
            table.append((kind, x.name, f"{x.n} x {x.k}", size, *floors))
    return table


def floor_text(card: Gpu, kinds: Sequence[str] = (), rows: tuple[int, ...] = SHOWN_ROWS) -> str:
    """The floors of a card as markdown: layers, decode steps, and what they assume."""
    steps = [("8B decode step", "ms", "tok/s")]
    for batch in (1, 8, 32, 128):
        us = step_floor(card, batch, 1024).us
        label = f"batch {batch}, context 1024"
        steps.append((label, f"{us / 1e3:.2f}", f"{batch / us * 1e6:.0f}"))
    text = (
        f"{card.name}: {card.copy / 1e12:.2f} TB/s copied, {card.half / 1e12:.0f} TFLOP/s fp16, "
        f"{card.int8 / 1e12:.0f} TOP/s int8. Floors in microseconds; m: memory, c: arithmetic."
    )
    return "\n\n".join([text, markdown(floor_table(card, kinds, rows)), markdown(steps)])


def markdown(cells: list[tuple[str, ...]]) -> str:
    """A padded markdown table; the first line holds the heads."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)
