"""Lines per second of a batch, against llama.cpp's server with as many parallel slots.

    python -m halfbyte.bench.batch_lines MODEL --llama-server PATH --lines 1000 --out DIR

Both get the same file: `halfbyte batch` as it is, ``llama-server`` from as many clients at a time
as it has slots. They run in turn, each in a process of its own. Every request is for a text of a
drawn length after one of four drawn beginnings, with a drawn number of tokens that no end-of-text
cuts short, so both generate equally many. Seconds are those from the loaded model to the last
answer; processor seconds are those of the whole process, loading among them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from .comparison import comparison_parser, run_comparison
from .machine import machine_info
from .server_process import (
    PATIENCE_S,
    ended,
    free_port,
    llama_server_command,
    running_server,
)
from .table import markdown_table

_WORDS = (
    *("river", "stone", "paper", "light", "garden", "number", "winter", "engine", "forest"),
    *("question", "window", "answer", "island", "summer", "letter", "mountain", "shadow"),
)
_BEGINNINGS = 4
_BEGINNING_WORDS = 80
_WORDS_OF_A_LINE = (5, 60)
_TOKENS_OF_A_LINE = (8, 48)
_CONTEXT = 512


@dataclass(frozen=True, slots=True)
class BatchSample:
    """One run over the whole file.

    Attributes:
        seconds: from the loaded model to the last answer.
        processor_s: user and system seconds of the process, loading among them.
        prompt_tokens: of all lines.
        completion_tokens: of all lines.
        cached_tokens: of the prompts, found in a cache.
    """

    seconds: float
    processor_s: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def batch_file(lines: int, seed: int) -> str:
    """Requests in OpenAI's batch format, the same for the same seed."""
    draw = random.Random(seed)
    heads = [" ".join(draw.choices(_WORDS, k=_BEGINNING_WORDS)) for _ in range(_BEGINNINGS)]
    out = []
    for index in range(lines):
        words = draw.choices(_WORDS, k=draw.randint(*_WORDS_OF_A_LINE))
        body = {
            "prompt": f"{draw.choice(heads)}. {' '.join(words)}",
            "max_tokens": draw.randint(*_TOKENS_OF_A_LINE),
            "temperature": 0,
            "ignore_eos": True,
        }
        asked = {"custom_id": f"line-{index}", "method": "POST", "url": "/v1/completions"}
        out.append(json.dumps({**asked, "body": body}) + "\n")
    return "".join(out)


def run_ours(model: Path, source: Path, slots: int, threads: int) -> BatchSample:
    """`halfbyte batch` over the file. Raises ConfigError when it fails."""
    with tempfile.TemporaryDirectory(prefix="halfbyte-batch-") as folder:
        out = Path(folder) / "out.jsonl"
        command = [sys.executable, "-m", "halfbyte", "batch", str(source), str(out)]
        command += ["-m", str(model), "--max-batch", str(slots), "--threads", str(threads)]
        command += ["--max-context", str(_CONTEXT)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = process.stderr.read()
        processor_s = ended(process)
        found = re.search(r"none failed; \d+ tokens in ([\d.]+) s", said)
        if process.returncode or found is None:
            raise ConfigError(f"halfbyte batch failed: {(said.strip() or 'nothing said')[-300:]}")
        usages = [
            json.loads(line)["response"]["body"]["usage"]
            for line in out.read_text("utf-8").splitlines()
        ]
    return _sample(float(found[1]), processor_s, usages)


def run_llama_server(
    binary: str, model: Path, source: Path, slots: int, threads: int, options: Sequence[str] = ()
) -> BatchSample:
    """``llama-server`` over the file, ``slots`` requests at a time.

    Raises:
        ConfigError: it does not start, or refuses a request.
    """
    port = free_port()
    command = llama_server_command(
        binary, model, port, slots=slots, context=_CONTEXT, threads=threads, options=options
    )
    bodies = [json.loads(line)["body"] for line in source.read_text("utf-8").splitlines()]
    with running_server(command, port) as server:
        begun = time.perf_counter()
        try:
            with ThreadPoolExecutor(slots) as pool:
                usages = list(pool.map(lambda body: _ask(server.url, body), bodies))
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"llama-server failed: {error}") from error
        seconds = time.perf_counter() - begun
    return _sample(seconds, server.processor_s, usages)


def _ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.load(response)["usage"]


def _sample(seconds: float, processor_s: float, usages: Sequence[dict[str, Any]]) -> BatchSample:
    cached = sum(
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for usage in usages
    )
    return BatchSample(
        seconds,
        processor_s,
        sum(usage["prompt_tokens"] for usage in usages),
        sum(usage["completion_tokens"] for usage in usages),
        cached,
    )


def measure(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A report in plain JSON types. Raises ConfigError as the runs do."""
    samples: dict[str, list[BatchSample]] = {}
    with tempfile.TemporaryDirectory(prefix="halfbyte-batch-") as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text(batch_file(args.lines, args.seed), encoding="utf-8")
        for number in range(args.rounds):
            runs = {"halfbyte": lambda: run_ours(model, source, args.slots, args.threads)}
            if args.llama_server:
                runs["llama-server"] = lambda: run_llama_server(
                    args.llama_server, model, source, args.slots, args.threads, args.options
                )
            for label, run in runs.items():
                print(f"round {number + 1}: {label}", file=sys.stderr, flush=True)
                samples.setdefault(label, []).append(run())
    counts = {label: {s.completion_tokens for s in taken} for label, taken in samples.items()}
    if len({frozenset(c) for c in counts.values()}) > 1:
        raise ConfigError(f"the engines did not generate equally many tokens: {counts}")
    return {
        "kind": "batch_lines",
        "machine": machine_info(),
        "load_average": os.getloadavg(),
        "file": model.name,
        "setting": {n: getattr(args, n) for n in ("lines", "slots", "threads", "rounds", "seed")},
        "options": list(args.options),
        "samples": {label: [asdict(s) for s in taken] for label, taken in samples.items()},
    }


def report_table(report: dict[str, Any]) -> str:
    """A markdown table of medians over the rounds."""
    lines, rows = report["setting"]["lines"], []
    for label, taken in report["samples"].items():
        seconds = statistics.median(s["seconds"] for s in taken)
        processor = statistics.median(s["processor_s"] for s in taken)
        last = taken[-1]
        rows.append(
            (
                label,
                f"{lines / seconds:.2f}",
                f"{last['completion_tokens'] / seconds:.0f}",
                f"{1000 * processor / lines:.0f}",
                f"{last['cached_tokens'] / last['prompt_tokens']:.0%}",
            )
        )
    heads = ("engine", "lines/s", "tokens/s", "processor ms/line", "prompt cached")
    return markdown_table(heads, rows, heads[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; prints the table, progress goes to stderr."""
    parser = comparison_parser("batch_lines", __doc__, rounds=3)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=32, help="requests at a time")
    args = parser.parse_args(argv)
    run_comparison(parser, args, "batch_lines", measure, report_table)


if __name__ == "__main__":
    main()
