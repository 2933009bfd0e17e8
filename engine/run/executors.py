"""How the steps of a network are run: op by op, token by token, or from a recording.

A step of T tokens can be noted down once, on fixed buffers, and then replayed: inputs are copied
into the buffers and one call runs the whole step, so a step costs no Python per op. That is a CUDA
graph on a GPU, and its counterpart on the C kernels.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .kv_cache import KVCache
from .step import StepInputs

if TYPE_CHECKING:
    from ...kernels.device.monitor import JitMonitor


log = logging.getLogger(__name__)


class Network(Protocol):
    """What executors run: a whole decoder, or a part of one (``quantize/walk.py``)."""

    @property
    def recordable(self) -> bool:
        """Whether a step is the same ops whatever its numbers are."""
        ...

    def forward(self, step: StepInputs, kv: KVCache, out: Tensor | None = None) -> Tensor:
        """Logits [S, V] of the step's wanted tokens, or what a part makes, in ``out`` if given."""
        ...

    def logits_buffer(self, rows: int) -> Tensor:
        """Unset logits [rows, V] as :meth:`forward` writes them."""
        ...

    def cap(self, logits_SV: Tensor) -> Tensor:
        """What is done with computed logits [S, V], in place."""
        ...


class Program(Protocol):
    """A recorded step that can be replayed on the same buffers (a CUDA graph, or its like)."""

    def run(self) -> None:
        """Compute the step from what the input buffers hold now."""
        ...


class CaptureError(Exception):
    """Ops could not be noted down."""


class Recorder(Protocol):
    """Notes ops down."""

    def begin_record(self) -> None:
        """From here on ops are noted down, not computed; they still return their buffers."""
        ...

    def end_record(self) -> Program:
        """Stop noting down; the program keeps the buffers that its ops use alive.

        Raises:
            CaptureError: what was noted down cannot be run.
        """
        ...


def unchanged(step: StepInputs) -> StepInputs:
    """The step as it is, for backends that read the host's tensors."""
    return step


def row_counts(most: int) -> list[int]:
    """Numbers of rows that stand for all up to ``most``: powers of two, their middles, the end."""
    counts = {most}
    size = 1
    while size <= most:
        counts |= {size, min(size * 3 // 2, most)}
        size *= 2
    return sorted(counts)


def token_counts(most: int) -> list[int]:
    """Numbers of tokens that stand for all up to ``most``, at most a quarter above them."""
    counts, size = {most}, 16
    while size < most:
        counts |= {min(size * quarters // 4, most) for quarters in (4, 5, 6, 7)}
        size *= 2
    return sorted(counts)


class Executor(ABC):
    """Runs steps of one network on one cache.

    Args:
        network: whose steps.
        kv: its cache.
        limit: most rows of a step that may be kept for replay; for executors that do so.
        prepare: the step as the ops take it: on their device, with what all layers share.
    """

    def __init__(
        self,
        network: Network,
        kv: KVCache,
        limit: int,
        prepare: Callable[[StepInputs], StepInputs] = unchanged,
    ) -> None:
        self._network = network
        self._kv = kv
        self._limit = limit
        self._prepare = prepare

    @abstractmethod
    def run(self, step: StepInputs) -> Tensor:
        """Logits [S, V] in the backend's dtype; the next run may overwrite them."""

    def threads(self) -> AbstractContextManager[None]:
        """For the block in which steps run: how many threads torch uses. Nothing changes here."""
        return nullcontext()

    def monitor(self) -> JitMonitor | None:
        """What notices kernels compiled while serving; None where nothing is compiled."""
        return None


ExecutorFactory = Callable[[Network, KVCache, int], Executor]
"""An executor for a network, its cache, and the most rows of a step that is kept for replay."""


class EagerExecutor(Executor):
    """Computes each op as it is called."""

    def run(self, step: StepInputs) -> Tensor:
        """Logits [S, V] of a step."""
        return self._network.cap(self._network.forward(self._prepare(step), self._kv))


class OneByOneExecutor(Executor):
    """Computes each token as a step by itself, in order, so that none sees how many there are.

    That makes results independent of the batch on kernels that are not.
    """

    def run(self, step: StepInputs) -> Tensor:
        """Logits [S, V] of a step."""
        singles = list(step.one_by_one())
        logits = torch.cat([self._network.forward(self._prepare(s), self._kv) for s in singles])
        if step.hidden is not None:
            states = torch.cat(
                [s.hidden.rows for s in singles if s.hidden and s.hidden.rows is not None]
            )
            step.hidden.rows = states[step.hidden.index]
        return self._network.cap(logits if step.sample_index is None else logits[step.sample_index])


# Tokens without logits that a replayed step may have: where a grammar left no choice, and of short
# prompts. Noting a step down takes longer than these.
SPARE_TOKENS = 8


@dataclass(slots=True)
class _Recorded:
    step: StepInputs
    program: Program
    logits: Tensor


class RecordingExecutor(Executor):
    """Notes every step down before it is computed, and replays decode steps by their key.

    A step with a few tokens more than logits is replayed as a decode step of all its tokens.

    Args:
        network: as for :class:`Executor`, like ``kv``, ``limit`` and ``prepare``.
        recorder: the backend's.

    Attributes:
        spare_tokens: tokens without logits that a replayed step may have.
    """

    spare_tokens = SPARE_TOKENS

    def __init__(
        self,
        network: Network,
        kv: KVCache,
        limit: int,
        recorder: Recorder,
        prepare: Callable[[StepInputs], StepInputs] = unchanged,
    ) -> None:
        super().__init__(network, kv, limit if network.recordable else 0, prepare)
        self._recorder = recorder
        # Most rows of a step that is replayed.
        self._rows = self._limit + self.spare_tokens if self._limit else 0
        self._logits: Tensor | None = None
        self._recorded: dict[tuple[int, ...], _Recorded] = {}

    def run(self, step: StepInputs) -> Tensor:
        """Logits [S, V] of a step; those of a decode step are overwritten by the next."""
        wanted = step.wanted
        if self._nearly_decodes(step):
            step = step.as_decode()
        replay = self._is_kept(step)
        step = self._prepare(self._fitted(step) if replay else step)
        return self._network.cap(self._replay(step)[:wanted] if replay else self._once(step))

    def _is_kept(self, step: StepInputs) -> bool:
        """Whether steps like this one are kept for replay."""
        return step.decodes and len(step.spans) <= self._rows

    def _nearly_decodes(self, step: StepInputs) -> bool:
        """Whether a step is none that decodes, but can be replayed as one."""
        if not self.spare_tokens or step.sample_index is None or step.hidden is not None:
            return False
        if step.states is not None:
            return False
        tokens = len(step.token_ids)
        return tokens <= self._rows and tokens - step.wanted <= self.spare_tokens

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Torch's threads held to one.

        They go on spinning after an op, on the cores that the kernels' own threads need next.
        """
        before = torch.get_num_threads()
        if before > 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if before > 1:
                torch.set_num_threads(before)

    def _fitted(self, step: StepInputs) -> StepInputs:
        """A step as it is replayed, with its own tokens and logits first."""
        return step

    def _replay(self, step: StepInputs) -> Tensor:
        item = self._recorded.get(step.key)
        if item is None:
            item = self._recorded[step.key] = self._keep(step.clone())
        else:
            item.step.copy_(step)
        item.program.run()
        return item.logits

    def _once(self, step: StepInputs) -> Tensor:
        """Logits of a step that is run once."""
        program, logits = self._record(step)
        program.run()
        return logits

    def _keep(self, step: StepInputs) -> _Recorded:
        if self._logits is None:
            # One for all: recordings of every batch size would hold gigabytes of them.
            self._logits = self._network.logits_buffer(self._rows)
        return _Recorded(step, *self._record(step, self._logits[: step.wanted]))

    def _record(self, step: StepInputs, out: Tensor | None = None) -> tuple[Program, Tensor]:
        """A program that fills the logits [S, V] when it runs."""
        self._recorder.begin_record()
        try:
            logits = self._network.forward(step, self._kv, out)
        finally:
            program = self._recorder.end_record()
        return program, logits


class CapturingExecutor(RecordingExecutor):
    """Replays steps as CUDA graphs; those of too many tokens are computed op by op.

    Tokens that stand for nothing fill a step up to one of a few sizes, so that all graphs there
    are can be captured before the engine is ready. A step in which not all rows decode has room
    for as many rows as there are, and as many logits. Where a capture fails, steps are computed op
    by op from then on.

    Args:
        network: as for :class:`RecordingExecutor`, like ``kv`` to ``prepare``.
        tokens: most tokens of a step that does more than decode and is replayed.
    """

    # A graph more costs more than its launches.
    spare_tokens = 0
    _monitor: JitMonitor | None = None

    def __init__(
        self,
        network: Network,
        kv: KVCache,
        limit: int,
        recorder: Recorder,
        prepare: Callable[[StepInputs], StepInputs] = unchanged,
        tokens: int = 0,
    ) -> None:
        super().__init__(network, kv, limit, recorder, prepare)
        self._row_sizes = row_counts(self._limit)
        self._token_sizes = token_counts(tokens)

    def monitor(self) -> JitMonitor:
        """Listens for compilations, and for captures."""
        from ...kernels.device.monitor import JitMonitor

        if self._monitor is None:
            self._monitor = JitMonitor()
        return self._monitor

    def _is_kept(self, step: StepInputs) -> bool:
        if step.decodes:
            return super()._is_kept(step)
        small = len(step.token_ids) <= self._token_sizes[-1]
        few = max(len(step.block_tables), step.wanted) <= self._rows
        return small and few and step.sample_index is not None and step.hidden is None

    def _fitted(self, step: StepInputs) -> StepInputs:
        tokens = len(step.token_ids)
        if step.decodes:
            rows = next(size for size in self._row_sizes if size >= tokens)
            return step.padded(rows, rows)
        return step.padded(next(size for size in self._token_sizes if size >= tokens), self._limit)

    def _replay(self, step: StepInputs) -> Tensor:
        try:
            return super()._replay(step)
        except CaptureError as error:
            log.warning("no CUDA graphs, each op is launched by itself from now on: %s", error)
            self._rows = 0
            return self._once(step)

    def _once(self, step: StepInputs) -> Tensor:
        return self._network.forward(step, self._kv)

    def _keep(self, step: StepInputs) -> _Recorded:
        # Everything that is compiled or allocated once must be there before a capture.
        self._network.forward(step, self._kv)
        began = time.perf_counter()
        kept = super()._keep(step)
        if self._monitor is not None:
            seconds = time.perf_counter() - began
            self._monitor.captured(f"{len(step.token_ids)} tokens", seconds)
        return kept
