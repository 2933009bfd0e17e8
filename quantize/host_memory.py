"""What glibc keeps of freed memory, and how to make it keep less. Other libraries do without."""

from __future__ import annotations

import contextlib
import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def share_heap() -> None:
    """Let threads that are started from now on allocate from the heap of all.

    Each would get its own, and keep there what it freed. For programs whose threads take turns.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def trim_heap() -> None:
    """Return freed memory to the system: glibc keeps blocks that lie below used ones."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
