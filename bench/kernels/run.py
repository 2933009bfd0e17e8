"""``bench kernels`` on the card at hand: chosen kinds, layers and M, with their peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from halfbyte.errors import ConfigError

from ...kernels.device.gpus import Gpu, gpu
from .cases import LinearCases
from .floors import LAYERS, SHOWN_ROWS, usual_kinds
from .measure import GraphTimer, LaunchTime
from .report import TimedCase, measure


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """What to time.

    Attributes:
        kinds: their names; empty = those that other people have kernels for.
        layers: parts of layer names such as ``8B``; empty = all.
        rows: M.
        card: name of the card; empty = what it calls itself.
    """

    kinds: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    rows: tuple[int, ...] = SHOWN_ROWS
    card: str = ""


def run_kernels(plan: KernelPlan, tell: Callable[[str], Any] = print) -> list[TimedCase]:
    """Rows of :func:`~.report.measure`. Raises ConfigError without a GPU or for unknown names."""
    if not torch.cuda.is_available():
        raise ConfigError("no NVIDIA GPU to time kernels on", hint="--dry-run shows the floors")
    layers = [x for x in LAYERS if not plan.layers or any(p in x.name for p in plan.layers)]
    if not layers:
        known = ", ".join(x.name for x in LAYERS)
        raise ConfigError(f"no layer is called {', '.join(plan.layers)}; known: {known}")
    timer = GraphTimer()
    card = measured_card(plan.card, timer)
    tell(f"{card.name}: {card.copy / 1e9:.0f} GB/s copied")
    rows = []
    for kind in plan.kinds or usual_kinds():
        for layer in layers:
            cases = LinearCases(kind, layer, torch.device("cuda"), card.l2)
            rows += [measure(cases.case(m), timer, card) for m in plan.rows]
            del cases
            torch.cuda.empty_cache()
    return rows


def measured_card(name: str, timer: GraphTimer) -> Gpu:
    """The card with its own copy bandwidth. Raises ConfigError for an unknown one."""
    properties = torch.cuda.get_device_properties(0)
    card = gpu(name or properties.name)
    a, b = (torch.ones(1 << 28, device="cuda", dtype=torch.uint8) for _ in range(2))
    timing = timer.time({"copy": lambda i: b.copy_(a)}, 1)["copy"]
    copy = 2 * a.numel() / timing.us * 1e6 if isinstance(timing, LaunchTime) else card.copy
    return replace(card, copy=copy, l2=int(getattr(properties, "L2_cache_size", 0)) or card.l2)
