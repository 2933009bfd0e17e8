"""A set of warps that stand at one instruction and run together, lanes as NumPy vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .epochs import beginning
from .faults import BarrierFault, EmulatedFault
from .operations import STOP, Values
from .warpgroup import ProductWatch

if TYPE_CHECKING:
    from .machine import Machine
    from .syntax import Instruction


class Convoy:
    """Values of some threads while they run, taken from the machine's registers when needed.

    Attributes:
        machine: whose threads they are.
        threads: int64 [lanes], numbers of the threads among all resident ones, ascending.
        warps: int64 [warps], numbers of their warps among all resident ones.
        whole: whether all lanes of these warps take part.
        values: a value for each slot, [lanes] or without a dimension; None for what is not loaded.
        slots: int64 [lanes], place of each lane's CTA in the machine.
        codes: int32 [lanes], epoch and warp of each lane as shared memory notes them.
        complete: whether all warps of each of its CTAs take part.
        alone: whether no two warps are of one CTA.
        watch: what products in flight forbid, None where the program has none.
        floors: int32 [lanes], the same of an epoch's beginning.
    """

    def __init__(self, machine: Machine, warps: Any, threads: Any = None) -> None:
        self.machine = machine
        self.warps = warps
        self.whole = threads is None
        if threads is None:
            threads = (warps[:, None] * 32 + np.arange(32)).reshape(-1)
        self.threads = threads
        self.values: Values = machine.template.copy()
        self.slots = threads // machine.program.threads
        owners = warps // machine.warps_per_cta
        # A barrier that all of them reach is passed at once.
        self.complete = self.whole and bool(
            (np.bincount(owners)[owners] == machine.warps_per_cta).all()
        )
        queue = machine.products
        self.watch = ProductWatch(self, queue) if machine.program.has_products else None
        self.alone = len(np.unique(owners)) == len(warps)
        self.refresh()

    def refresh(self) -> None:
        """Look up the epochs of the CTAs again, after a barrier."""
        self.floors = beginning(self.machine.epochs[self.slots])
        in_cta = self.threads // 32 - self.slots * self.machine.warps_per_cta
        self.codes = self.floors + in_cta.astype("i4")

    def run(self, at: int, budget: int) -> None:
        """Run up to ``budget`` segments from instruction ``at`` on, and give the registers back."""
        machine, values, watch = self.machine, self.values, self.watch
        segments = machine.program.segments
        dirty: set[int] = set()
        while True:
            segment = segments[at] or machine.program.segment(at)
            for slot in segment.needs:
                if values[slot] is None:
                    values[slot] = machine.load(slot, self)
            if watch is not None:
                watch.check(segment)
                watch.note(segment)
            for work in segment.plain:
                work(values)
            dirty |= segment.writes
            following = segment.effect(self) if segment.effect is not None else None
            budget -= 1
            if following is None:
                at = segment.end
            elif following == STOP:
                break
            else:
                at = following
            if budget <= 0:
                machine.park(self, at)
                break
        if watch is not None:
            watch.leave()
        for slot in dirty & segment.live:
            machine.store(slot, self, values[slot])

    def warps_in_cta(self) -> Any:
        """int64 [warps]: numbers of the warps in their CTAs."""
        return self.warps % self.machine.warps_per_cta

    def active(self, ins: Instruction) -> Any:
        """Positions of the lanes for which the guard holds; None for all of them."""
        if ins.guard is None:
            return None
        holds = self.values[ins.guard]
        if ins.negated:
            holds = ~holds
        if holds.all():
            return None
        return np.flatnonzero(np.broadcast_to(holds, self.threads.shape))

    def lanes(self, slot: int) -> Any:
        """[lanes]: the value of a slot, spread out where it is the same in all lanes."""
        value = self.values[slot]
        return value if value.ndim else np.broadcast_to(value, self.threads.shape)

    def rows(self, slot: int) -> Any:
        """[warps, 32]: the same by warps."""
        return self.lanes(slot).reshape(-1, 32)

    def need_whole(self, ins: Instruction) -> None:
        """Raises BarrierFault where lanes of a warp are elsewhere."""
        if not self.whole:
            raise self.fault(BarrierFault, ins, 0, "lanes of the warp are elsewhere")

    def fault(
        self, kind: type[EmulatedFault], ins: Instruction, position: int, what: str
    ) -> EmulatedFault:
        """A fault of the lane at a position, with all that tells where it is."""
        thread = int(self.threads[position])
        slot = int(self.slots[position])
        warp, lane = divmod(thread - slot * self.machine.program.threads, 32)
        cta = ",".join(map(str, self.machine.coordinates[slot]))
        return kind(
            f"{self.machine.program.kernel}, line {ins.line}: {ins.text}: {what}; "
            f"CTA ({cta}), warp {warp}, lane {lane}"
        )
