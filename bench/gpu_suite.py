"""Everything that a few minutes on a GPU can tell about the kernels, in one command.

    python -m halfbyte.bench.gpu_suite --out DIR        where the package is installed
    python bench/gpu_suite.py --out DIR                 in a bare checkout

It needs Python, torch, triton and one NVIDIA GPU; nothing is downloaded or installed. In order of
value, each in a separate process with a time limit: copy bandwidth; every kernel against
float64, across M and with poisoned workspaces; the usual kinds of weight and attention against
their peers; a whole decode step of the 8B shape; large M; cold start; compute-sanitizer, where it
is there; and, if time is left, a tuning pass. After every part ``DIR/results.json`` and
``DIR/results.md`` are written, so that being stopped loses little. The ten worst gaps are printed
last.

``--smoke`` runs all of it with tiny shapes on the CPU, to test the suite and not the kernels.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).resolve()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code is 1 when a check failed or nothing was measured."""
    parser = argparse.ArgumentParser(prog="gpu_suite", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=525.0, help="time for everything")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--only", default="", help="names of parts, by commas")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        return _one(args.part, args.out, args.seconds, args.smoke, args.small)
    from .gpu.suite import SUITE_PARTS, run_suite, text

    only = tuple(name.strip() for name in args.only.split(",") if name.strip())
    if unknown := set(only) - set(SUITE_PARTS):
        parser.error(
            f"no part is called {', '.join(sorted(unknown))}; known: {', '.join(SUITE_PARTS)}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    results = run_suite(args.out, SCRIPT, limit=args.seconds, smoke=args.smoke, only=only)
    print(text(results))
    parts = results["parts"].values()
    bad = any(not row.get("ok", True) for part in parts for row in part["rows"] if "check" in row)
    return 1 if bad or all(part["state"] == "failed" for part in parts) else 0


def _one(name: str, folder: Path, seconds: float, smoke: bool, small: bool) -> int:
    """One part in this process."""
    if smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    warnings.filterwarnings("ignore")
    import torch

    from .gpu.correctness import FAMILIES
    from .gpu.part import Part
    from .gpu.parts import PARTS, cold_child

    torch.manual_seed(0)
    part = Part(name, folder, seconds, smoke)
    part.small = small or smoke
    family = name.removeprefix("check-")
    run = FAMILIES[family] if family != name else {**PARTS, "cold-child": cold_child}[name]
    # The process that started this one reads the traceback; what was measured is on disk.
    run(part)
    part.finish("done" if part.state == "running" else part.state)
    return 0


if __name__ == "__main__":
    if __package__:
        sys.exit(main())
    # Run by its path: the folders of the checkout are the sub-packages.
    root = SCRIPT.parents[1]
    sys.path[0] = str(root)
    importlib.import_module("halfbyte").__path__.append(str(root))
    runpy.run_module("halfbyte.bench.gpu_suite", run_name="__main__", alter_sys=True)
