"""Hostile GGUF containers: each known attack is refused by name, fast and without allocating."""

from __future__ import annotations

import os
import struct

import pytest
from computing_time import computes_within
from loader_gguf_files import (
    ARRAY,
    F32,
    STRING,
    U32,
    U64,
    container,
    kv,
    kv_array,
    refuses,
    string,
    tensor_info,
    tiny_gguf,
    tiny_kvs,
    u32,
    u64,
    write,
)

from halfbyte.errors import CheckpointError
from halfbyte.loaders.gguf import reader as gguf_reader
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.gguf.reader import GGUFFile

HUGE = (1 << 64) - 1
ONE = [tensor_info("a", [32], 0, 0)]
DATA = bytes(128)

CRAFTED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "not gguf": (b"PK\x03\x04" + bytes(60), (r"starts with b'PK\\x03\\x04'", "expected b'GGUF'")),
    "three bytes": (b"GGU", (r"starts with b'GGU'",)),
    "version 1": (container(version=1), ("version 1 is not supported", "expected 2 or 3")),
    "version 4": (container(version=4), ("version is 4; expected 2 or 3",)),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), ("big-endian", "little-endian")),
    "tensor count 2^64": (container(n_tensors=HUGE), (f"tensor count is {HUGE}", "at most 65536")),
    "tensor count 65536 in 24 bytes": (
        container(n_tensors=1 << 16),
        ("tensor count 65536 needs 1572864 bytes", "ends after 8 more"),
    ),
    "kv count 2^63": (container(n_kv=1 << 63), ("metadata key count is 9223372036854775808",)),
    "kv count 16384 in 24 bytes": (container(n_kv=1 << 14), ("metadata key count 16384 needs",)),
    "key length 2^64": (
        container([u64(HUGE) + bytes(32)]),
        (f"metadata key 0 is {HUGE} bytes long; expected at most 65536",),
    ),
    "key too long": (
        container([u64(1 << 40) + bytes(32)]),
        ("metadata key 0 is 1099511627776 bytes long; expected at most 65536",),
    ),
    "key beyond the file": (container([u64(60000) + bytes(8)]), ("metadata key 0 needs 60000",)),
    "empty key": (container([kv("", U32, 1)]), ("metadata key 0 is ''",)),
    "key with NUL": (container([kv("a\0b", U32, 1)]), (r"metadata key 0 is 'a\\x00b'",)),
    "key not UTF-8": (container([kv(b"\xff\xfe", U32, 1)]), ("not valid UTF-8 at its byte 0",)),
    "duplicate key": (container([kv("k", U32, 1)] * 2), ("metadata key 'k' appears twice",)),
    "value type 13": (
        container([string("k") + u32(13) + bytes(8)]),
        ("metadata key 'k' has value type 13; expected 0 to 12",),
    ),
    "bool of 2": (container([string("k") + u32(7) + b"\x02"]), ("bool with the byte 2",)),
    "string length 2^63": (
        container([string("k") + u32(STRING) + u64(1 << 63)]),
        ("metadata key 'k' is 9223372036854775808 bytes long",),
    ),
    "string beyond the file": (
        container([string("k") + u32(STRING) + u64(1000)]),
        ("metadata key 'k' needs 1000 bytes", "ends after 0 more"),
    ),
    "string not UTF-8": (
        container([string("k") + u32(STRING) + string(b"ab\xc3")]),
        ("metadata key 'k' is not valid UTF-8 at its byte 2",),
    ),
    "array of arrays": (
        container([string("k") + u32(ARRAY) + u32(ARRAY) + u64(1) + u32(ARRAY) + u64(1)]),
        ("metadata key 'k' is an array of arrays; nested arrays are not supported",),
    ),
    "arrays nested 100000 deep": (
        container([string("k") + u32(ARRAY) + (u32(ARRAY) + u64(1)) * 100_000]),
        ("metadata key 'k' is an array of arrays; nested arrays are not supported",),
    ),
    "10^12 tokens": (
        container([string("tokenizer.ggml.tokens") + u32(ARRAY) + u32(STRING) + u64(10**12)]),
        ("item count of metadata key 'tokenizer.ggml.tokens' is 1000000000000; expected at most",),
    ),
    "array of type 99": (
        container([string("k") + u32(ARRAY) + u32(99) + u64(0)]),
        ("array of value type 99",),
    ),
    "array count 2^64": (
        container([string("k") + u32(ARRAY) + u32(F32) + u64(HUGE)]),
        ("item count of metadata key 'k' is 18446744073709551615; expected at most 16777216",),
    ),
    "array beyond the file": (
        container([string("k") + u32(ARRAY) + u32(F32) + u64(1 << 24)]),
        ("item count of metadata key 'k' 16777216 needs 67108864 bytes",),
    ),
    "string array beyond the file": (
        container([string("k") + u32(ARRAY) + u32(STRING) + u64(2) + string("a") + u64(99)]),
        ("item 1 of 2 runs past the end of the file",),
    ),
    "string array not UTF-8": (
        container([kv_array("k", STRING, ["ok"])[:-10] + string(b"\xff\xff")]),
        ("metadata key 'k': item 0 is not valid UTF-8",),
    ),
    "0 dimensions": (
        container(infos=[tensor_info("a", [], 0, 0)], data=DATA),
        ("tensor a has 0 dimensions; expected 1 to 4",),
    ),
    "5 dimensions": (
        container(infos=[tensor_info("a", [1] * 5, 0, 0)], data=DATA),
        ("tensor a has 5 dimensions; expected 1 to 4",),
    ),
    "2^32 - 1 dimensions": (
        container(infos=[string("a") + u32((1 << 32) - 1) + bytes(16)]),
        ("tensor a has 4294967295 dimensions",),
    ),
    "sizes that overflow": (
        container(infos=[tensor_info("a", [1 << 62, 1 << 62], 0, 0)], data=DATA),
        ("tensor a spans bytes", "but the file has"),
    ),
    "a size that wraps to 4": (
        container(infos=[tensor_info("a", [(1 << 62) + 1, 4], 0, 0)], data=DATA),
        ("tensor a spans bytes",),
    ),
    "10^12 rows": (
        container(infos=[tensor_info("token_embd.weight", [32, 10**12], 8, 0)], data=DATA),
        ("tensor token_embd.weight spans bytes 96 to 34000000000096, but the file has 224",),
    ),
    "size 0": (
        container(infos=[tensor_info("a", [32, 0], 0, 0)], data=DATA),
        (r"tensor a has sizes \[32, 0\]; expected at least 1 each",),
    ),
    "rows of half a block": (
        container(infos=[tensor_info("a", [48, 2], 2, 0)], data=DATA),
        ("tensor a has rows of 48 elements; Q4_0 needs a multiple of 32",),
    ),
    "type 99": (
        container(infos=[tensor_info("a", [32], 99, 0)], data=DATA),
        ("tensor a has type 99; expected one of F32, F16",),
    ),
    "removed type 4": (
        container(infos=[tensor_info("a", [32], 4, 0)], data=DATA),
        (r"tensor a has type 4 \(Q4_2, which was removed from the format\)",),
    ),
    "removed type 31": (
        container(infos=[tensor_info("a", [32], 31, 0)], data=DATA),
        (r"type 31 \(Q4_0_4_4",),
    ),
    "tensor name of 64 bytes": (
        container(infos=[tensor_info("a" * 64, [32], 0, 0)], data=DATA),
        ("a tensor name is 64 bytes long; expected at most 63",),
    ),
    "empty tensor name": (
        container(infos=[tensor_info("", [32], 0, 0)], data=DATA),
        ("a tensor is named ''",),
    ),
    "terminal escape in a name": (
        container(infos=[tensor_info("\x1b[2J", [32], 0, 0)], data=DATA),
        (r"a tensor is named '\\x1b\[2J'",),
    ),
    "tensor name not UTF-8": (
        container(infos=[tensor_info(b"\x80", [32], 0, 0)], data=DATA),
        ("a tensor name is not valid UTF-8",),
    ),
    "duplicate tensor": (
        container(infos=[*ONE, tensor_info("a", [32], 0, 128)], data=DATA * 2),
        ("tensor a appears twice",),
    ),
    "overlap": (
        container(infos=[*ONE, tensor_info("b", [32], 0, 96)], data=DATA * 2),
        ("tensors a and b overlap at byte",),
    ),
    "same place": (
        container(infos=[*ONE, tensor_info("b", [32], 0, 0)], data=DATA * 2),
        ("tensors a and b overlap",),
    ),
    "offset not aligned": (
        container(infos=[tensor_info("a", [32], 0, 4)], data=DATA * 2),
        ("tensor a is at offset 4; expected a multiple of the alignment 32",),
    ),
    "offset beyond the file": (
        container(infos=[tensor_info("a", [32], 0, 1 << 40)], data=DATA),
        ("tensor a spans bytes 1099511", "but the file has"),
    ),
    "offset 2^64 - 32": (
        container(infos=[tensor_info("a", [32], 0, (1 << 64) - 32)], data=DATA),
        ("tensor a spans bytes 18446744073709551", "but the file has"),
    ),
    "data one byte short": (
        container(infos=ONE, data=DATA[:-1]),
        (r"tensor a spans bytes 64 to 192, but the file has 191",),
    ),
}
for _bad in (0, 3, 7, 48, 1 << 21, 1 << 30):
    CRAFTED[f"alignment {_bad}"] = (
        container([kv("general.alignment", U32, _bad)]),
        (f"general.alignment is {_bad}; expected a power of two from 8 to 1048576",),
    )
CRAFTED["alignment text"] = (
    container([kv("general.alignment", STRING, "32")]),
    ("general.alignment is '32'",),
)


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_container_is_refused(tmp_path, name):
    data, parts = CRAFTED[name]
    path = write(tmp_path / "evil.gguf", data)
    refuses(lambda: GGUFFile(path), CheckpointError, r"evil\.gguf", *parts)


@pytest.mark.parametrize(
    "key", ["vocab_size", "block_count", "embedding_length", "feed_forward_length"]
)
@pytest.mark.parametrize("value", [10**12, 1 << 63, (1 << 64) - 1])
def test_sizes_without_measure(tmp_path, key, value):
    data = tiny_gguf({f"llama.{key}": kv(f"llama.{key}", U64, value)})
    path = write(tmp_path / "evil.gguf", data)
    says = rf"evil\.gguf: llama\.{key} is {value}; expected a whole number from 1 to"
    refuses(lambda: GGUFCheckpoint(path), CheckpointError, says)


def test_many_tensors_and_the_most_keys_are_refused_in_time(tmp_path):
    # Real headers, as many as of the largest models: all are read, none belongs to the model.
    count = 1 << 13
    names = [f"blk.{i}.{'t' * 40}.weight" for i in range(count)]
    infos = [tensor_info(name, [1], 0, 32 * i) for i, name in enumerate(names)]
    kvs = [*tiny_kvs().values(), *(kv(f"k{i}", U32, i) for i in range((1 << 14) - 15))]
    path = write(tmp_path / "evil.gguf", container(kvs, infos, bytes(32 * count)))
    refuses(
        lambda: GGUFCheckpoint(path),
        CheckpointError,
        r"evil\.gguf: token_embd\.weight, .* of the 11 tensors that llama needs",
    )


def test_too_many_strings_in_one_array(tmp_path):
    # A real 16 MB file of empty strings; the count alone condemns it.
    count = (1 << 21) + 1
    data = container([string("k") + u32(ARRAY) + u32(STRING) + u64(count) + bytes(8 * count)])
    path = write(tmp_path / "evil.gguf", data)
    refuses(lambda: GGUFFile(path), CheckpointError, "strings in metadata arrays to 2097153")


def test_too_many_strings_in_all_arrays_together(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_reader, "MAX_ARRAY_STRINGS", 10)
    data = container([kv_array(f"k{i}", STRING, ["a"] * 4) for i in range(3)])
    path = write(tmp_path / "evil.gguf", data)
    refuses(lambda: GGUFFile(path), CheckpointError, "strings in metadata arrays to 12", "'k2'")


def test_the_most_strings_allowed_are_walked_quickly(tmp_path):
    count = 1 << 21
    data = container([string("k") + u32(ARRAY) + u32(STRING) + u64(count) + bytes(8 * count)])
    path = write(tmp_path / "big.gguf", data)
    with computes_within(2):  # half a second; copying what is left each time would be minutes
        file = GGUFFile(path)
    assert file.metadata["k"].count == count
    file.close()


def test_too_much_text(tmp_path):
    # Characters of four bytes: the decoded text is as large as the bytes.
    text = "🚀" * (1 << 18)
    data = container([kv(f"k{i}", STRING, text) for i in range(10)])
    path = write(tmp_path / "evil.gguf", data)
    refuses(lambda: GGUFFile(path), CheckpointError, "over 8388608 bytes")


def test_empty_file(tmp_path):
    path = write(tmp_path / "empty.gguf", b"")
    refuses(lambda: GGUFFile(path), CheckpointError, r"empty\.gguf is empty", "download")


def test_missing_file(tmp_path):
    refuses(lambda: GGUFFile(tmp_path / "no.gguf"), CheckpointError, r"cannot open .*no\.gguf")


def test_folder_and_pipe_do_not_hang(tmp_path):
    refuses(lambda: GGUFFile(tmp_path), CheckpointError, "is not a regular file")
    os.mkfifo(tmp_path / "pipe.gguf")
    refuses(lambda: GGUFFile(tmp_path / "pipe.gguf"), CheckpointError, "is not a regular file")


def test_truncated_at_every_byte(tmp_path):
    data = tiny_gguf()
    path = write(tmp_path / "cut.gguf", data)
    GGUFFile(path).close()
    for length in range(len(data) - 1, 0, -1):
        os.truncate(path, length)
        # The last tensor needs its bytes, so every shorter file is refused.
        with pytest.raises(CheckpointError) as caught:
            GGUFFile(path)
        assert str(path) in str(caught.value)


def test_truncated_message_says_what_is_missing(tmp_path):
    path = write(tmp_path / "cut.gguf", tiny_gguf()[:-64])
    refuses(
        lambda: GGUFFile(path),
        CheckpointError,
        r"tensor output_norm\.weight spans bytes \d+ to \d+, but the file has \d+",
        "download it again",
    )
