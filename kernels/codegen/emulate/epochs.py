"""Codes of accesses to shared memory: who made them, and between which barriers.

A CTA's *epoch* counts the barriers that it has passed. A code is the epoch times 64 plus the
number of a warp, or one of two numbers that stand for several warps. An access of another warp
races with those whose codes are of the same epoch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .faults import EarlyReadFault, EmulatedFault, RaceFault, UnwrittenFault

SEVERAL = np.int32(63)
"""In the place of a warp: several warps have read."""

ATOMIC = np.int32(62)
"""In the place of a warp: atomic operations, which do not race with each other."""

PENDING = np.int32(1 << 30)
"""Added to the code of a writer whose data is still under way."""

NOBODY = np.int32(-1)
"""Where nothing was written, or read, since the CTA began."""


def epoch_of(codes: Any) -> Any:
    """The epochs of codes of any shape."""
    return codes >> 6


def warp_of(codes: Any) -> Any:
    """The warps of codes of any shape."""
    return codes & 63


def beginning(epochs: Any) -> Any:
    """The lowest codes of epochs of any shape, as int32: its floor."""
    return (epochs << 6).astype("i4")


def races(codes: Any, floors: Any, own: Any) -> Any:
    """Where noted codes are of the epoch with that floor, and not one's own; pending ones are."""
    return (codes >= floors) & (codes != own)


def with_reader(readers: Any, floors: Any, own: Any) -> Any:
    """What to note of a read by ``own`` where ``readers`` is noted."""
    return np.where(races(readers, floors, own), floors + SEVERAL, own)


def who(code: int) -> str:
    """The warps of a code in words."""
    if warp_of(code) == SEVERAL:
        return "several warps"
    if warp_of(code) == ATOMIC:
        return "atomic operations"
    return f"warp {warp_of(code)}"


def bad_read(where: str, code: int) -> tuple[type[EmulatedFault], str]:
    """The fault of reading what the writer of a code wrote, and its words."""
    if code < 0:
        return UnwrittenFault, f"reads {where}, which nothing has written"
    if code >= PENDING:
        what = f"reads {where} before the wait for the asynchronous copy of {who(code)}"
        return EarlyReadFault, what
    return RaceFault, f"reads {where}, written by {who(code)} since the last barrier"
