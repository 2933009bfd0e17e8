"""A model one layer at a time, with all windows of a text at once.

Only one layer's weights are in memory, and one residual for each token. Judging walks two models
side by side. Quantizing decides what a matrix is to be when the inputs of all tokens stand in front
of it (:mod:`.deciding`), so each layer is computed once, and every matrix sees what the quantized
ones before it give.

Shape letters: T tokens of a batch, D hidden size, K inputs of a matrix, L tokens of a window,
V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import ConfigError

from ..engine.backends import make_backend
from ..engine.backends.base import Backend, Ops, PackedLinear
from ..engine.config import EngineConfig
from ..engine.models.blocks import Block, centered
from ..engine.models.decoder import block_states, finished_logits, layer_blocks
from ..engine.models.projections import FusedLinear
from ..engine.models.rope import Rotaries
from ..engine.models.weights import WeightSource
from ..engine.run.executors import Executor
from ..engine.run.kv_cache import KVCache
from ..engine.run.rows import Rows
from ..engine.run.step import StepInputs
from ..loaders.base import Checkpoint
from .deciding import Decide, PendingSource, Traveller, Wanted, travel_together
from .spill import Spill, Spilled

# Tokens that go through a layer together: enough for products of large matrices, little memory.
BATCH_TOKENS = 4096
# Rows of logits at once: the block of rows for which the C kernels read a weight once.
LOGIT_ROWS = 64

Watch = Callable[["StackedLinear", Tensor, Tensor], None]
"""Called with a matrix, its inputs [T, K] and what the product gave [T, N], after each product."""


@dataclass(frozen=True, slots=True)
class StackedLinear:
    """A packed matrix of a layer and the modules whose projections are stacked in it.

    Attributes:
        modules: full names, in the order of the rows.
        packed: the matrix [N, K].
    """

    modules: tuple[str, ...]
    packed: PackedLinear


class _NamedSource(WeightSource):
    """Remembers which modules each packed matrix holds."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.linears: dict[int, StackedLinear] = {}

    def packed(self, module: str, has_bias: bool = False) -> PackedLinear:
        packed = super().packed(module, has_bias)
        self.linears[id(packed)] = StackedLinear((module,), packed)
        return packed

    def fused(self, modules: list[str], has_bias: bool, gate: Any = None) -> FusedLinear[Any]:
        fused = super().fused(modules, has_bias)
        whole = len(fused.parts) == 1
        groups = [tuple(modules)] if whole else [(module,) for module in modules]
        for names, part in zip(groups, fused.parts, strict=True):
            self.linears[id(part)] = StackedLinear(names, part)
        fused.activation = gate or "silu"
        return fused


class _WatchedOps:
    """A backend's ops that tell what goes into each product, and what comes out."""

    def __init__(self, ops: Ops[Any], linears: dict[int, StackedLinear], watch: Watch) -> None:
        self._ops, self._linears, self._watch = ops, linears, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, x_TK: Tensor, weight: PackedLinear, out: Tensor | None = None) -> Tensor:
        y_TN = self._ops.linear(x_TK, weight, out)
        # Ops may only have been noted down so far.
        self._ops.flush()
        self._watch(self._linears[id(weight)], x_TK, y_TN)
        return y_TN

    def linear_add(self, x_TK: Tensor, weight: PackedLinear, residual_TN: Tensor) -> None:
        self._ops.add(self.linear(x_TK, weight), residual_TN)


class _Piece:
    """A part of a network that an executor runs as if it were all of it."""

    recordable = False

    def __init__(self, forward: Callable[[StepInputs, KVCache], Tensor]) -> None:
        self._forward = forward

    def forward(self, step: StepInputs, kv: KVCache, out: Tensor | None = None) -> Tensor:
        return self._forward(step, kv)

    def cap(self, logits_SV: Tensor) -> Tensor:
        return logits_SV

    def logits_buffer(self, rows: int) -> Tensor:
        return torch.empty(rows, 0)  # nothing of a walk is kept for replay


@dataclass(slots=True)
class _Batch:
    """Some windows: their inputs, and where they are in the network, [T, D], or on the disk."""

    step: StepInputs
    x_TD: Tensor
    spilled: Spilled | None = None

    def rest(self, spill: Spill | None) -> None:
        """Nobody works on it for now."""
        if spill is not None:
            self.spilled = spill.put(self.x_TD)

    def wake(self) -> None:
        """Somebody does."""
        if self.spilled is not None:
            self.spilled.back()
            self.spilled = None


def whole_windows(
    windows: Sequence[Sequence[int]], block_size: int, rotary: Rotaries, stateful: bool = False
) -> StepInputs:
    """A step of all tokens of some windows, equally long, whose keys and values lie in order.

    Args:
        windows: token ids.
        block_size: tokens in a KV block; a window begins a block.
        rotary: position embedding tables.
        stateful: the model keeps a state for each window.
    """
    length = len(windows[0])
    width = -(-length // block_size)
    rows = Rows(len(windows), length, block_size, rotary, stateful)
    rows.tokens[:, :length] = torch.tensor([list(ids) for ids in windows])
    rows.block_tables.copy_(torch.arange(len(windows) * width, dtype=torch.int32).view(-1, width))
    rows.prompt_lengths.fill_(length)
    return rows.step([(row, 0, length) for row in range(len(windows))], None)


class Walk:
    """One model on its way through a text.

    Args:
        checkpoint: the model; stays open as long as the walk goes on.
        config: backend, threads, types and rules of rounding.
        windows: token ids, equally many in each.
        batch: tokens that go through a layer together.
        to_logits: the walk ends with logits; else a tied head is not kept.
        spill: keeps on disk what no batch is working on; for :meth:`decide_layer` alone.

    Attributes:
        checkpoint: the model.
        layer: layers that were gone through.
        linears: matrices of the layer that was loaded last, by their modules.

    Raises:
        ConfigError: something is to be spilled, and the backend's memory is not the host's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        windows: Sequence[Sequence[int]],
        batch: int = BATCH_TOKENS,
        to_logits: bool = True,
        spill: Spill | None = None,
    ) -> None:
        self.checkpoint, self.layer = checkpoint, 0
        self._model = checkpoint.config
        self.backend: Backend[Any] = make_backend(config)
        self._length, size = len(windows[0]), config.block_size
        self._width = -(-self._length // size)
        self._spill = spill
        if spill is not None and self.backend.device.type != "cpu":
            raise ConfigError(
                f"--spill moves memory of the host, and the backend is {self.backend.name!r}",
                hint="leave it out, or use the CPU",
            )
        many = max(1, min(len(windows), batch // self._length))
        rotary = Rotaries(self._model)
        stateful = any(spec.per_sequence for spec in block_states(self._model))
        self._shapes = {info.name: info.shape for info in checkpoint.tensors()}
        self._blocks: list[Block] = []
        self._kv: KVCache | None = None
        self._kinds: tuple[type[Block], ...] = ()
        self._size, self._many = size, many
        self.linears: dict[str, tuple[StackedLinear, slice]] = {}
        source = self._source()
        embedding = source.embedding("model.embed_tokens")
        self._head = embedding if to_logits and self._model.tie_word_embeddings else None
        self._batches: list[_Batch] = []
        for start in range(0, len(windows), many):
            step = whole_windows(windows[start : start + many], size, rotary, stateful)
            x_TD = self._run(
                lambda step, kv: self.backend.ops.embed(
                    step.token_ids, embedding, self._model.embedding_scale
                ),
                step,
            )
            self._batches.append(_Batch(step, x_TD.clone()))
            self._batches[-1].rest(spill)
        source.release()

    @property
    def layers(self) -> int:
        """Layers in all."""
        return self._model.num_layers

    def residuals(self) -> Iterator[Tensor]:
        """Where the windows are, [T, D] of each batch, to be read before the next."""
        for batch in self._batches:
            if batch.spilled is None:
                yield batch.x_TD
            else:
                with batch.spilled.looked_at() as x_TD:
                    yield x_TD

    def go_on(self, layer: int, residuals: Iterable[Tensor]) -> None:
        """Stand behind so many layers, with residuals [T, D] of each batch as they were there."""
        for batch, x_TD in zip(self._batches, residuals, strict=True):
            batch.wake()
            batch.x_TD.copy_(x_TD)
            batch.rest(self._spill)
        self.layer = layer

    def load_layer(self) -> None:
        """Load the next layer's weights."""
        source = self._source()
        self._load(source)
        self._named = source.linears
        self.linears = {}
        for linear in source.linears.values():
            begin, total = 0, linear.packed.shape[0]
            rows = [self._rows_of(module) for module in linear.modules]
            assert sum(rows) == total
            for module, count in zip(linear.modules, rows, strict=True):
                self.linears[module] = linear, slice(begin, begin + count)
                begin += count

    def run_layer(self, watch: Watch | None = None) -> None:
        """Take all windows through the layer that was loaded."""
        ops: Any = self.backend.ops
        self._add(ops if watch is None else _WatchedOps(ops, self._named, watch))

    def decide_layer(self, wanted: Wanted, decide: Decide) -> None:
        """Load the next layer but for the matrices that are wanted, and go through it.

        Args:
            wanted: which matrices ``decide`` gives the products of.
            decide: see :data:`.deciding.Decide`; called once for each matrix.
        """
        more = {"shapes": self._shapes, "wanted": wanted}
        self._load(PendingSource(self.checkpoint, self.backend, self._model.norm_offset, **more))
        travellers = [
            Traveller(partial(self._take, batch), self.backend.ops, batch.x_TD, self._spill)
            for batch in self._batches
        ]
        # What decides uses no more threads of torch's than the layer does.
        with self._executor(lambda step, kv: step.token_ids, None).threads():
            travel_together(travellers, decide)
        self.layer += 1

    def _load(self, source: WeightSource) -> None:
        kinds = layer_blocks(self._model, self.layer)
        self._blocks = [kind.load(self._model, self.layer, source) for kind in kinds]
        if self._kv is None or self._kinds != kinds:
            # Layers of other kinds keep other things, and begin with none of them.
            self._kinds = kinds
            states = [kind.state(self._model) for kind in kinds]
            blocks = self._many * self._width
            dtype, device = self.backend.kv_dtype, self.backend.device
            self._kv = KVCache(states, blocks, self._size, dtype, device, self._many)
        source.release()

    def _add(self, ops: Any) -> None:
        """Let the layer's blocks add to the residuals."""
        for batch in self._batches:
            self._take(batch, ops)
        self.layer += 1

    def _take(self, batch: _Batch, ops: Any) -> None:
        """Let the layer's blocks add to the residual of a batch."""

        def forward(step: StepInputs, kv: KVCache) -> Tensor:
            for block, state in zip(self._blocks, kv.states, strict=True):
                block.add(ops, batch.x_TD, step, state)
            return batch.x_TD

        batch.wake()
        self._run(forward, batch.step, self._kv)
        batch.rest(self._spill)

    def branch(self) -> Walk:
        """Another walk from here, with residuals of its own; it may share layers with this one."""
        other = copy.copy(self)
        other._batches = [_Batch(batch.step, batch.x_TD.clone()) for batch in self._batches]
        return other

    def share_layer(self, other: Walk) -> None:
        """Take the layer, or the head, that another walk of the same model has loaded."""
        assert self.layer == other.layer and self.backend is other.backend
        self._blocks, self._kv, self._kinds = other._blocks, other._kv, other._kinds
        self._named, self.linears, self._head = other._named, other.linears, other._head

    def product(self, packed: PackedLinear, x_TK: Tensor) -> Tensor:
        """A matrix's product with inputs of its own kind, [T, N]; computed at once."""
        ops = self.backend.ops
        ops.flush()
        y = ops.linear(x_TK, packed)
        ops.flush()
        return y

    def logits(self, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Float32 logits of places of window after window, after the last layer.

        In blocks [R, V] of some rows of one window: a block's memory serves the next but one, and
        whoever takes a block may overwrite it.

        Args:
            first: the first place of a window.
            last: the place behind the last one; None = to the end.
        """
        assert self.layer == self.layers
        source, config = self._source(), self._model
        norm = source.norm("model.norm")
        head = self._head = source.packed("lm_head") if self._head is None else self._head
        self._blocks, self._kv = [], None
        last = self._length if last is None else last
        for batch in self._batches:
            for begin in range(0, batch.x_TD.shape[0], self._length):
                for row in range(first, last, LOGIT_ROWS):
                    x_RD = batch.x_TD[begin + row : begin + min(row + LOGIT_ROWS, last)]

                    def forward(step: StepInputs, kv: KVCache, x_RD: Tensor = x_RD) -> Tensor:
                        ops = self.backend.ops
                        centered(ops, config, x_RD)
                        return ops.linear(ops.rms_norm(x_RD, norm, config.rms_norm_eps), head)

                    logits = self._run(forward, batch.step).to("cpu", torch.float32)
                    yield finished_logits(config, logits)

    def _source(self) -> _NamedSource:
        return _NamedSource(self.checkpoint, self.backend, self._model.norm_offset)

    def _rows_of(self, module: str) -> int:
        return self._shapes[f"{module}.weight"][0]

    def _run(
        self,
        forward: Callable[[StepInputs, KVCache], Tensor],
        step: StepInputs,
        kv: KVCache | None = None,
    ) -> Tensor:
        executor = self._executor(forward, kv)
        with executor.threads():
            return executor.run(step)

    def _executor(
        self, forward: Callable[[StepInputs, KVCache], Tensor], kv: KVCache | None
    ) -> Executor:
        if kv is None:
            kv = KVCache((), 1, self._size, self.backend.kv_dtype, self.backend.device)
        return self.backend.executor(_Piece(forward), kv, 0)
