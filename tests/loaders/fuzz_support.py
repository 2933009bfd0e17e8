"""One check of drawn inputs as two tests: a quick one, and a long one that is marked slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def two_lengths(
    check: Callable[..., None], quick: int, *drawn: st.SearchStrategy[Any]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Tests of ``quick`` and of 10,000 cases; the check takes what is drawn, in that order."""

    def cases(count: int) -> Callable[[], None]:
        how = settings(
            max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        return how(given(*drawn)(check))

    return cases(quick), pytest.mark.slow(pytest.mark.timeout(3600)(cases(10_000)))
