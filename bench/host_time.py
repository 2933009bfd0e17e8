"""What the host does for a step of the Triton kernels, on a GPU that is not there.

    python -m halfbyte.bench.host_time --format GPTQ --layers 32

Triton's launcher binds and specializes every launch as for an sm_90, and then nothing is run. What
is timed is all Python of a step: of an eager one ops, checks, choices and launches; of one that is
replayed as a CUDA graph all but the driver's one launch. It does not depend on how large the
matrices are, so the model is tiny, with as many layers as asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..engine.backends import one_object_backend
from ..engine.backends.triton_ops import TritonOps
from ..engine.models.decoder import Decoder, block_states
from ..engine.models.rope import Rotaries
from ..engine.run.executors import CapturingExecutor, EagerExecutor, Executor
from ..engine.run.kv_cache import KVCache
from ..engine.run.rows import Rows
from ..kernels.codegen.made_up import IdleCompiler, made_up_gpu
from ..kernels.codegen.targets import target
from ..loaders import open_checkpoint
from .machine import machine_info
from .synthetic.shapes import SHAPES
from .synthetic.write import FORMATS, write_model
from .table import markdown_table

HOST_STEPS: dict[str, tuple[tuple[int, int], ...]] = {
    "decode, 4 rows": ((50, 1),) * 4,
    "prefill, 40 tokens": ((0, 40),),
    "30 tokens beside 2 rows": ((0, 30), (5, 1), (6, 1)),
}
"""Name -> (first position, tokens) of each row."""

_CONTEXT, _BLOCK, _ROWS = 512, 64, 8


def measure_host(model: Path, rounds: int) -> dict[str, Any]:
    """Launches and milliseconds of each of `HOST_STEPS`, in plain JSON types.

    Args:
        model: a folder or GGUF file.
        rounds: of which the median is taken.
    """
    compiler = IdleCompiler()
    with made_up_gpu(target("sm_90"), compiler):
        eager, replaying, rows = _network(model)
        figures = {}
        for name, parts in HOST_STEPS.items():
            took = _timed(eager, rows, parts, rounds, compiler)
            again = _timed(replaying, rows, parts, rounds, compiler)
            assert again["launches"] == 0
            figures[name] = took | {"replayed_ms": again["ms"]}
    return {
        "kind": "host_time",
        "machine": machine_info(),
        "setting": {"rounds": rounds},
        "steps": figures,
    }


class _Nothing:
    """Records nothing, and replays it."""

    def begin_record(self) -> None:
        pass

    def end_record(self) -> _Nothing:
        return self

    def run(self) -> None:
        pass


def _network(opened: Path) -> tuple[Executor, Executor, Rows]:
    """What runs the network on the Triton kernels, op by op and replayed, and rows for steps."""
    ops = TritonOps(torch.device("cpu"), torch.float16, False)
    executor = partial(EagerExecutor, prepare=ops.prepare)
    backend = one_object_backend(ops, ops.dtype, executor)
    checkpoint = open_checkpoint(opened)
    config = checkpoint.config
    model = Decoder(config, checkpoint, backend)
    checkpoint.close()
    kv = KVCache(block_states(config), 2, _BLOCK, backend.kv_dtype)
    rows = Rows(_ROWS, _CONTEXT, _BLOCK, Rotaries(config))
    replaying = CapturingExecutor(model, kv, _ROWS, _Nothing(), ops.prepare, tokens=64)
    return backend.executor(model, kv, 0), replaying, rows


def _timed(
    run: Executor,
    rows: Rows,
    parts: Sequence[tuple[int, int]],
    rounds: int,
    compiler: IdleCompiler,
) -> dict[str, float]:
    runs = [(row, start, count) for row, (start, count) in enumerate(parts)]
    wanted = None if all(count == 1 for _, count in parts) else [1] * len(parts)
    seconds = []
    for _ in range(rounds + 1):  # the first works out what is cached
        step = rows.step(runs, wanted)
        compiler.launches = 0
        began = time.perf_counter()
        run.run(step)
        seconds.append(time.perf_counter() - began)
    return {"ms": 1000 * statistics.median(seconds[1:]), "launches": compiler.launches}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m halfbyte.bench.host_time", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--format", choices=FORMATS, default="GPTQ", help="of a made-up model")
    parser.add_argument("--layers", type=int, default=32, help="of a made-up model")
    parser.add_argument("--model", type=Path, metavar="PATH", help="in place of a made-up model")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            shape = replace(SHAPES["tiny"], layers=args.layers)
            model, _ = write_model(Path(folder), shape, args.format, 1)
        report = measure_host(model, args.rounds)
    name = f"{args.format}, {args.layers} layers" if args.model is None else args.model.name
    report["setting"]["model"] = name
    lines = [
        (
            step,
            f"{figures['launches']:.0f}",
            f"{figures['ms']:.2f}",
            f"{figures['replayed_ms']:.2f}",
        )
        for step, figures in report["steps"].items()
    ]
    head = ("launches", "ms, op by op", "ms, replayed")
    print(markdown_table((name, *head), lines, head))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
