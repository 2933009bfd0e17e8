"""Mutated and made-up GGUF files: whatever is wrong with them, only our own errors come out.

Every case must end within a second and within 100 MB.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import torch
from computing_time import assert_computed
from fuzz_support import two_lengths
from hypothesis import strategies as st
from loader_gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    STRING,
    TINY_TENSORS,
    U16,
    U32,
    container,
    kv,
    string,
    tensor_info,
    tiny_gguf,
    tiny_kvs,
    u32,
    u64,
    value_bytes,
    write,
)

from halfbyte.errors import CheckpointError, HalfbyteError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.gguf.blocks import convert_tensor
from halfbyte.loaders.gguf.types import BLOCK_TYPES, QUANTIZED_TYPES

SOUND = tiny_gguf()
DATA_START = SOUND.index(b"output_norm.weight") + 64  # most edits should hit the headers
NAMES = list(TINY_TENSORS)


def part(number: int, names: list[str]) -> bytes:
    """One of the two parts of a split tiny llama."""
    own = {
        "split.no": kv("split.no", U16, number),
        "split.count": kv("split.count", U16, 2),
        "split.tensors.count": kv("split.tensors.count", U32, len(NAMES)),
    }
    dropped: dict[str, bytes | None] = dict.fromkeys(tiny_kvs()) if number else {}
    return tiny_gguf(dropped | own, {name: TINY_TENSORS[name] for name in names})


PARTS = part(0, NAMES[:5]), part(1, NAMES[5:])


def use_everything(path: Path) -> None:
    """Open, build the tokenizer source, convert every tensor: as an engine would."""
    # The collector may run in the middle, over what thousands of cases left; but not twice.
    if (first := seconds_of(path)) >= 1:
        assert_computed(min(first, seconds_of(path)), 1)


def seconds_of(path: Path) -> float:
    """Processor time of one use."""
    start, resident = time.process_time(), peak_kb()
    try:
        checkpoint = open_checkpoint(path)
        try:
            checkpoint.tokenizer()
            for info in checkpoint.tensors():
                checkpoint.load(info.name)
        finally:
            checkpoint.close()
    except HalfbyteError as error:
        assert str(error)
    assert peak_kb() - resident < 100_000
    return time.process_time() - start


def peak_kb() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_folder(files: dict[str, bytes]) -> None:
    """Write the files and use the first of them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            write(Path(folder) / name, data)
        use_everything(Path(folder) / next(iter(files)))


def edits_of(size: int, headers: int) -> st.SearchStrategy:
    at = st.one_of(st.integers(0, headers), st.integers(0, size - 1))
    new = st.one_of(
        st.binary(min_size=1, max_size=9),
        st.sampled_from([b"\0", b"\xff", b"\xff" * 8, b"\0" * 8, b"\0\0\0\0\0\0\0\x80"]),
    )
    return st.tuples(
        st.lists(st.tuples(at, new), min_size=1, max_size=4),
        st.one_of(st.none(), st.integers(0, size)),
        st.one_of(st.none(), st.tuples(st.integers(0, size), st.binary(max_size=40))),
    )


def mutate(sound: bytes, edits: tuple) -> bytes:
    changes, cut, insert = edits
    data = bytearray(sound)
    for at, new in changes:
        data[at : at + len(new)] = new
    if insert is not None:
        data[insert[0] : insert[0]] = insert[1]
    return bytes(data[:cut])


def _mutated(edits) -> None:
    in_folder({"m.gguf": mutate(SOUND, edits)})


test_mutated_files_raise_only_our_errors, test_mutated_files_at_length = two_lengths(
    _mutated, 300, edits_of(len(SOUND), DATA_START)
)


def _mutated_parts(which, edits) -> None:
    names = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
    files: dict[str, bytes] = dict(zip(names, PARTS, strict=True))
    files[names[which]] = mutate(PARTS[which], edits)
    in_folder(files)


test_mutated_parts_raise_only_our_errors, test_mutated_parts_at_length = two_lengths(
    _mutated_parts, 100, st.integers(0, 1), edits_of(len(PARTS[1]), len(PARTS[1]))
)


# Metadata that parses, with types, values and lengths that no writer would choose.
_KEYS = st.one_of(
    st.sampled_from(
        [
            *tiny_kvs(),
            *("general.alignment", "split.count", "split.no", "llama.vocab_size"),
            *("llama.attention.sliding_window", "llama.attention.sliding_window_pattern"),
            *("llama.rope.dimension_count", "llama.rope.freq_base", "llama.rope.scaling.type"),
            *("llama.rope.scaling.factor", "llama.rope.scaling.original_context_length"),
            *("llama.attention.key_length", "llama.attention.value_length"),
            *("tokenizer.ggml.merges", "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token"),
            *("tokenizer.ggml.eot_token_id", "tokenizer.chat_template"),
        ]
    ),
    st.text(max_size=12),
)
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3", "smollm3", "bert")
_BITS = {0: 8, 1: 7, 2: 16, 3: 15, 4: 32, 5: 31, 10: 64, 11: 63}


def _values(kind: int) -> st.SearchStrategy:
    if kind == STRING:
        return st.one_of(st.text(max_size=20), st.sampled_from(_ARCHITECTURES))
    if kind == BOOL:
        return st.booleans()
    if kind in (F32, F64):
        return st.floats(width=32 if kind == F32 else 64)
    low = 0 if kind in (0, 2, 4, 10) else -(1 << _BITS[kind])
    top = (1 << _BITS[kind]) - 1
    return st.one_of(st.integers(low, top), st.integers(0, 64), st.sampled_from([low, top]))


_KINDS = st.sampled_from([*_BITS, STRING, BOOL, F32, F64])
_SCALAR = _KINDS.flatmap(lambda k: _values(k).map(lambda v: u32(k) + value_bytes(k, v)))


def _array_bytes(kind: int, items: list, lie: int) -> bytes:
    body = b"".join(value_bytes(kind, item) for item in items)
    return u32(ARRAY) + u32(kind) + u64(max(0, len(items) + lie)) + body


_LIES = st.one_of(st.just(0), st.just(0), st.sampled_from([-1, 1, 10**12, 1 << 62]))
_ARRAYS = _KINDS.flatmap(
    lambda k: st.tuples(st.lists(_values(k), max_size=9), _LIES).map(
        lambda pair: _array_bytes(k, *pair)
    )
)
_ENTRIES = st.lists(
    st.tuples(_KEYS, st.one_of(st.none(), _SCALAR, _ARRAYS)), min_size=1, max_size=4
)
_SIZE = st.one_of(st.integers(0, 300), st.sampled_from([32, 256, 1 << 32, 1 << 62, (1 << 64) - 1]))
_INFO = st.tuples(
    st.one_of(st.sampled_from(NAMES), st.text(max_size=70)),
    st.lists(_SIZE, max_size=5),
    st.one_of(st.sampled_from(list(BLOCK_TYPES)), st.integers(0, 60)),
    st.one_of(st.integers(0, 200).map(lambda i: 32 * i), st.integers(0, (1 << 64) - 1)),
)


def _made_up(entries, infos, replace) -> None:
    kvs = tiny_kvs()
    for key, entry in entries:
        kvs.pop(key, None)
        if entry is not None:
            kvs[key] = string(key) + entry
    if not infos:
        sound: dict[str, bytes | None] = {key: kvs.get(key) for key in {**tiny_kvs(), **kvs}}
        in_folder({"m.gguf": tiny_gguf(sound)})
        return
    made = [tensor_info(*info) for info in infos]
    if not replace:
        made += [tensor_info(n, ne, kind, 0) for n, (ne, kind) in TINY_TENSORS.items()]
    in_folder({"m.gguf": container(list(kvs.values()), made, bytes(8192))})


test_made_up_files_raise_only_our_errors, test_made_up_files_at_length = two_lengths(
    _made_up, 300, _ENTRIES, st.lists(_INFO, max_size=3), st.booleans()
)


def _noise(noise) -> None:
    in_folder({"m.gguf": b"GGUF\x03\0\0\0" + noise})


test_noise_behind_the_magic, test_noise_at_length = two_lengths(
    _noise, 100, st.binary(max_size=200)
)


def _any_block(name, rows, seed) -> None:
    """Whatever the bytes of a block, its weights are finite or the tensor is refused."""
    kind = {t.name: t for t in BLOCK_TYPES.values()}[name]
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows * kind.nbytes,), generator=generator, dtype=torch.uint8)
    try:
        weight = convert_tensor("w", kind, (rows, kind.elements), raw)
    except CheckpointError as error:
        assert f"tensor w ({name})" in str(error)
        assert "not finite" in str(error) or "which has no sign" in str(error)
        return
    assert isinstance(weight, QuantizedLinear)
    assert bool(torch.isfinite(weight.dequantize()).all())


test_any_block_is_finite_or_refused, test_any_block_at_length = two_lengths(
    _any_block, 200, st.sampled_from(QUANTIZED_TYPES), st.integers(1, 3), st.integers(0, 1 << 32)
)


def test_every_single_byte_of_the_headers(tmp_path):
    """Each header byte once with all bits flipped: counts, lengths, types, offsets, text."""
    path = tmp_path / "m.gguf"
    for at in range(DATA_START):
        data = bytearray(SOUND)
        data[at] ^= 0xFF
        use_everything(write(path, bytes(data)))
