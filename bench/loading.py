"""Time and memory of loading: a synthetic GGUF checkpoint against reading and copying its file.

    python -m halfbyte.bench.loading --dir FOLDER --shape small     a few seconds, 100 MB
    python -m halfbyte.bench.loading --dir FOLDER --shape 8b        Llama-3-8B in Q4_0, 4.5 GB

Every figure comes from a process of its own. The file is deleted afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .machine import machine_info

_U32, _F32, _STRING, _ARRAY, _I32 = 4, 6, 8, 9, 5
_Q4_0, _FLOAT = 2, 0
_ALIGN, _CHUNK = 32, 16 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama.

    Attributes:
        layers: decoder layers.
        hidden: width.
        inner: width of the MLP.
        heads: query heads of 128 elements.
        kv_heads: key/value heads.
        vocab: tokens.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int


SHAPES = {
    "tiny": Shape(2, 256, 512, 2, 1, 512),
    "small": Shape(8, 1024, 3584, 8, 2, 32000),
    "1b": Shape(16, 2048, 8192, 16, 4, 128256),
    "8b": Shape(32, 4096, 14336, 32, 8, 128256),
}


def tensors(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every tensor in file order; 0 rows is a vector of float32."""
    kv, width = shape.kv_heads * 128, shape.heads * 128
    yield "token_embd.weight", shape.vocab, shape.hidden
    for i in range(shape.layers):
        yield f"blk.{i}.attn_norm.weight", 0, shape.hidden
        yield f"blk.{i}.attn_q.weight", width, shape.hidden
        yield f"blk.{i}.attn_k.weight", kv, shape.hidden
        yield f"blk.{i}.attn_v.weight", kv, shape.hidden
        yield f"blk.{i}.attn_output.weight", shape.hidden, width
        yield f"blk.{i}.ffn_norm.weight", 0, shape.hidden
        yield f"blk.{i}.ffn_gate.weight", shape.inner, shape.hidden
        yield f"blk.{i}.ffn_up.weight", shape.inner, shape.hidden
        yield f"blk.{i}.ffn_down.weight", shape.hidden, shape.inner
    yield "output_norm.weight", 0, shape.hidden
    yield "output.weight", shape.vocab, shape.hidden


def write_model(path: Path, shape: Shape, seed: int) -> None:
    """A Llama in Q4_0 with random codes, the same few megabytes over and over."""
    infos, at = [], 0
    for name, rows, columns in tensors(shape):
        sizes = struct.pack("<IQQ", 2, columns, rows) if rows else struct.pack("<IQ", 1, columns)
        kind = _Q4_0 if rows else _FLOAT
        infos.append(_text(name) + sizes + struct.pack("<IQ", kind, at))
        at += _bytes_of(rows, columns)
    header = _metadata(shape)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(header))
    with path.open("wb") as file:
        file.write(head + b"".join(header) + b"".join(infos))
        file.write(bytes(-file.tell() % _ALIGN))
        blocks = _blocks(seed)
        for _, rows, columns in tensors(shape):
            left = rows * columns // 32 * 18
            if not rows:
                file.write(struct.pack("<f", 1.0) * columns)
            while left > 0:
                left -= file.write(blocks[:left])
            file.write(bytes(-file.tell() % _ALIGN))
        file.flush()
        os.fsync(file.fileno())


def read_and_copy(path: Path) -> dict[str, Any]:
    """Seconds, by the clock and of computing, to read the file once and copy it to fresh memory.

    Cold (where the system drops a file from its cache when asked) and warm; through a map and in
    pieces, as a loader that did nothing else would.
    """
    out: dict[str, Any] = {}
    for kind in ("cold", "warm"):
        with path.open("rb") as file:
            if kind == "cold":
                _forget(file)
            size = path.stat().st_size
            wall, cpu = time.perf_counter(), time.process_time()
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as source:
                target = mmap.mmap(-1, size)
                for at in range(0, size, _CHUNK):
                    target[at : at + _CHUNK] = source[at : at + _CHUNK]
                    if hasattr(source, "madvise"):
                        length = min(_CHUNK, size - at)
                        source.madvise(mmap.MADV_DONTNEED, at, length)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            out[kind] = {"seconds": wall, "cpu": cpu}
            target.close()
    return out


def load(path: Path, cold: bool) -> dict[str, Any]:
    """Seconds and memory (bytes) of packing all weights for ``cpu_native``.

    ``extra`` is the highest anonymous memory while loading, less that of before and the weights
    as packed: host copies and scratch. File pages are not in it.
    """
    from ..engine.backends import make_ops
    from ..engine.capacity import measure
    from ..engine.config import EngineConfig
    from ..engine.models.registry import model_class
    from ..loaders import open_checkpoint

    checkpoint = open_checkpoint(path)
    ops = make_ops(EngineConfig(backend="cpu_native"))
    packed = measure(checkpoint, "float32", "cpu").weights
    if cold:
        with path.open("rb") as file:
            _forget(file)
    peak, before = Peak(), anonymous()
    with peak:
        wall, cpu = time.perf_counter(), time.process_time()
        network = model_class(checkpoint.config.architecture)(checkpoint.config, checkpoint, ops)
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
        "backend": f"{ops.name}, {getattr(ops, 'detail', '')}",
    }


class Peak:
    """The most anonymous memory of this process during a block, sampled each 5 ms.

    Attributes:
        value: bytes.
    """

    def __init__(self) -> None:
        self.value = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.value = max(self.value, anonymous())


def anonymous() -> int:
    """Bytes of this process that belong to no file (Linux); 0 elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def run(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Write a model, measure reading and loading in fresh processes, delete it."""
    path = folder / f"halfbyte-loading-{name}-{os.getpid()}.gguf"
    try:
        write_model(path, SHAPES[name], seed)
        copying = _child("copy", path)
        found: dict[str, Any] = {"shape": name, "seed": seed, "machine": machine_info()}
        found |= {"file": path.stat().st_size, "copy": copying}
        for kind in ("cold", "warm"):
            row = _child(f"load-{kind}", path)
            base = copying[kind]
            ratios = {f"{key}_ratio": row[key] / base[key] for key in ("seconds", "cpu")}
            found[kind] = {**row, **ratios}
    finally:
        path.unlink(missing_ok=True)
    return found


def render(found: dict[str, Any]) -> str:
    """The figures in a few lines."""
    lines = [f"{found['shape']}: file {found['file'] / 1e9:.2f} GB"]
    for kind in ("cold", "warm"):
        row = found[kind]
        base = found["copy"][kind]
        lines.append(
            f"{kind}: read and copy {base['seconds']:.2f} s, load {row['seconds']:.2f} s "
            f"({row['seconds_ratio']:.2f}x); computing {base['cpu']:.2f} s, {row['cpu']:.2f} s "
            f"({row['cpu_ratio']:.2f}x)"
        )
        lines.append(
            f"      packed {row['packed'] / 1e9:.2f} GB, held {row['held'] / 1e9:.2f} GB, "
            f"extra at the peak {row['extra'] / 1e9:.2f} GB"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line; prints the figures, with ``--json`` all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder with room for the file")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part == "copy":
        print(json.dumps(read_and_copy(args.dir)))
    elif args.part:
        print(json.dumps(load(args.dir, cold=args.part == "load-cold")))
    else:
        found = run(args.dir, args.shape, args.seed)
        print(json.dumps(found, indent=1) if args.json else render(found))


def _child(part: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "halfbyte.bench.loading", "--dir", str(path), "--part", part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _forget(file: IO[bytes]) -> None:
    """Ask the system to drop the file from its cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _blocks(seed: int) -> bytes:
    """About 4 MB of Q4_0 blocks: a small scale in fp16, and 32 random codes."""
    rng = random.Random(seed)
    count = 4 << 20
    raw = bytearray(rng.randbytes(count // 18 * 18))
    raw[0::18] = bytes(len(raw) // 18)
    raw[1::18] = bytes([0x1C]) * (len(raw) // 18)
    return bytes(raw)


def _bytes_of(rows: int, columns: int) -> int:
    size = rows * columns // 32 * 18 if rows else 4 * columns
    return -(-size // _ALIGN) * _ALIGN


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _metadata(shape: Shape) -> list[bytes]:
    """Key/value pairs, the vocabulary made up."""
    numbers = {
        "llama.block_count": shape.layers,
        "llama.context_length": 8192,
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.inner,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": 128,
        "llama.attention.value_length": 128,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    count = shape.vocab
    words = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(count - 3))]
    lists: dict[str, tuple[int, bytes]] = {
        "tokens": (_STRING, b"".join(map(_text, words))),
        "scores": (_F32, struct.pack(f"<{count}f", *(-float(i) for i in range(count)))),
        "token_type": (_I32, struct.pack(f"<{count}i", 2, 3, 3, *[1] * (count - 3))),
    }
    pairs = [_text("general.architecture") + struct.pack("<I", _STRING) + _text("llama")]
    pairs.append(_text("tokenizer.ggml.model") + struct.pack("<I", _STRING) + _text("llama"))
    key = _text("llama.attention.layer_norm_rms_epsilon")
    pairs.append(key + struct.pack("<If", _F32, 1e-5))
    pairs += [_text(key) + struct.pack("<II", _U32, value) for key, value in numbers.items()]
    for key, (kind, data) in lists.items():
        head = struct.pack("<IIQ", _ARRAY, kind, count)
        pairs.append(_text(f"tokenizer.ggml.{key}") + head + data)
    return pairs


if __name__ == "__main__":
    main()
