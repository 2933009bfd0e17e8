"""What a part of the suite is given: a device, a timer, a deadline, and a file for its results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from halfbyte.errors import ConfigError

from ...kernels.device.gpus import Gpu, gpu
from ..kernels.measure import GraphTimer, Timer, WallTimer, reason

DEFAULT_L2 = 64 << 20


class Part:
    """One part while it runs. Every result is on disk before the next is worked on.

    Args:
        name: of the part and of its file.
        folder: of all parts' files.
        seconds: after which it should stop by itself.
        smoke: tiny shapes on the CPU in Triton's interpreter, with figures that mean nothing.

    Attributes:
        small: checks take their least shapes.
    """

    def __init__(self, name: str, folder: Path, seconds: float, smoke: bool = False) -> None:
        self.name, self.folder, self.smoke = name, folder, smoke
        self.small = smoke
        self.end = time.monotonic() + seconds
        self.start = time.monotonic()
        self.device = torch.device("cpu" if smoke else "cuda")
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.state = "running"
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.end - time.monotonic()

    def timer(self) -> Timer:
        """Medians of graphs on a GPU; without one, a single call by the clock."""
        return WallTimer() if self.smoke else GraphTimer()

    def card(self) -> Gpu:
        """The card, with the bandwidth that the probe measured where it did."""
        if self.smoke:
            return replace(gpu("H100"), l2=4096)
        properties = torch.cuda.get_device_properties(0)
        measured = read(self.folder, "probe").get("facts", {})
        try:
            card = gpu(properties.name)
        except ConfigError:
            # An unknown card is held to what a big product reached on it.
            half = measured.get("half") or 1e14
            int8 = measured.get("int8") or 2 * half
            memory = int(properties.total_memory)
            arch = 10 * properties.major + properties.minor
            place = properties.name, arch, properties.multi_processor_count
            card = Gpu(*place, 1e12, half, int8, DEFAULT_L2, memory)
        l2 = int(getattr(properties, "L2_cache_size", 0)) or card.l2
        return replace(card, copy=measured.get("copy") or card.copy, l2=l2)

    def add(self, row: dict[str, Any]) -> None:
        """Keep one result."""
        self.rows.append(row)
        self.save()

    def check(self, name: str, run: Callable[[], tuple[float, float]]) -> None:
        """Keep whether an error is within its limit; ``run`` gives both. Failures are results."""
        begin = time.monotonic()
        try:
            error, limit = run()
            row: dict[str, Any] = {"ok": error <= limit, "error": error, "limit": limit}
        # One failing kernel must not stop the others.
        except Exception as failure:
            row = {"ok": False, "error": None, "limit": None, "failure": reason(failure)}
        self.add({"check": name, **row, "seconds": round(time.monotonic() - begin, 2)})

    def finish(self, state: str = "done") -> None:
        """Write the last state: ``done``, ``out of time`` or a failure."""
        self.state = state
        self.save()

    def save(self) -> None:
        """Write everything to the part's file, all or nothing."""
        path = self.folder / f"{self.name}.json"
        text = json.dumps(
            {
                "part": self.name,
                "state": self.state,
                "seconds": round(time.monotonic() - self.start, 2),
                "facts": self.facts,
                "rows": self.rows,
            },
            indent=1,
        )
        spare = path.with_suffix(".tmp")
        spare.write_text(text + "\n", encoding="utf-8")
        spare.replace(path)


def read(folder: Path, name: str) -> dict[str, Any]:
    """What a part has written so far; empty when there is nothing."""
    try:
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def card_facts(card: Gpu) -> dict[str, Any]:
    """A card as JSON types."""
    return asdict(card)
