"""What memory an engine and its process hold, in words."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .console import human_bytes

if TYPE_CHECKING:
    from ..engine.engine import Engine


def memory_facts(engine: Engine) -> dict[str, str]:
    """Facts by name: weights, KV cache, the whole process."""
    stats, plan = engine.stats(), engine.memory
    held = stats.kv_blocks_used * plan.block_size * plan.bytes_per_token
    facts = {
        "weights": f"{human_bytes(engine.weight_bytes)} read for each token",
        "KV cache": f"{human_bytes(held)} in use of {human_bytes(plan.kv_bytes)} "
        f"({stats.kv_blocks_used} of {stats.kv_blocks_total} blocks)",
    }
    size = resident_bytes()
    if size:
        facts["process"] = f"{human_bytes(size)} of memory at most"
    return facts


def resident_bytes() -> int:
    """Most memory that this process has held, in bytes; 0 where the system does not tell."""
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
