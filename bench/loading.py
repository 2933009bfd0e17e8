"""Time and memory of loading: a synthetic checkpoint against reading and copying its file.

    python -m halfbyte.bench.loading --dir FOLDER --shape small     a few seconds, 100 MB
    python -m halfbyte.bench.loading --dir FOLDER --shape 8b        Llama-3-8B in Q4_0, 4.5 GB
    python -m halfbyte.bench.loading --dir FOLDER --shape 1b --format GPTQ

Every figure is the median of some rounds; in each round reading and loading take turns, every
one in a separate process. The files are deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .machine import machine_info
from .process_memory import Peak, anonymous, forget
from .synthetic.shapes import SHAPES
from .synthetic.write import FORMATS, write_model

_CHUNK = 16 << 20
# Kind of loading -> kind of copying that it is compared with.
LOADS = {"cold": "cold", "warm": "warm", "ready": "warm"}


def read_and_copy(path: Path) -> dict[str, Any]:
    """Seconds, by the clock and of computing, to read the file once and copy it to fresh memory.

    Cold (where the system drops a file from its cache when asked) and warm; through a map and in
    pieces, as a loader that did nothing else would. ``huge`` is warm, and into huge pages, which
    packed weights are in: on a virtual machine a fresh one may cost far more than its zeroing.
    """
    out: dict[str, Any] = {}
    for kind in ("cold", "warm", "huge"):
        with path.open("rb") as file:
            if kind == "cold":
                forget(file)
            size = path.stat().st_size
            wall, cpu = time.perf_counter(), time.process_time()
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as source:
                target = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                if kind == "huge" and hasattr(mmap, "MADV_HUGEPAGE"):
                    target.madvise(mmap.MADV_HUGEPAGE)
                with memoryview(source) as read, memoryview(target) as written:
                    for at in range(0, size, _CHUNK):
                        written[at : at + _CHUNK] = read[at : at + _CHUNK]
                        if hasattr(source, "madvise"):
                            length = min(_CHUNK, size - at)
                            source.madvise(mmap.MADV_DONTNEED, at, length)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            out[kind] = {"seconds": wall, "cpu": cpu}
            target.close()
    return out


def load(path: Path, kind: str) -> dict[str, Any]:
    """Seconds and memory (bytes) of packing all weights for the CPU.

    ``kind`` is ``cold`` or ``warm`` as for reading, or ``ready``: warm, and right after huge
    pages for all weights were touched and freed, so that a host has them at hand.

    ``extra`` is the highest anonymous memory while loading, less that of before and the weights
    as packed: host copies and scratch. File pages are not in it.
    """
    from ..engine.advise.capacity import measure
    from ..engine.backends import make_backend
    from ..engine.config import EngineConfig
    from ..engine.models.decoder import Decoder
    from ..kernels.cpu.arena import map_memory
    from ..loaders import open_checkpoint

    checkpoint = open_checkpoint(path)
    backend = make_backend(EngineConfig(device="cpu"))
    packed = measure(checkpoint, "float16", "cpu").weights
    if kind == "ready":
        map_memory(packed).fill_(1)
    if kind == "cold":
        for part in [path] if path.is_file() else path.glob("*.safetensors"):
            with part.open("rb") as file:
                forget(file)
    peak, before = Peak(), anonymous()
    with peak:
        wall, cpu = time.perf_counter(), time.process_time()
        network = Decoder(checkpoint.config, checkpoint, backend)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        held = anonymous() - before
    checkpoint.close()
    extra = peak.value - before - packed
    return {
        "seconds": wall,
        "cpu": cpu,
        "packed": packed,
        "read_by_step": network.weight_bytes,
        "held": held,
        "extra": extra,
        "backend": f"{backend.name}, {backend.detail}",
    }


def run(folder: Path, name: str, form: str, seed: int, rounds: int) -> dict[str, Any]:
    """Write a model, measure reading and loading in fresh processes by turns, delete it."""
    found: dict[str, Any] = {"shape": name, "format": form, "seed": seed, "rounds": rounds}
    found |= {"machine": machine_info()}
    copies: list[dict[str, Any]] = []
    loads: dict[str, list[dict[str, Any]]] = {kind: [] for kind in LOADS}
    with tempfile.TemporaryDirectory(prefix="halfbyte-loading-", dir=folder) as scratch:
        path, files = write_model(Path(scratch), SHAPES[name], form, seed)
        found["file"] = files[0].stat().st_size
        for _ in range(rounds):
            copies.append(_child("copy", files[0]))
            for kind, rows in loads.items():
                rows.append(_child(f"load-{kind}", path))
    found["copy"] = {kind: _medians([c[kind] for c in copies]) for kind in copies[0]}
    found["samples"] = {"copy": copies, "load": loads}
    for kind, rows in loads.items():
        row, base = _medians(rows), found["copy"][LOADS[kind]]
        ratios = {f"{key}_ratio": row[key] / base[key] for key in ("seconds", "cpu")}
        found[kind] = {**row, **ratios}
    huge, warm = found["copy"]["huge"], found["warm"]
    found["huge_ratios"] = {key: warm[key] / huge[key] for key in ("seconds", "cpu")}
    found["load_average"] = os.getloadavg()
    return found


def render(found: dict[str, Any]) -> str:
    """The figures in a few lines."""
    busy = ", ".join(f"{value:.1f}" for value in found["load_average"])
    lines = [
        f"{found['shape']} {found['format']}: file {found['file'] / 1e9:.2f} GB, medians of "
        f"{found['rounds']}, load average {busy}"
    ]
    for kind, against in LOADS.items():
        row, base = found[kind], found["copy"][against]
        lines.append(
            f"{kind}: read and copy {base['seconds']:.2f} s, load {row['seconds']:.2f} s "
            f"({row['seconds_ratio']:.2f}x); computing {base['cpu']:.2f} s, {row['cpu']:.2f} s "
            f"({row['cpu_ratio']:.2f}x)"
        )
        lines.append(
            f"      packed {row['packed'] / 1e9:.2f} GB, held {row['held'] / 1e9:.2f} GB, "
            f"extra at the peak {row['extra'] / 1e9:.2f} GB"
        )
    base, ratio = found["copy"]["huge"], found["huge_ratios"]
    lines.append(
        f"copied into huge pages, warm: {base['seconds']:.2f} s ({ratio['seconds']:.2f}x); "
        f"computing {base['cpu']:.2f} s ({ratio['cpu']:.2f}x)"
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line; prints the figures, with ``--json`` all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder with room for the file")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--format", choices=FORMATS, default="Q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part == "copy":
        print(json.dumps(read_and_copy(args.dir)))
    elif args.part:
        print(json.dumps(load(args.dir, args.part.removeprefix("load-"))))
    else:
        found = run(args.dir, args.shape, args.format, args.seed, args.rounds)
        print(json.dumps(found, indent=1) if args.json else render(found))


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number; other entries are those of the last row."""
    medians = {
        key: statistics.median(row[key] for row in rows)
        for key, value in rows[-1].items()
        if isinstance(value, int | float)
    }
    return {**rows[-1], **medians}


def _child(part: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "halfbyte.bench.loading", "--dir", str(path), "--part", part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
