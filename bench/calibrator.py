"""Where the time of quantizing goes: ``python -m halfbyte.bench.calibrator [--threads 1]``.

Processor time of each part for a layer of SmolLM2-135M and 16384 tokens, by the C kernels and in
plain torch, alternating in one process; the least of several runs counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..kernels.calibrator import Calibrator, PlainCalibrator
from ..quantize.arithmetic import make_calibrator
from ..quantize.grid import CLIPS, Grid, fit_grid
from ..quantize.hessian import Hessian
from ..quantize.methods.gptq import solve

# Fused projections of a layer: rows and columns.
_SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
_TOKENS = 16384
_GROUP = 64

TimedPart = Callable[[Calibrator], object]


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor milliseconds of a part of quantizing.

    Attributes:
        part: what was done.
        shape: rows and columns of the matrix, or tokens and columns of its inputs.
        plain: in plain torch.
        compiled: by the C kernels.
    """

    part: str
    shape: tuple[int, int]
    plain: float
    compiled: float


def _parts(n: int, k: int, tokens: int) -> Iterator[tuple[str, tuple[int, int], TimedPart]]:
    x, w = torch.randn(tokens, k), torch.randn(n, k)
    hessian = Hessian("bench", k)
    hessian.add(x @ torch.randn(k, k))
    hessian.factor(0.01)
    importance = hessian.importance()
    grid = fit_grid(w, 4, _GROUP, True, importance, (1.0,))

    def search(symmetric: bool) -> Callable[[Calibrator], Grid]:
        return lambda it: fit_grid(
            w, 4, _GROUP, symmetric, importance, CLIPS, it, both_signs=symmetric
        )

    yield "moments", (tokens, k), lambda it: it.add_moments(torch.zeros(k, k), x)
    yield "symmetric grids", (n, k), search(True)
    yield "grids with zero points", (n, k), search(False)
    yield "GPTQ", (n, k), lambda it: solve(w, hessian, grid, calibrator=it)


def measure(
    compiled: Calibrator, shapes: Sequence[tuple[int, int]], tokens: int, runs: int
) -> Iterator[Cost]:
    """The cost of each part for each of some shapes.

    Args:
        compiled: compared with plain torch.
        shapes: rows and columns of matrices.
        tokens: inputs of each.
        runs: of which the quickest counts.
    """
    both = PlainCalibrator(), compiled
    for n, k in shapes:
        for name, shape, part in _parts(n, k, tokens):
            least = [float("inf")] * 2
            for _ in range(runs):
                for i, calibrator in enumerate(both):
                    begin = time.process_time()
                    part(calibrator)
                    least[i] = min(least[i], time.process_time() - begin)
            yield Cost(name, shape, *(1000 * s for s in least))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"{'part':24}{'shape':>14}{'torch':>10}{'C':>10}  ms of processor time")
    for cost in measure(make_calibrator(args.threads), _SHAPES, _TOKENS, args.runs):
        shape = "{} x {}".format(*cost.shape)
        print(f"{cost.part:24}{shape:>14}{cost.plain:10.1f}{cost.compiled:10.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
