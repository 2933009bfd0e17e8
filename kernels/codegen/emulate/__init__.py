"""Running the PTX that Triton makes, on a CPU, to see what the compiler's output really does.

A :class:`PtxProgram` is decoded once; :func:`run` launches it on :class:`Buffer` arguments. Warps
and CTAs are interleaved at random, the same for the same seed. What a kernel may not do raises an
:class:`EmulatedFault`.

What the emulator models
------------------------

- **Instructions**: those of the shipped kernels on sm_80 and sm_90 and their close relatives. Any
  other, and any modifier that is not known, is refused by name when the program is decoded.
- **Arithmetic**: every rounding is the one that PTX asks for, fused multiply-adds included.
  ``ex2.approx`` and ``div.full`` give the nearest value, where a GPU may be 2 ulp away. Products of
  matrices are summed in float64 and rounded once, so a tensor core's shorter sums do not show.
- **Warps** in any order, a random number of instructions at a time; lanes of a warp in step, apart
  from branches on which they go apart.
- **Shared memory**: bounds, alignment, bytes that nothing has written, and races: two warps, one
  of which writes, without a barrier of the CTA between, whatever the order of this run. Storing
  what is there already is no race.
- **cp.async**: the source is read at the issue or at the wait, at random; what it writes may not be
  touched in between, nor by other warps before a barrier.
- **wgmma**: descriptors with all swizzlings, A in registers or not, groups. Accumulators may not
  be touched before the wait; registers that other instructions have changed need ``wgmma.fence``
  (copies apart, which the assembler renames); what threads have written needs
  ``fence.proxy.async``; nobody may write what a product in flight reads.
- **Global memory**: bounds, alignment, bytes that nothing has written. A store stays hidden from
  other CTAs until chance or a release makes it visible; a release covers what the thread, and
  before the last barrier its CTA, has stored. A plain load keeps its sector of 32 bytes in the
  cache of its CTA, which then misses what others store until it acquires.
- **Counts**: wavefronts of shared memory, sectors of global memory, by line of the PTX text.

What it does not model
----------------------

- Time, occupancy, caches beyond the above, and what the assembler makes of the PTX.
- Races on global memory as such: a kernel that lacks an order is noticed by what its reads see in
  some runs, so a mistake may need several seeds. Stores of two CTAs to one place are no fault.
- Loads that move ahead of earlier ones in their thread, and orders between scopes: ``.cta``,
  ``.gpu`` and ``.sys`` are the same to atomic operations, and a fence of the CTA does nothing.
- Lanes of a warp that read each other's stores to shared memory without ``bar.warp.sync``.
- Registers that are read before anything wrote them; they are 0.
- Barriers other than number 0 of all threads, mbarriers, bulk copies, clusters, generic addresses.
"""

from .counts import AccessCount, Counts
from .faults import (
    BarrierFault,
    DeadlockFault,
    EarlyReadFault,
    EmulatedFault,
    MisalignedFault,
    MissingFenceFault,
    OutOfBoundsFault,
    RaceFault,
    UnsupportedFault,
    UnwrittenFault,
)
from .launch import run
from .memory import Buffer
from .options import EmulationOptions
from .program import PtxProgram

__all__ = [
    "AccessCount",
    "BarrierFault",
    "Buffer",
    "Counts",
    "DeadlockFault",
    "EarlyReadFault",
    "EmulatedFault",
    "EmulationOptions",
    "MisalignedFault",
    "MissingFenceFault",
    "OutOfBoundsFault",
    "PtxProgram",
    "RaceFault",
    "UnsupportedFault",
    "UnwrittenFault",
    "run",
]
