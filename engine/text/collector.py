"""Keeps Python's cycle collector from walking a vocabulary again and again while it is built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Run the block without the cycle collector; it is on again behind it where it was before.

    A vocabulary is hundreds of thousands of objects without a cycle. Each quarter more of them
    starts a full collection, which looks at those and at all of torch.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
