"""What a run of the emulator can find wrong, one class for each kind of fault."""

from __future__ import annotations


class EmulatedFault(Exception):
    """Something that a GPU would not have to do as the kernel needs it.

    The message names kernel, instruction with its line of the PTX text, CTA, warp and lane, and
    where memory is concerned the buffer and the offset in it.
    """


class OutOfBoundsFault(EmulatedFault):
    """An access outside of every buffer, or of the shared memory of a CTA."""


class MisalignedFault(EmulatedFault):
    """An address that is no multiple of what its instruction asks for."""


class RaceFault(EmulatedFault):
    """Two warps touch the same shared bytes, one of them writes, and no barrier lies between."""


class EarlyReadFault(EmulatedFault):
    """Data of an asynchronous instruction is touched before the wait for it."""


class UnwrittenFault(EmulatedFault):
    """Bytes are read that nothing has written, or that are not visible to the reader yet."""


class MissingFenceFault(EmulatedFault):
    """The asynchronous proxy or a warp-group product lacks the fence that it needs."""


class DeadlockFault(EmulatedFault):
    """No warp can go on."""


class BarrierFault(EmulatedFault):
    """A barrier, or another instruction of whole warps, that not all of its threads reach."""


class UnsupportedFault(EmulatedFault):
    """An instruction, or a form of it, that the emulator does not know."""
