"""How much the processor keeps near."""

from __future__ import annotations

import contextlib
from pathlib import Path


def cache_mib() -> int:
    """Last-level cache of the first processor in MiB; 0 when the system does not say."""
    largest = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text(encoding="ascii").strip()
            largest = max(largest, int(text.removesuffix("K")) >> 10 if text[-1:] == "K" else 0)
    return largest
