"""What every test of the kernels goes through."""

from __future__ import annotations

from collections.abc import Iterator

import arm_support
import pytest


@pytest.fixture(autouse=True)
def forget_memory() -> Iterator[None]:
    yield
    arm_support.forget()
