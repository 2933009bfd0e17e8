"""What every tool's run has in common: its arguments, its windows, what it says of itself."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def arguments(what: str | None) -> argparse.ArgumentParser:
    """MODEL OUT TEXT, and how much of the text; a tool adds its settings."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("model", type=Path, help="folder of a dense model")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("text", type=Path, help="what to calibrate on")
    parser.add_argument("--samples", type=int, default=32, help="windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    return parser


def windows(args: argparse.Namespace) -> list[list[int]]:
    """The first windows of the text, one behind the other, without special tokens."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    text = args.text.read_text(encoding="utf-8")
    # A token has at most some tens of bytes: the whole text need not be split.
    ids = tokenizer(text[: args.samples * args.length * 16], add_special_tokens=False).input_ids
    if len(ids) < args.samples * args.length:
        raise SystemExit(f"{args.text} has {len(ids)} tokens; {args.samples} windows need more")
    return [ids[i * args.length :][: args.length] for i in range(args.samples)]


def measured(args: argparse.Namespace, run: Callable[[], None], packages: Sequence[str]) -> None:
    """Run it and print one line of JSON, the last: versions, time and memory of the process.

    Times count from the start of ``run``, ``process_user_s`` from that of the process. Memory is
    the most that was resident, in bytes.
    """
    before, begin = _user_seconds(), time.monotonic()
    run()
    used = _user_seconds()
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    said = {
        "versions": {name: metadata.version(name) for name in (*packages, "torch", "transformers")},
        "settings": {key: value for key, value in vars(args).items() if key not in _PATHS},
        "user_s": round(used - before, 2),
        "process_user_s": round(used, 2),
        "wall_s": round(time.monotonic() - begin, 2),
        "peak_rss": peak << 10,
        "path": str(args.out),
    }
    print("\n" + json.dumps(said), flush=True)


_PATHS = ("model", "out", "text")


def _user_seconds() -> float:
    """User seconds of this process and of its children that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(each).ru_utime for each in who)
