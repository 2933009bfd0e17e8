"""Fixtures of the Triton kernels' tests."""

from __future__ import annotations

import random

import pytest
import torch

from halfbyte.kernels.device.workspace import Workspace


@pytest.fixture
def rng() -> torch.Generator:
    seed = random.randrange(1 << 31)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def space() -> Workspace:
    """A workspace full of garbage, small enough to bound the splits."""
    space = Workspace(torch.device("cpu"), partial_bytes=1 << 20, counters=64)
    space.partials.fill_(float("nan"))
    return space
