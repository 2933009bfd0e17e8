"""Predicted times of kernels and decode steps on a GPU that is not there. None of it is measured.

A product takes ``launch + first + stream + last + end``: the launch with the kernel's prologue, the
latency of the first loads, the longest of what memory, the loop's instructions and the port of a
multiprocessor to the second cache need, the last slice with the epilogue, and where K is split the
end: a barrier of memory with an atomic, and the loads of the program that arrives last. Programs,
splits and slices are those that :meth:`~halfbyte.kernels.kind.TritonKind.choose` gives, the clocks
of a loop those of its machine code (:mod:`.predict_clocks`).

:class:`CardConstants` has what a measurement on the card is to correct, by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from halfbyte.errors import ConfigError

from ...kernels.attention.config import (
    JOIN_TOGETHER,
    LEAST_KEY_CHUNK,
    decode_tile,
    split_count,
)
from ...kernels.attention.decode_kernel import joined_heads
from ...kernels.codegen.clocks import L2_CLOCKS
from ...kernels.codegen.targets import target
from ...kernels.device.dependent import dependent_launch
from ...kernels.device.gpus import Gpu
from ...kernels.device.parts import JOINED_PARTS, joined_rows
from ...kernels.fused.config import head_tile
from ...kernels.kind import Chosen, Conditions, MatrixSpec, TritonKind, carrier
from ...kernels.kinds import KINDS
from ...kernels.sampling.config import NUM_WARPS, VOCAB_BLOCK, tiles_of_a_part
from .cases import AttentionSizes
from .floors import BASELINE, BODY, LAYERS, Layer, attention_cost, linear_floor, step_floor
from .predict_clocks import KernelClocks, recorded_clocks

PREDICTED_ROWS = (1, 8, 32, 128)
"""M of the tables, and batches of the steps."""

# Llama-3-8B, whose step is predicted; its head is dense in 16 bits.
_SIZES = AttentionSizes()
_VOCABULARY, _WIDTH, _DEPTH = 128256, 4096, 32
_SLICE, _SLICES_AHEAD = 128, 4
_NEAREST = 1.005
"""A product takes at least so many times its floor."""
_NEVER_EARLY = ("embedding", "head", "draw")
_REGISTERS, _CTAS, _RESERVED = 65536, 32, 1024


@dataclass(frozen=True, slots=True)
class CardConstants:
    """What is assumed of a family of cards.

    Attributes:
        ghz: clock while kernels of a decode step run.
        launch_us: from the start of a launch to its first load.
        first_us: until the first loads from memory are there.
        last_us: the last slice, the epilogue, and stores becoming visible.
        arrive_us: memory barrier and atomic of a split that has stored its part.
        gap_us: between two launches of a graph, the first of which has ended.
        wake_us: from there to the first instruction of a kernel that has started before and waits.
        ahead_us: in which such a kernel's weights come near, if memory is idle, before it wakes.
        join_clocks: instructions of the last arriver for one piece of a tile, its loads apart.
        fold_clocks: the same of attention's, for the splits that it loads together.
        host_us: of Python and the driver for a step.
        feed_us: of the device between two steps of which the second was launched while the first
            ran: copies of inputs and tokens.
        port_bytes: per clock, from the second cache into one multiprocessor.
    """

    ghz: float
    launch_us: float = 0.35
    first_us: float = 0.5
    last_us: float = 0.5
    arrive_us: float = 0.65
    gap_us: float = 1.0
    wake_us: float = 0.4
    ahead_us: float = 0.9
    join_clocks: float = 235.0
    fold_clocks: float = 740.0
    host_us: float = 250.0
    feed_us: float = 20.0
    port_bytes: float = 64.0

    def us(self, clocks: float) -> float:
        """Clocks in microseconds."""
        return clocks / self.ghz / 1e3


CONSTANTS = {80: CardConstants(1.41), 90: CardConstants(1.755)}
"""By compute capability. Assumed, none is measured; those of sm_80 but the clock are sm_90's.

``join_clocks`` and ``fold_clocks`` were counted in the machine code. ``wake_us`` and ``ahead_us``
are the boldest.
"""


@dataclass(frozen=True, slots=True)
class KernelPrediction:
    """Predicted time of one launch.

    Attributes:
        name: of the layer or the operation.
        rows: of activations.
        note: kernel, programs, splits and slices of each.
        floor_us: what bytes or operations allow.
        terms: microseconds by what takes them.
        bound: what ``stream`` is the time of: ``memory``, ``loop`` or ``port``.
    """

    name: str
    rows: int
    note: str
    floor_us: float
    terms: dict[str, float] = field(default_factory=dict)
    bound: str = "memory"

    @property
    def us(self) -> float:
        """All terms."""
        return sum(self.terms.values())

    @property
    def share(self) -> float:
        """Floor over prediction."""
        return self.floor_us / self.us

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"predicted_us": self.us, "share_of_floor": self.share}


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """Predicted time of one decode step of the 8B shape.

    Attributes:
        batch: rows.
        context: tokens of each.
        floor_us: weights and caches over bandwidth, or operations over rate.
        kinds: (launches, microseconds of all of them) by what they do.
        launches: of the step.
        gaps_us: between launches.
        host_us: between this step and the next, in which the device has little or nothing to do.
    """

    batch: int
    context: int
    floor_us: float
    kinds: dict[str, tuple[int, float]]
    launches: int
    gaps_us: float
    host_us: float

    @property
    def us(self) -> float:
        """The whole step."""
        return sum(us for _, us in self.kinds.values()) + self.gaps_us + self.host_us

    @property
    def share(self) -> float:
        """Floor over prediction."""
        return self.floor_us / self.us

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        tokens = self.batch / self.us * 1e6
        figures = {"predicted_us": self.us, "share_of_floor": self.share}
        return asdict(self) | figures | {"predicted_tokens_per_second": tokens}


class Predictor:
    """Predicts for one card, in fp16 with groups of 128.

    Args:
        card: a listed GPU.

    Raises:
        ConfigError: there are no constants of its compute capability.
    """

    def __init__(self, card: Gpu) -> None:
        if card.arch not in CONSTANTS:
            known = ", ".join(f"sm_{arch}" for arch in CONSTANTS)
            raise ConfigError(
                f"gpu is {card.name!r}, which is sm_{card.arch}: nothing is predicted for it; "
                f"there are constants of {known}",
                hint="--dry-run shows its floors",
            )
        self.card = card
        self.assumed = CONSTANTS[card.arch]
        self.early = dependent_launch(card.arch)
        # Tokens are read a step late.
        self.late = True
        self.least = LEAST_KEY_CHUNK
        self._target = target(f"sm_{card.arch}")

    def product(self, layer: Layer, rows: int, *, residual: bool = False) -> KernelPrediction:
        """A layer of 4-bit weights, by the kind that carries it.

        Args:
            layer: its size.
            rows: of activations, below the crossover to a dense product.
            residual: the product is added to one, which is read.

        Raises:
            ConfigError: so many rows are multiplied dense.
        """
        spec = MatrixSpec(layer.n, layer.k, BODY, gated=layer.gated)
        kind = carrier(KINDS, spec, self.card.arch).kind
        chosen = self._chosen(kind, spec, rows)
        if chosen.kernel == "dequantize":
            raise ConfigError(f"{rows} rows are multiplied dense; expected fewer")
        c = chosen.config
        config = _product_config(chosen.kernel, c, layer.gated)
        clocks = self._clocks(kind.name, chosen.kernel, config)
        slices = -(-layer.k // _SLICE)
        each = -(-slices // c["splits"])
        tiles = -(-layer.n // c["bn"]) * -(-rows // c["bm"])
        ctas = tiles * c["splits"]
        width = layer.n // 2 if layer.gated else layer.n
        moved = kind.packed_bytes(spec) + 2 * rows * (layer.k + width * (2 if residual else 1))
        memory = moved / self.card.copy * 1e6
        loop = self.assumed.us(self._loop(clocks, ctas, c["warps"]) * each)
        # Rows beyond M repeat the first one, which the first cache has.
        fed = each * (_SLICE * (c["bn"] / 2 + 2 * min(rows, c["bm"])) + 4 * c["bn"])
        port = self.assumed.us(-(-ctas // self.card.sms) * fed / self.assumed.port_bytes)
        memory -= self._ahead(ctas * min(each, _SLICES_AHEAD) * _SLICE * c["bn"] / 2)
        bound, stream = max(
            ("memory", memory), ("loop", loop), ("port", port), key=lambda term: term[1]
        )
        terms = self._frame(stream, early=self.early, near=True)
        terms |= self._split_end(rows, c["bm"], c["bn"], c["splits"])
        note = f"{chosen.kernel} {c['bm']}x{c['bn']}, {ctas} programs"
        note += f", {c['splits']} splits of {each} slices"
        least = linear_floor(self.card, kind.name, rows, layer.n, layer.k).us
        # What comes ahead is read while the kernel before ends. It is not taken for more than that.
        terms["stream"] += max(0.0, least * _NEAREST - sum(terms.values()))
        return KernelPrediction(layer.name, rows, note, least, terms, bound)

    def step(self, batch: int, context: int = 1024) -> StepPrediction:
        """A decode step of the 8B shape with a 16-bit head, drawn greedily, from a CUDA graph."""
        linears = [self.product(x, batch, residual=x.name[3:] in ("o", "down")) for x in LAYERS[:4]]
        kinds = {
            "products": (4 * _DEPTH, _DEPTH * sum(x.us for x in linears)),
            "norms": (2 * _DEPTH + 1, (2 * _DEPTH + 1) * self._norm(batch)),
            "rope": (_DEPTH, _DEPTH * self._rope(batch)),
            "attention": (_DEPTH, _DEPTH * self._attention(batch, context)),
            "embedding": (1, self._norm(batch)),
            "head": (1, sum(self._frame(self._head(batch)).values())),
            "draw": (1, self._draw(batch)),
        }
        launches = sum(count for count, _ in kinds.values())
        least = step_floor(self.card, batch, context, None).us
        apart = sum(kinds[name][0] for name in _NEVER_EARLY) if self.early else launches
        gaps = apart * self.assumed.gap_us + (launches - apart) * self.assumed.wake_us
        host = self.assumed.host_us
        if self.late:
            # The host gets the next step ready while the device computes this one.
            device = sum(us for _, us in kinds.values()) + gaps
            host = max(self.assumed.feed_us, host - device)
        return StepPrediction(batch, context, least, kinds, launches, gaps, host)

    def _chosen(self, kind: TritonKind[Any], spec: MatrixSpec, rows: int) -> Chosen:
        """What runs, with its tile and splits."""
        return kind.choose(spec, rows, Conditions(self.card, fp16=True))

    def _clocks(self, family: str, kernel: str, config: str) -> KernelClocks:
        return recorded_clocks(f"{family}.{kernel}", config, self._target.name)

    def _ahead(self, size: float) -> float:
        """Microseconds of memory for ``size`` bytes that come before a product starts."""
        return min(self.assumed.ahead_us, size / self.card.copy * 1e6) if self.early else 0.0

    def _frame(self, stream: float, *, early: bool = False, near: bool = False) -> dict[str, float]:
        """Terms of a kernel; ``near``: where it starts early, its first loads hit the cache."""
        a = self.assumed
        first = a.us(L2_CLOCKS) if early and near else a.first_us
        launch = 0.0 if early else a.launch_us
        return {"launch": launch, "first": first, "stream": stream, "last": a.last_us}

    def _resident(self, clocks: KernelClocks, warps: int) -> int:
        """Programs that one multiprocessor holds at once."""
        by_registers = _REGISTERS // (-(-clocks.registers // 8) * 8 * 32 * warps)
        by_shared = self._target.shared_limit // (clocks.shared_bytes + _RESERVED)
        return max(1, min(by_registers, by_shared, _CTAS))

    def _loop(self, clocks: KernelClocks, ctas: int, warps: int) -> int:
        """Clocks of one pass of the loop of all programs of the busiest multiprocessor."""
        left, spent = -(-ctas // self.card.sms), 0
        while left > 0:
            now = min(left, self._resident(clocks, warps))
            quarter = min(len(clocks.loop), -(-now * warps // 4))
            spent += clocks.loop[quarter - 1]
            left -= now
        return spent

    def _split_end(self, rows: int, bm: int, bn: int, splits: int) -> dict[str, float]:
        """What a split of K adds: sums of the tokens there are, read piece by piece.

        Each piece waits once for all parts that are loaded together.
        """
        if splits == 1:
            return {"arrive": 0.0, "join": 0.0}
        live = min(rows, bm)
        rounds = -(-live // joined_rows(bm)) * -(-splits // JOINED_PARTS)
        taken = splits * live * bn * 4 / self.assumed.port_bytes
        clocks = rounds * (L2_CLOCKS + self.assumed.join_clocks) + taken
        return {"arrive": self.assumed.arrive_us, "join": self.assumed.us(clocks)}

    def _head(self, rows: int) -> float:
        """The head at its floor."""
        return linear_floor(self.card, BASELINE, rows, _VOCABULARY, _WIDTH).us

    def _straight(self, clocks: KernelClocks, programs: int, warps: int) -> float:
        """A kernel without a loop, all of whose programs are there at once, or in turns."""
        turns = -(-programs // (self.card.sms * self._resident(clocks, warps)))
        a = self.assumed
        launch = 0.0 if self.early else a.launch_us
        return launch + turns * a.us(clocks.whole) + a.last_us

    def _norm(self, rows: int) -> float:
        return self._straight(self._clocks("fused", "add_rms_norm", f"fp16 {_WIDTH}"), rows, 8)

    def _rope(self, rows: int) -> float:
        heads, dim = _SIZES.heads + 2 * _SIZES.kv_heads, _SIZES.dim
        per, warps = head_tile(heads, dim // 2)
        programs = rows * -(-heads // per)
        clocks = self._clocks("fused", "rope_write_kv", f"fp16 h{_SIZES.heads} d{dim} r{dim}")
        return self._straight(clocks, programs, warps)

    def _attention(self, rows: int, context: int) -> float:
        """Decode of a row each, whose splits the last arriver joins."""
        a, s = self.assumed, _SIZES
        group = s.heads // s.kv_heads
        tile = decode_tile(self.card.arch, group, s.page, s.dim, 2)
        shape = f"p{s.page} d{s.dim} w{tile.num_warps} s{tile.num_stages}"
        clocks = self._clocks("attention", "decode", f"g{group} {shape} fp16")
        pages = -(-context // s.page)
        splits = split_count(self.card.sms, rows * s.kv_heads, context, False)
        per = max(-(-pages // splits), self.least // s.page)
        live = -(-pages // per)
        ctas = rows * s.kv_heads * live
        moved, _ = attention_cost(1, context - 1, s.heads, s.kv_heads, s.dim)
        loop = a.us(self._loop(clocks, ctas, tile.num_warps))
        stream = max(rows * moved / self.card.copy * 1e6, self._pages(pages, per, live, loop))
        time = sum(self._frame(stream, early=self.early).values())
        return time if splits == 1 else time + self._fold(live, group)

    def _fold(self, live: int, group: int) -> float:
        """What splits of a row add: of all query heads of a KV head, read by one program.

        Args:
            live: splits.
            group: query heads of a KV head.
        """
        a = self.assumed
        rounds = -(-live // JOIN_TOGETHER) * -(-group // joined_heads(group, _SIZES.dim))
        taken = live * group * (_SIZES.dim + 2) * 4 / a.port_bytes
        return a.arrive_us + a.us(rounds * (L2_CLOCKS + a.fold_clocks) + taken)

    def _pages(self, pages: int, per: int, live: int, loop: float) -> float:
        """Microseconds of the split that takes longest, with so many for a page.

        Args:
            pages: of a row.
            per: pages of a split, less in the last one.
            live: splits.
            loop: of one page.
        """
        return min(pages, per) * loop

    def _draw(self, rows: int) -> float:
        """The largest logit of each row, by programs of 16 warps that meet where there are some."""
        a = self.assumed
        clocks = self._clocks("sampling", "argmax", "fp16")
        span = self._draw_tiles(rows)
        programs = -(-_VOCABULARY // (span * VOCAB_BLOCK))
        loop = a.us(self._loop(clocks, rows * programs, NUM_WARPS) * span)
        meet = a.arrive_us + a.us(L2_CLOCKS) if programs > 1 else 0.0
        return sum(self._frame(loop).values()) + meet

    def _draw_tiles(self, rows: int) -> int:
        """Tiles of a row that one program looks at."""
        return tiles_of_a_part(rows, _VOCABULARY, self.card.sms)


def _product_config(kernel: str, c: dict[str, Any], gated: bool) -> str:
    """Name of the variant of a choice; late tiles but one have none of their own for the gate."""
    tile = f"m{c['bm']} g128 zero {c['bm']}x{c['bn']} w{c['warps']} s{c['stages']} fp16"
    return f"{tile} silu" if gated and (kernel == "direct" or c["bm"] == 16) else tile
