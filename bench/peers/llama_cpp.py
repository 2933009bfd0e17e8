"""Halfbyte and llama.cpp side by side on the CPU: ``python -m halfbyte.bench.peers.llama_cpp``.

Both get the same GGUF file and the same number of threads. The two take turns, sample by sample,
in one run, so that a slow minute of the machine hits both; medians are compared. The peer runs in
a separate process and waits on a pipe while it is not measured.

The peer's ``tg`` evaluates given tokens and samples nothing, as llama-bench does; ours is the
engine's whole step: schedule, forward, sample, commit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import statistics
import sys
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ...engine.engine import Engine
from ...loaders.store.model_store import resolve_model
from ..engine import EngineCase, TokenSource, model_facts, sample, warm_up
from ..machine import machine_info, read_bandwidth

_SCHEMA = 1
PREFILL, _DECODE = EngineCase("pp", 512, 1, 0), EngineCase("tg", 64, 1, 0)
BATCH = EngineCase("tg", 64, 8, 0)


def peer_process(pipe: Connection, model: str, threads: int, plain: bool) -> None:
    """Serve (kind, tokens) orders with tokens per second until None arrives.

    ``plain`` switches off the peer's repacking of weights for special instructions, which
    crashes on some machines with AMX (llama.cpp's own default is on).
    """
    import time

    peer_module: Any = importlib.import_module("llama_cpp")
    inner = peer_module.llama_cpp
    defaults = inner.llama_model_default_params

    def parameters() -> Any:
        values = defaults()
        values.use_extra_bufts = not plain
        return values

    inner.llama_model_default_params = parameters
    peer = peer_module.Llama(
        model, n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    tokens = [(i * 7919) % (peer.n_vocab() - 200) + 100 for i in range(1024)]

    def run(kind: str, count: int) -> float:
        peer.reset()
        if kind == "pp":
            start = time.perf_counter()
            peer.eval(tokens[:count])
        else:
            peer.eval(tokens[:1])
            start = time.perf_counter()
            for token in tokens[:count]:
                peer.eval([token])
        return count / (time.perf_counter() - start)

    run("pp", 512)
    run("tg", 8)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        pipe.send(run(*order))


class Peer:
    """llama-cpp-python in a separate process.

    Raises:
        ConfigError: it is not installed, or it fails even without its special instructions.
    """

    def __init__(self, model: Path, threads: int) -> None:
        try:
            self.version = metadata.version("llama-cpp-python")
        except metadata.PackageNotFoundError:
            raise ConfigError(
                "llama-cpp-python is not installed", hint="run `make peers`"
            ) from None
        for plain in (False, True):
            self.plain = plain
            self._pipe, other = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(
                target=peer_process, args=(other, str(model), threads, plain), daemon=True
            )
            self._process.start()
            other.close()
            try:
                self._pipe.recv()
                return
            except EOFError:
                self._process.join()
                print(f"peer stopped with code {self._process.exitcode}", file=sys.stderr)
        raise ConfigError("llama-cpp-python cannot run this model here")

    def sample(self, case: EngineCase) -> float:
        """Tokens per second of one run."""
        self._pipe.send((case.kind, case.tokens))
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


@dataclass(slots=True)
class Series:
    """``samples`` of one test (``case``) of one contestant (``who``), in tokens per second."""

    who: str
    case: EngineCase
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "engine": self.who,
            "test": self.case.name,
            "batch": self.case.batch,
            "tok_s_median": self.median,
            "samples": self.samples,
        }


def compare(model: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Run all contestants in turns -> the report as plain JSON types."""
    options: dict[str, Any] = {"threads": threads, "max_batch": BATCH.batch, "prefix_cache": False}
    engines = {
        "halfbyte": Engine(model, max_context=1024, **options),
        "halfbyte exact": Engine(model, max_context=1024, exact=True, **options),
    }
    peer = Peer(model, threads)
    bandwidth = read_bandwidth(threads)
    ids = TokenSource(engines["halfbyte"], seed=0)
    series = [Series("llama.cpp", case) for case in (PREFILL, _DECODE)]
    series += [Series(who, case) for who in engines for case in (PREFILL, _DECODE, BATCH)]
    for one in series:
        if one.who in engines:
            warm_up(engines[one.who], one.case, ids)
    for turn in range(rounds):
        for one in series:
            engine = engines.get(one.who)
            speed = peer.sample(one.case) if engine is None else sample(engine, one.case, ids)
            one.samples.append(speed)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    peer.close()
    facts = model_facts(engines["halfbyte"], model)
    return {
        "schema": _SCHEMA,
        "kind": "peer",
        "machine": machine_info(),
        "peer": {
            "name": "llama-cpp-python",
            "version": peer.version,
            "special_instructions": "off: crashed with them" if peer.plain else "on",
        },
        "model": facts.file,
        "threads": threads,
        "bandwidth_gb_s": max(bandwidth, read_bandwidth(threads)) / 1e9,
        "weight_bytes_per_step": engines["halfbyte"].weight_bytes,
        "rows": [one.to_dict() for one in series],
        "ratios": ratios({(s.who, s.case.title): s.median for s in series}),
    }


def ratios(median: dict[tuple[str, str], float]) -> dict[str, float]:
    """What the project promises, from the medians by (engine, test)."""
    ours, peer, exact = "halfbyte", "llama.cpp", "halfbyte exact"
    pp, tg, b8 = PREFILL.title, _DECODE.title, BATCH.title
    return {
        "decode_vs_peer": median[ours, tg] / median[peer, tg],
        "prefill_vs_peer": median[ours, pp] / median[peer, pp],
        "batch8_vs_batch1": median[ours, b8] / median[ours, tg],
        "exact_decode_share": median[exact, tg] / median[ours, tg],
        "exact_prefill_share": median[exact, pp] / median[ours, pp],
        "exact_batch8_share": median[exact, b8] / median[ours, b8],
    }


def table(report: dict[str, Any]) -> str:
    """The report as a markdown table."""
    lines = [
        "| engine | test | batch | t/s, median | lowest | highest |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        low, high = min(row["samples"]), max(row["samples"])
        lines.append(
            f"| {row['engine']} | {row['test']} | {row['batch']} | {row['tok_s_median']:.0f} "
            f"| {low:.0f} | {high:.0f} |"
        )
    lines.append("")
    lines += [f"- {name}: {value:.2f}" for name, value in report["ratios"].items()]
    return "\n".join(lines)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description="Halfbyte and llama.cpp side by side")
    parser.add_argument("--model", default="smollm2", help="name or path of a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for llama_cpp.json")
    args = parser.parse_args()
    report = compare(resolve_model(args.model), args.threads, args.rounds)
    print(table(report))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1) + "\n"
        (args.out / "llama_cpp.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
