"""``python -m halfbyte.bench.ptx``: every shipped kernel run without a GPU, and compared.

    python -m halfbyte.bench.ptx --arch sm_90 --kernel fused    a table
    python -m halfbyte.bench.ptx --json ptx.json               all variants, all figures
    python -m halfbyte.bench.ptx --update                      write the budget of accesses

The PTX that the compiler makes is interpreted, as a launch on a GPU would run it. That says what
the code computes and in which order memory is touched, and nothing about time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence

from ..machine import usable_cores
from .budget import save_accesses
from .report import ptx_table, summary
from .run import EMULATED_ARCHS, ptx_jobs
from .worker import run_jobs, serve


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m halfbyte.bench.ptx", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arch", default=",".join(EMULATED_ARCHS), help="targets, by commas")
    parser.add_argument("--kernel", default="", help="prefixes of kernel names, by commas")
    parser.add_argument("--seed", type=int, help="draw as the run with this seed drew")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 = all cores")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--update", action="store_true", help="write the budget of accesses")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        # Whatever else prints must not get between the rows.
        out, sys.stdout = sys.stdout, sys.stderr
        serve(iter(sys.stdin.readline, ""), lambda text: (out.write(text), out.flush()))
        return 0
    seed = random.SystemRandom().getrandbits(30) if args.seed is None else args.seed
    print(f"seed {seed}", file=sys.stderr)
    jobs = ptx_jobs(_parts(args.arch), _parts(args.kernel), seed)
    if not jobs:
        print(f"error: no kernel is called {args.kernel!r}", file=sys.stderr)
        return 1
    rows = []
    for row in run_jobs(jobs, args.jobs or usable_cores()):
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)}/{len(jobs)} run", end="", file=sys.stderr, flush=True)
    print(ptx_table(rows))
    print(summary(rows))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"seed": seed, "rows": [row.to_dict() for row in rows]}, file, indent=1)
    if args.update:
        for path in save_accesses([row for row in rows if not row.problem]):
            print(f"wrote {path}", file=sys.stderr)
    return 1 if any(row.problem for row in rows) else 0


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
