"""Halfbyte beside other engines on a CPU: ``python -m halfbyte.bench.peers FILE...``.

    python -m halfbyte.bench.peers smollm2 model.gguf \
        --llama-bench ik/llama-bench --label ik --llama-bench cpp/llama-bench --label llama.cpp \
        --threads 2 --rounds 5 --pp 512 --tg 64 --batch 8 --out results
    python -m halfbyte.bench.peers --show results/*.json

All engines get the same files and threads and take turns, sample by sample, so that a slow minute
of the machine hits all; ratios are taken round by round. Between rounds the read bandwidth is
measured, which with the bytes of the file that a token must read gives the ceiling of decode.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from halfbyte.errors import HalfbyteError

from ...loaders.store.model_store import resolve_model
from ..machine import usable_cores
from .compare import compare
from .llama_bench import LlamaBench
from .llama_cpp_python import LlamaCppPython
from .ours import Halfbyte, parse_options
from .peer import Peer, Setting
from .report import read_report, tables, write_report


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; prints the tables, progress goes to stderr."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.show:
            print(tables([read_report(Path(name)) for name in args.files]))
            return
        setting = Setting(args.threads, args.rounds, args.pp, args.tg, args.batch)
        peers = _peers(parser, args)
        reports = []
        for model in [resolve_model(name) for name in args.files]:
            reports.append(compare(model, peers, setting, _say))
            if args.out is not None:
                _say(f"wrote {write_report(args.out, reports[-1])}")
        print(tables(reports))
    except HalfbyteError as error:
        parser.exit(1, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m halfbyte.bench.peers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="names or paths of models")
    parser.add_argument(
        "--llama-bench",
        action="append",
        default=[],
        metavar="PATH",
        help="a llama-bench binary; more words are options of it: 'PATH -rtr 1'",
    )
    parser.add_argument(
        "--label", action="append", default=[], help="name of each --llama-bench, in their order"
    )
    parser.add_argument("--llama-cpp-python", action="store_true", help="compare with it, too")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="a second engine of ours with these options, such as exact=true",
    )
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pp", type=int, default=512, help="prompt tokens; 0 leaves prefill out")
    parser.add_argument("--tg", type=int, default=64, help="decoded tokens")
    parser.add_argument("--batch", type=int, default=8, help="sequences; 1 leaves batches out")
    parser.add_argument("--out", type=Path, help="folder for a JSON file for each model")
    parser.add_argument(
        "--show", action="store_true", help="FILEs are such JSON files: print their tables"
    )
    return parser


def _peers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Peer]:
    """Ours and all that were asked for."""
    if len(args.label) != len(args.llama_bench):
        parser.error(
            f"--llama-bench is given {len(args.llama_bench)} times and --label "
            f"{len(args.label)} times; expected one label for each"
        )
    peers: list[Peer] = [Halfbyte(), *(Halfbyte(parse_options(text)) for text in args.also)]
    for label, words in zip(args.label, args.llama_bench, strict=True):
        path, *options = shlex.split(words) or [""]
        peers.append(LlamaBench(label, path, options))
    if args.llama_cpp_python:
        peers.append(LlamaCppPython())
    labels = [peer.label for peer in peers]
    for label in labels:
        if labels.count(label) > 1:
            parser.error(f"two engines are called {label!r}; expected different names")
    return peers


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
