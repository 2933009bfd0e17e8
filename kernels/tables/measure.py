"""Time W4A16 configurations on a GPU: cold weights, launches replayed from a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from halfbyte.errors import ConfigError

from ..device.workspace import Workspace
from ..w4a16.config import Problem, table_key
from ..w4a16.layout import PackedW4, pack_w4
from ..w4a16.op import w4a16_linear

COLD_BYTES = 256 << 20
"""Weights that one pass reads: more than the second-level cache of any device keeps."""
_SPARE_BYTES = 512 << 20
_REPEATS = 5
_MOST_COPIES = 64


def needed_bytes(problem: Problem) -> int:
    """Device memory that timing a problem takes at most, packing included."""
    weights = problem.rows * problem.k
    # Codes and scales before packing, copies for cold reads, activations, workspace.
    return 12 * weights + COLD_BYTES + 8 * problem.m * (problem.rows + problem.k) + _SPARE_BYTES


@dataclass(frozen=True, slots=True)
class Timing:
    """One candidate.

    Attributes:
        us: microseconds of one product, or None when it was not timed.
        result: [M, rows] in the activations' dtype, or None when there is none to trust.
        problem: why there is no time.
    """

    us: float | None
    result: Tensor | None
    problem: str = ""


class Bench:
    """Times the configurations of one weight size; zero points, as most checkpoints have.

    Args:
        problem: its ``m`` is not looked at.
        device: a CUDA device.

    Raises:
        ConfigError: too little free device memory.
    """

    def __init__(self, problem: Problem, device: torch.device | None = None) -> None:
        self.device = torch.device("cuda", 0) if device is None else device
        # What an earlier size left in torch's cache is free.
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        needed = needed_bytes(problem)
        if free < needed:
            raise ConfigError(
                f"{problem.rows}x{problem.k} needs {needed >> 20} MiB of device memory to be "
                f"timed; {free >> 20} MiB are free",
                hint="stop what else runs on the GPU; entries so far are kept",
            )
        self.dtype = torch.float16 if problem.fp16 else torch.bfloat16
        self.workspace = Workspace(self.device)
        self.k = problem.k
        first = _weight(problem, self.device)
        copies = min(_MOST_COPIES, max(1, -(-COLD_BYTES // first.nbytes)))
        self.weights = [first, *(_copy(first) for _ in range(copies - 1))]

    def time(self, problem: Problem, values: Mapping[str, Any], like: Tensor | None) -> Timing:
        """Microseconds of one product and its result; compiles first.

        ``like``: [M, rows], result of the formula's configuration; one that differs is not to be
        trusted.
        """
        generator = torch.Generator(device="cpu").manual_seed(problem.m)
        x = torch.randn(problem.m, self.k, generator=generator).to(self.device, self.dtype)
        out = x.new_empty(problem.m, problem.rows)
        table = {table_key(problem): values}

        def run(weight: PackedW4) -> None:
            w4a16_linear(x, weight, out=out, workspace=self.workspace, overrides=table)

        try:
            run(self.weights[0])
        except OutOfResources as error:
            return Timing(None, None, f"does not fit: {error}")
        result = out.clone()
        if like is not None and not _close(result, like):
            return Timing(None, None, "its result differs from the formula's")
        return Timing(self._microseconds(run), result)

    def _microseconds(self, run: Any) -> float:
        stream = torch.cuda.Stream(self.device)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for weight in self.weights:
                run(weight)
        graph.replay()
        times = []
        for _ in range(_REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return 1000 * statistics.median(times) / len(self.weights)


def _weight(problem: Problem, device: torch.device) -> PackedW4:
    n, k = problem.rows, problem.k
    group = problem.group or -1
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device)
    groups = 1 if group == -1 else -(-k // group)
    scales = (torch.rand(n, groups, device=device) * 0.02).half()
    zeros = torch.randint(0, 16, (n, groups), device=device).float()
    return pack_w4(codes, scales, zeros, zero="int", group=group)


def _copy(w: PackedW4) -> PackedW4:
    units, table = w.units.clone(), w.table.clone()
    return PackedW4(units, table, w.rows, w.features, w.group, w.shift, w.additive, w.gated)


def _close(a: Tensor, b: Tensor) -> bool:
    """Two orders of fp32 sums, each rounded once: a few units in the last place of the largest."""
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= 0.02 * b.abs().max())
