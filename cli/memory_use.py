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
    plan = engine.memory
    facts = {
        "weights": f"{human_bytes(engine.weight_bytes)}, read for each token",
        "KV cache": f"{human_bytes(plan.bytes_per_token)} for each token of the context, "
        f"{plan.kv_dtype}",
    }
    if peak := peak_bytes():
        facts["process"] = f"{human_bytes(peak)} of memory at its largest"
    return facts


def peak_bytes() -> int:
    """Most memory that this process has held, in bytes; 0 where the system does not tell."""
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
