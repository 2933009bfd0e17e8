"""Attacks on a served default model; each test prints its figures as one line of JSON.

    pytest -m slow tests/reliability

They take some minutes and bounds of time are among their assertions: run them on a quiet machine.
Only 127.0.0.1 is attacked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attack_support import SOAK_S, Victim


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(max(900, 2 * SOAK_S)))
            if "victim" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.model)


@pytest.fixture
def victim(smollm2: Path, tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    """Starts servers; each must end cleanly afterwards."""
    started: list[Victim] = []

    def start(*options: str) -> Victim:
        started.append(Victim(smollm2, tmp_path / f"log-{len(started)}", *options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def report(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Prints a test's figures, with the load of the machine that they were taken under."""

    def show(**figures: Any) -> None:
        name = request.node.name.removeprefix("test_")
        line = {"attack": name, **figures, "load_1min": round(os.getloadavg()[0], 1)}
        with capsys.disabled():
            print("\n" + json.dumps(line), flush=True)

    return show
