"""The command line of what is measured against llama.cpp's server: its options and its report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError

from ..loaders.store.model_store import resolve_model
from .machine import usable_cores


def comparison_parser(name: str, doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all have.

    Args:
        name: of the module in ``halfbyte.bench``.
        doc: the module's text, whose first line describes it.
        rounds: by default.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m halfbyte.bench.{name}", description=(doc or "").splitlines()[0]
    )
    parser.add_argument("model", metavar="MODEL", help="name or path of a GGUF file")
    parser.add_argument("--llama-server", metavar="PATH", help="llama.cpp's server; else only ours")
    parser.add_argument(
        "--option",
        dest="options",
        action="append",
        default=[],
        metavar="TEXT",
        help="one more of llama-server's options; repeatable",
    )
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, default=0, help="of the drawn requests")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the report there as JSON")
    return parser


def run_comparison(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    kind: str,
    measure: Callable[[Path, argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measure, print the table, and write the report where that is wanted.

    Args:
        parser: ends the program with the error where one comes.
        args: parsed.
        kind: beginning of the report's file name.
        measure: makes the report of a model's file.
        table: shows it.
    """
    try:
        model = resolve_model(args.model)
        report = measure(model, args)
        print(table(report))
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            path = args.out / f"{kind}-{model.stem}.json"
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)
    except HalfbyteError as error:
        parser.exit(1, f"error: {error}\n")
