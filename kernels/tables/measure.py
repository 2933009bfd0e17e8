"""Time launch configurations on a GPU: cold weights, launches replayed from a CUDA graph."""

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
from ..kind import ProductContext
from ..kinds import KINDS
from ..random_weights import clone, random_weight
from .tuning import TunedProblem, tunings

COLD_BYTES = 256 << 20
"""Weights that one pass reads: more than the second-level cache of any device keeps."""
_SPARE_BYTES = 512 << 20
_REPEATS = 5
_MOST_COPIES = 64


def needed_bytes(problem: TunedProblem) -> int:
    """Device memory that timing a problem takes at most, packing included."""
    weights = problem.rows * problem.k
    # Codes and scales before packing, copies for cold reads, activations, workspace.
    return 12 * weights + COLD_BYTES + 8 * problem.m * (problem.rows + problem.k) + _SPARE_BYTES


@dataclass(frozen=True, slots=True)
class CandidateTime:
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
    """Times the configurations of one weight size.

    Args:
        problem: its ``m`` is not looked at.
        device: a CUDA device.

    Raises:
        ConfigError: too little free device memory.
    """

    def __init__(self, problem: TunedProblem, device: torch.device | None = None) -> None:
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
        self.workspace = Workspace(self.device)
        self.k = problem.k
        self.kind = next(kind for kind in KINDS if kind.name == problem.kind)
        self.tuning = tunings()[problem.kind]
        form, fp16 = self.tuning.timed(problem)
        self.dtype = torch.float16 if fp16 else torch.bfloat16
        weight = random_weight(form, problem.rows, problem.k, self.device)
        first = self.kind.pack(weight, self.dtype, self.device, False)
        del weight
        copies = min(_MOST_COPIES, max(1, -(-COLD_BYTES // first.nbytes)))
        self.weights = [first, *(clone(first) for _ in range(copies - 1))]

    def time(
        self, problem: TunedProblem, values: Mapping[str, Any], like: Tensor | None
    ) -> CandidateTime:
        """Microseconds of one product and its result; compiles first.

        ``like``: [M, rows], result of the formula's configuration; one that differs is not to be
        trusted.
        """
        generator = torch.Generator(device="cpu").manual_seed(problem.m)
        x = torch.randn(problem.m, self.k, generator=generator).to(self.device, self.dtype)
        out = x.new_empty(problem.m, problem.rows)
        table = {self.tuning.table_key(problem): values}
        context = ProductContext(self.workspace, overrides=table)
        run = self.kind.prepared(x, self.weights[0], out, context)

        try:
            run(self.weights[0])
        except OutOfResources as error:
            return CandidateTime(None, None, f"does not fit: {error}")
        result = out.clone()
        if like is not None and not _close(result, like):
            return CandidateTime(None, None, "its result differs from the formula's")
        return CandidateTime(self._microseconds(run), result)

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


def _close(a: Tensor, b: Tensor) -> bool:
    """Two orders of fp32 sums, each rounded once: a few units in the last place of the largest."""
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= 0.02 * b.abs().max())
