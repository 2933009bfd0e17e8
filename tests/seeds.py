"""Where tests that draw their inputs begin."""

from __future__ import annotations

import random


def fresh_seed() -> int:
    """Drawn anew each run and printed, so that a failure can be repeated."""
    seed = random.randrange(1 << 40)
    print("seed", seed)
    return seed
