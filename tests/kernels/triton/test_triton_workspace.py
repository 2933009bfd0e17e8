"""What a workspace has room for."""

from __future__ import annotations

import random

import pytest
import torch
from seeds import fresh_seed

from halfbyte.errors import KernelInputError
from halfbyte.kernels.device.workspace import Workspace


def check_one(rng: random.Random) -> None:
    bm, bn = rng.choice((8, 16, 32)), rng.choice((64, 128))
    across, splits, tiles = rng.randint(1, 9), rng.randint(2, 6), rng.randint(1, 4)
    unit = bm * tiles
    m = rng.randint(1, 20) * unit if tiles > 1 else rng.randint(1, 200)
    counters, floats = rng.randint(1, 40), rng.randint(1, 30 * bm * bn * splits)
    space = Workspace(torch.device("cpu"), partial_bytes=4 * floats, counters=counters)
    sizes = {"bm": bm, "bn": bn, "across": across, "unit": unit if tiles > 1 else 0}

    def fits(rows: int) -> bool:
        count = -(-rows // bm) * across
        return count <= counters and count * bm * bn * splits <= floats

    assert space.rows_at_once(m, splits=1, **sizes) == m
    if not fits(unit):
        with pytest.raises(KernelInputError, match=f"{counters} counters"):
            space.rows_at_once(m, splits=splits, **sizes)
        return
    rows = space.rows_at_once(m, splits=splits, **sizes)
    assert fits(rows) and (rows == m or (rows % unit == 0 and not fits(rows + unit)))


def test_a_launch_has_as_many_whole_units_as_fit() -> None:
    """Never more sums and counters than there are, and no unit fewer."""
    rng = random.Random(fresh_seed())
    for _ in range(300):
        check_one(rng)
