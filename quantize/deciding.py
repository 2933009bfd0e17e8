"""A layer of which some matrices are decided on when the inputs of all tokens stand before them.

Windows go through it in batches. A batch stops in front of a matrix that is not there yet, and goes
on when it is there, so of all tokens only those inputs are in memory, or on the disk, and of what
lies between only one batch's. A batch is a thread that runs while all others wait: a network's
blocks are plain functions, which cannot be left in the middle otherwise.

Shape letters: T tokens of a batch, D hidden size, K inputs of a matrix, N its outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.backends.base import Ops, PackedLinear
from ..engine.models.projections import FusedLinear
from ..engine.models.weights import WeightSource
from .spill import Spill, Spilled

Wanted = Callable[[str], bool]
"""Whether a module's matrix is to be decided on."""
Multiply = Callable[[Tensor], Tensor]
"""A matrix's product with inputs [T, K] of a batch: [T, N]. The inputs may be overwritten."""
Decide = Callable[["PendingLinear", "Inputs"], Multiply]
"""Called with a matrix that is not there yet and its inputs; gives the product."""


@dataclass(frozen=True, slots=True)
class PendingLinear:
    """Projections of one input that nobody packed yet.

    Attributes:
        modules: full names, in the order in which their outputs follow each other.
        shape: (N, K) of all together.
        has_bias: each has a bias.
        place: how many of the layer come before.
        nbytes: nothing is there to be read.
    """

    modules: tuple[str, ...]
    shape: tuple[int, int]
    has_bias: bool
    place: int = 0
    nbytes: int = 0


class PendingSource(WeightSource):
    """Leaves the matrices of a layer alone for which ``wanted`` says so."""

    def __init__(self, *args: Any, shapes: dict[str, tuple[int, ...]], wanted: Wanted) -> None:
        super().__init__(*args)
        self._shapes, self._wanted = shapes, wanted
        self._count = 0

    def packed(self, module: str, has_bias: bool = False) -> PackedLinear:
        """A matrix, or one that is pending."""
        if not self._wanted(module):
            return super().packed(module, has_bias)
        return self._pending([module], has_bias)

    def fused(self, modules: list[str], has_bias: bool, gate: Any = None) -> FusedLinear[Any]:
        """Projections of one input; pending where all of them are wanted."""
        if not all(self._wanted(module) for module in modules):
            return super().fused(modules, has_bias, gate)
        return FusedLinear([self._pending(modules, has_bias)], activation=gate or "silu")

    def _pending(self, modules: list[str], has_bias: bool) -> PendingLinear:
        shapes = [self._shapes[f"{module}.weight"] for module in modules]
        shape = sum(n for n, _ in shapes), shapes[0][1]
        self._count += 1
        return PendingLinear(tuple(modules), shape, has_bias, self._count - 1)


class Inputs:
    """What all batches bring to a matrix.

    Attributes:
        count: tokens in all.
    """

    def __init__(self, stops: Sequence[_Stop]) -> None:
        self._stops = stops
        self.count = sum(stop.x_TK.shape[0] for stop in stops)

    def __iter__(self) -> Iterator[Tensor]:
        """[T, K] of one batch after another, to be read before the next is asked for."""
        for stop in self._stops:
            if stop.spilled:
                with stop.spilled[0].looked_at() as x_TK:
                    yield x_TK
            else:
                yield stop.x_TK


@dataclass(slots=True)
class _Stop:
    """Where a batch waits: in front of a matrix, with its inputs [T, K]."""

    pending: PendingLinear
    x_TK: Tensor
    spilled: tuple[Spilled, ...] = ()


class _Left(BaseException):
    """Ends the thread of a batch that is not to go on."""


class Traveller:
    """A batch on its way through a layer.

    Args:
        go: takes the batch through, on ops of its own.
        ops: the backend's.
        x_TD: the batch's residual.
        spill: keeps what waits on disk; None = in memory.
    """

    def __init__(
        self, go: Callable[[Any], None], ops: Ops[Any], x_TD: Tensor, spill: Spill | None
    ) -> None:
        self.stop: _Stop | None = None
        self._x_TD, self._spill = x_TD, spill
        self._product: Multiply | None = None
        self._failure: BaseException | None = None
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        own_ops = _DecidedOps(ops, self._stand)

        def run() -> None:
            self._turn.acquire()
            try:
                if not self._left:
                    go(own_ops)
            except BaseException as failure:  # handed to whoever waits
                self._failure = failure
            self._pause.release()

        self._left = False
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def travel(self, product: Multiply | None = None) -> None:
        """Go on to the next matrix that is not there yet, or to the end of the layer.

        Args:
            product: of the matrix in front of which the batch waits.
        """
        if self.stop is not None:
            for spilled in self.stop.spilled:
                spilled.back()
        self.stop, self._product = None, product
        self._turn.release()
        self._pause.acquire()
        if self._failure is not None:
            raise self._failure
        stop = self.stop
        if stop is not None and self._spill is not None:
            stop.spilled = self._spill.put(stop.x_TK), self._spill.put(self._x_TD)

    def leave(self) -> None:
        """End the thread, wherever the batch is."""
        self._left = True
        self._turn.release()
        self._thread.join()

    def _stand(self, pending: PendingLinear, x_TK: Tensor) -> Tensor:
        """Wait in front of a matrix; its product [T, N] when it is there."""
        self.stop = _Stop(pending, x_TK)
        self._pause.release()
        self._turn.acquire()
        if self._left:
            raise _Left
        assert self._product is not None
        return self._product(x_TK)


class _DecidedOps:
    """A backend's ops that wait where a matrix is pending."""

    def __init__(self, ops: Ops[Any], stand: Callable[[PendingLinear, Tensor], Tensor]) -> None:
        self._ops, self._stand = ops, stand

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, x_TK: Tensor, weight: Any, out: Tensor | None = None) -> Tensor:
        if not isinstance(weight, PendingLinear):
            return self._ops.linear(x_TK, weight, out)
        # Ops may only have been noted down so far.
        self._ops.flush()
        return self._stand(weight, x_TK)

    def linear_add(self, x_TK: Tensor, weight: Any, residual_TN: Tensor) -> None:
        if not isinstance(weight, PendingLinear):
            return self._ops.linear_add(x_TK, weight, residual_TN)
        self._ops.add(self.linear(x_TK, weight), residual_TN)


def travel_together(travellers: Sequence[Traveller], decide: Decide) -> None:
    """Take all batches through a layer; each matrix is decided when all are there that come.

    All batches meet the matrices in one order, but not all of them meet each (experts), so the
    first matrix that anybody waits for is one that nobody else can come to any more.
    """
    try:
        for traveller in travellers:
            traveller.travel()
        while stops := [t.stop for t in travellers if t.stop is not None]:
            pending = min((stop.pending for stop in stops), key=lambda p: p.place)
            here = [t for t in travellers if t.stop is not None and t.stop.pending is pending]
            product = decide(pending, Inputs([stop for stop in stops if stop.pending is pending]))
            for traveller in here:
                traveller.travel(product)
    finally:
        for traveller in travellers:
            traveller.leave()
