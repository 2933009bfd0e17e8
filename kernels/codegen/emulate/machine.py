"""The state of a run: CTAs in their slots, registers, warps, and which of them runs next."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from .convoy import Convoy
from .copies import CopyQueue
from .counts import Counts
from .faults import BarrierFault, DeadlockFault, UnsupportedFault
from .memory import GlobalMemory
from .operations import HOME, Values
from .options import EmulationOptions
from .program import PtxProgram
from .shared import SharedMemory
from .warpgroup import ProductQueue

_READY, _WAITING, _SPLIT, _GONE = range(4)


class Machine:
    """What the instructions of a run act on.

    Attributes:
        program: the kernel.
        memory: global memory with the stores of each CTA that others do not see yet.
        shared: shared memory of the resident CTAs.
        copies: asynchronous copies of each warp.
        products: products of warp groups in flight.
        counts: what has been counted.
        chance: where all random choices come from.
        options: how to run.
        template: values of constants and parameters by slot.
        epochs: int64 [slots], barriers that each resident CTA has passed.
        awaited: bool [threads], whether each one of a resident CTA has waited for the kernels
            before; all where the kernel never does.
        coordinates: ``ctaid`` of the CTA in each slot.
        warps_per_cta: warps of one CTA.
    """

    def __init__(
        self,
        program: PtxProgram,
        grid: tuple[int, int, int],
        memory: GlobalMemory,
        template: Values,
        shared_bytes: int,
        seed: int,
        options: EmulationOptions,
    ) -> None:
        self.program, self.memory, self.options = program, memory, options
        self.template = template
        self.chance = random.Random(seed)
        self.grid = grid
        count = grid[0] * grid[1] * grid[2]
        self.slots = min(count, options.resident)
        self.warps_per_cta = program.threads // 32
        warps = self.slots * self.warps_per_cta
        self.registers = [np.zeros((warps, 32), HOME[width]) for width in program.widths]
        self.shared = SharedMemory(self.slots, shared_bytes, program)
        self.counts = Counts()
        self.copies = CopyQueue(warps)
        self.products = ProductQueue(warps)
        self.epochs = np.zeros(self.slots, "i8")
        self.awaited = np.zeros(self.slots * program.threads, bool)
        self.coordinates: list[tuple[int, int, int]] = [(0, 0, 0)] * self.slots
        self._state = np.full(warps, _GONE, "u1")
        self._at = np.zeros(warps, "i8")
        self._split: dict[int, list[tuple[int, Any]]] = {}
        self._todo = list(itertools.product(range(grid[0]), range(grid[1]), range(grid[2])))
        self.chance.shuffle(self._todo)
        memory.open(self.slots)
        for slot in range(self.slots):
            self._enter(slot)

    def run(self) -> None:
        """Run all CTAs to their end. Raises EmulatedFault."""
        with np.errstate(all="ignore"):
            runs = 0
            while (choice := self._choose()) is not None:
                convoy, at, budget = choice
                convoy.run(at, budget)
                runs += 1
                if runs > self.options.limit:
                    raise DeadlockFault(f"{self.program.kernel}: no end after {runs} convoys")
                if self.chance.random() < self.options.publish:
                    self.memory.publish_some(self.chance)
            self.memory.publish_all()

    def _enter(self, slot: int) -> None:
        """Start the next CTA in a slot."""
        self.coordinates[slot] = cta = self._todo.pop()
        begin = slot * self.warps_per_cta
        warps = slice(begin, begin + self.warps_per_cta)
        thread = np.arange(self.program.threads, dtype="u4").reshape(-1, 32)
        values = {"%tid.x": thread, "%ntid.x": self.program.threads, "%ntid.y": 1, "%ntid.z": 1}
        for axis, name in enumerate("xyz"):
            values[f"%ctaid.{name}"] = cta[axis]
            values[f"%nctaid.{name}"] = self.grid[axis]
        for name, register in self.program.special.items():
            self.registers[register][warps] = values.get(name, 0)
        self._state[warps] = _READY
        self._at[warps] = 0
        self.shared.enter(slot)
        self.memory.enter(slot)
        self.copies.begin(warps)
        self.products.begin(warps)
        self.epochs[slot] = 0
        threads = self.program.threads
        self.awaited[slot * threads : (slot + 1) * threads] = not self.program.awaits

    def _choose(self) -> tuple[Convoy, int, int] | None:
        """The next convoy, where it stands, and how many segments it may run."""
        ready = np.flatnonzero(self._state == _READY)
        if self._split and (not len(ready) or self.chance.random() < 0.5):
            return self._choose_split()
        if not len(ready):
            if (self._state == _WAITING).any():
                raise DeadlockFault(f"{self.program.kernel}: all warps wait")
            return None
        places = self._at[ready]
        # Mostly those that are behind, so that warps come together again.
        behind = self.chance.random() < self.options.catch_up
        at = places.min() if behind else places[self.chance.randrange(len(places))]
        group = ready[places == at]
        if len(group) > 1 and self.chance.random() < self.options.narrow:
            count = self.chance.randint(1, len(group))
            group = np.array(sorted(self.chance.sample(group.tolist(), count)))
        return Convoy(self, group), int(at), int(self.options.longest ** self.chance.random())

    def _choose_split(self) -> tuple[Convoy, int, int]:
        """Lanes of warps that have branched apart: always those that are behind in their warp."""
        first = {warp: min(parts, key=lambda p: p[0]) for warp, parts in self._split.items()}
        at = self.chance.choice(list(first.values()))[0]
        warps = sorted(warp for warp, part in first.items() if part[0] == at)
        threads = np.concatenate([first[warp][1] for warp in warps])
        for warp in warps:
            self._split[warp] = [part for part in self._split[warp] if part[0] != at]
        return Convoy(self, np.array(warps), threads), at, 1

    def load(self, slot: int, convoy: Convoy) -> Any:
        """[lanes]: a register of the convoy's threads."""
        register = self.registers[slot]
        if convoy.whole:
            return register.take(convoy.warps, axis=0).reshape(-1)
        return register.reshape(-1).take(convoy.threads)

    def store(self, slot: int, convoy: Convoy, value: Any) -> None:
        """Give a register of the convoy's threads back."""
        register = self.registers[slot]
        if convoy.whole:
            register[convoy.warps] = value.reshape(-1, 32) if value.ndim else value
        else:
            register.reshape(-1)[convoy.threads] = value

    def park(self, convoy: Convoy, at: int) -> None:
        """Let the convoy's threads stand at an instruction until they are chosen again."""
        if convoy.whole:
            self._at[convoy.warps] = at
        else:
            for warp, threads in _by_warp(convoy.threads):
                self._join(warp, at, threads)

    def branch(self, convoy: Convoy, taken: Any, target: int, following: int) -> None:
        """Send each lane to ``target`` or ``following`` as ``taken`` bool [lanes] says."""
        if convoy.whole:
            rows = taken.reshape(-1, 32)
            some, every = rows.any(1), rows.all(1)
            self._at[convoy.warps] = np.where(every, target, following)
            for warp in convoy.warps[some & ~every].tolist():
                self._state[warp] = _SPLIT
                self._split[warp] = []
        threads = convoy.threads
        for place, lanes in ((target, threads[taken]), (following, threads[~taken])):
            for warp, part in _by_warp(lanes):
                if self._state[warp] == _SPLIT:
                    self._join(warp, place, part)

    def _join(self, warp: int, at: int, threads: Any) -> None:
        """Put lanes of a split warp at an instruction; it is whole again when all stand there."""
        parts = self._split[warp]
        for place, (where, others) in enumerate(parts):
            if where == at:
                parts[place] = at, np.sort(np.concatenate([others, threads]))
                break
        else:
            parts.append((at, threads))
        if len(parts) == 1 and len(parts[0][1]) == 32:
            del self._split[warp]
            self._state[warp] = _READY
            self._at[warp] = at

    def arrive(self, convoy: Convoy, following: int) -> None:
        """Whole warps reach the barrier of their CTA. Raises BarrierFault."""
        self._at[convoy.warps] = following
        self._state[convoy.warps] = _WAITING
        for slot in np.unique(convoy.slots).tolist():
            states = self._state_of(slot)
            if (states == _GONE).any():
                self._broken_barrier(slot)
            if (states == _WAITING).all():
                self.epochs[slot] += 1
                states[:] = _READY

    def leave(self, convoy: Convoy) -> None:
        """The convoy's threads end; a CTA without threads makes room for the next."""
        if not convoy.whole:
            raise UnsupportedFault(f"{self.program.kernel}: lanes of a warp end one by one")
        self._state[convoy.warps] = _GONE
        for slot in np.unique(convoy.slots).tolist():
            states = self._state_of(slot)
            if (states == _WAITING).any():
                self._broken_barrier(slot)
            if (states == _GONE).all() and self._todo:
                self._enter(slot)

    def _state_of(self, slot: int) -> Any:
        return self._state[slot * self.warps_per_cta : (slot + 1) * self.warps_per_cta]

    def _broken_barrier(self, slot: int) -> None:
        cta = ",".join(map(str, self.coordinates[slot]))
        raise BarrierFault(
            f"{self.program.kernel}: CTA ({cta}): warps wait at a barrier while others have ended"
        )


def _by_warp(threads: Any) -> Iterator[tuple[int, Any]]:
    """Threads in ascending order, warp by warp."""
    warps = threads // 32
    cuts = np.flatnonzero(np.diff(warps)) + 1
    for part in np.split(threads, cuts):
        if len(part):
            yield int(part[0]) // 32, part
