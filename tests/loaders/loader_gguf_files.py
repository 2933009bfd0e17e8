"""Byte-level construction of GGUF files, sound and crafted, and the check for refusals."""

from __future__ import annotations

import re
import resource
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from computing_time import assert_computed

from halfbyte.errors import HalfbyteError

# The loaders import torch when first used, which takes a second that is not theirs.
for _module in ("gguf.checkpoint", "hf.folder"):
    import_module(f"halfbyte.loaders.{_module}")

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"}
_CODES |= {U64: "Q", I64: "q", F64: "d"}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def value_bytes(kind: int, value) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + _CODES[kind], value)


def kv(key: str | bytes, kind: int, value) -> bytes:
    return string(key) + u32(kind) + value_bytes(kind, value)


def kv_array(key: str, kind: int, items: Sequence) -> bytes:
    body = b"".join(value_bytes(kind, item) for item in items)
    return string(key) + u32(ARRAY) + u32(kind) + u64(len(items)) + body


def tensor_info(name: str | bytes, ne: Sequence[int], kind: int, offset: int) -> bytes:
    return string(name) + u32(len(ne)) + b"".join(map(u64, ne)) + u32(kind) + u64(offset)


def container(
    kvs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = magic + u32(version)
    head += u64(len(infos) if n_tensors is None else n_tensors)
    head += u64(len(kvs) if n_kv is None else n_kv)
    head += b"".join(kvs) + b"".join(infos)
    if infos and data:
        head += b"\0" * (-len(head) % alignment)
    return head + data


# Tensors of a one-layer llama: hidden 32, 2 heads of 16, 1 key/value head, inner 32, vocab 8.
F32_TYPE, Q4_0_TYPE, Q8_0_TYPE, I8_TYPE, I32_TYPE = 0, 2, 8, 24, 26
_BYTES = {F32_TYPE: (1, 4), I32_TYPE: (1, 4), Q4_0_TYPE: (32, 18), Q8_0_TYPE: (32, 34)}
_BYTES[I8_TYPE] = 1, 1
TINY_TENSORS: dict[str, tuple[tuple[int, ...], int]] = {
    "token_embd.weight": ((32, 8), Q8_0_TYPE),
    "blk.0.attn_norm.weight": ((32,), F32_TYPE),
    "blk.0.attn_q.weight": ((32, 32), Q4_0_TYPE),
    "blk.0.attn_k.weight": ((32, 16), Q4_0_TYPE),
    "blk.0.attn_v.weight": ((32, 16), Q4_0_TYPE),
    "blk.0.attn_output.weight": ((32, 32), Q4_0_TYPE),
    "blk.0.ffn_norm.weight": ((32,), F32_TYPE),
    "blk.0.ffn_gate.weight": ((32, 32), Q4_0_TYPE),
    "blk.0.ffn_up.weight": ((32, 32), Q4_0_TYPE),
    "blk.0.ffn_down.weight": ((32, 32), Q4_0_TYPE),
    "output_norm.weight": ((32,), F32_TYPE),
}


def tiny_kvs() -> dict[str, bytes]:
    """Metadata of the tiny llama, by key, so that a test can replace or drop entries."""
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "<|eot_id|>"]
    entries = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "tiny"),
        ("llama.block_count", U32, 1),
        ("llama.context_length", U32, 64),
        ("llama.embedding_length", U32, 32),
        ("llama.feed_forward_length", U32, 32),
        ("llama.attention.head_count", U32, 2),
        ("llama.attention.head_count_kv", U32, 1),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
    ]
    kvs = {key: kv(key, kind, value) for key, kind, value in entries}
    arrays = [
        ("tokenizer.ggml.tokens", STRING, tokens),
        ("tokenizer.ggml.scores", F32, [float(-i) for i in range(8)]),
        ("tokenizer.ggml.token_type", I32, [2, 3, 3, 1, 1, 1, 1, 3]),
    ]
    return kvs | {key: kv_array(key, kind, items) for key, kind, items in arrays}


def tiny_gguf(
    change: Mapping[str, bytes | None] | None = None,
    tensors: dict[str, tuple[tuple[int, ...], int]] | None = None,
    data: Callable[[str, int], bytes] = lambda name, nbytes: bytes(nbytes),
) -> bytes:
    """A sound tiny llama; ``change`` replaces, adds or (None) drops metadata entries."""
    kvs = tiny_kvs()
    for key, entry in (change or {}).items():
        kvs.pop(key, None)
        if entry is not None:
            kvs[key] = entry
    infos, body = [], b""
    for name, (ne, kind) in (tensors or TINY_TENSORS).items():
        elements, nbytes = _BYTES[kind]
        size = nbytes
        for count in ne:
            size *= count
        size //= elements
        infos.append(tensor_info(name, ne, kind, len(body)))
        body += data(name, size)
        body += b"\0" * (-len(body) % 32)
    return container(list(kvs.values()), infos, body)


def refuses(action: Callable[[], object], kind: type[HalfbyteError], *parts: str) -> str:
    """Assert that ``action`` raises ``kind`` with every part in its message, fast and small.

    One second and 100 MB are the bounds promised for any crafted file. The time is the
    process's own, so that a busy machine fails nothing; Python's allocations are traced, and
    torch's show in the growth of the peak resident size.
    """
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(kind) as caught:
        action()
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024
    tracemalloc.start()
    try:
        with pytest.raises(kind):  # again, because tracing costs time and memory
            action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(caught.value) is kind
    message = str(caught.value)
    for part in parts:
        assert re.search(part, message), f"{part!r} is not in {message!r}"
    assert_computed(seconds, 1)
    assert peak < 100e6, f"allocated {peak / 1e6:.0f} MB"
    assert grown < 100e6, f"resident size grew by {grown / 1e6:.0f} MB"
    return message


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
