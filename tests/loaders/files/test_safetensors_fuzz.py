"""Mutated safetensors headers, by structure and by bytes: only our own errors come out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fuzz_support import two_lengths
from hypothesis import strategies as st
from loader_budget import anything, only_our_errors, places
from loader_hf_files import TINY_CONFIG, TINY_SHAPES, file_bytes, header_of, tiny_folder

from halfbyte.errors import CheckpointError
from halfbyte.loaders import open_checkpoint

HEADER = header_of(TINY_SHAPES) | {"__metadata__": {"format": "pt"}}
SIZE = max(e["data_offsets"][1] for e in header_of(TINY_SHAPES).values())
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"


@st.composite
def headers(draw) -> tuple[bytes, int]:
    """A header's JSON with some values replaced, renamed or dropped; and bytes of data."""
    tree: dict[str, Any] = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 3))):
        owner, key = draw(st.sampled_from(places(tree)))
        if isinstance(owner, list) or draw(st.integers(0, 3)):
            owner[key] = draw(anything)
        else:
            value = owner.pop(key, None)
            if draw(st.booleans()):
                owner[draw(st.text(max_size=600))] = value
    return json.dumps(tree).encode(), max(0, SIZE + draw(st.sampled_from([0, 0, 0, -1, 1, -SIZE])))


@st.composite
def damaged(draw) -> bytes:
    """A whole file with bytes overwritten, inserted or cut."""
    data = bytearray(file_bytes(json.dumps(HEADER), bytes(SIZE)))
    top = len(data) - SIZE
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, top))
        new = draw(st.one_of(st.binary(min_size=1, max_size=9), st.just(b"\xff" * 8)))
        data[at : at + len(new) * draw(st.integers(0, 1))] = new
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])


@st.composite
def indexes(draw) -> Any:
    """The index of a sharded model with some values replaced."""
    tree: dict[str, Any] = {
        "metadata": {"total_size": SIZE},
        "weight_map": dict.fromkeys(TINY_SHAPES, SHARD),
    }
    for _ in range(draw(st.integers(1, 3))):
        owner, key = draw(st.sampled_from(places(tree)))
        paths = st.sampled_from(["../x.safetensors", "/dev/zero", "config.json", "", SHARD + "\0"])
        owner[key] = draw(st.one_of(paths, anything))
    return tree


def check(data: bytes, index: Any = None) -> None:
    """Open a tiny model whose weights file has these bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_folder(Path(name) / "m", TINY_CONFIG)
        if index is not None:
            (folder / "model.safetensors").unlink()
            (folder / INDEX).write_text(json.dumps(index))
        (folder / (SHARD if index is not None else "model.safetensors")).write_bytes(data)
        error = only_our_errors(lambda: open_checkpoint(folder).close())
        assert error is None or str(folder) in str(error)


def check_bytes(data: bytes) -> None:
    check(data)


def check_header(found: tuple[bytes, int]) -> None:
    raw, size = found
    check(file_bytes(raw, bytes(size)))


def test_the_sound_file_opens():
    check(file_bytes(json.dumps(HEADER), bytes(SIZE)))
    with tempfile.TemporaryDirectory() as name:
        open_checkpoint(tiny_folder(Path(name) / "m")).close()


def check_index(index: Any) -> None:
    check(file_bytes(json.dumps(HEADER), bytes(SIZE)), index)


test_mutated_headers, test_mutated_headers_at_length = two_lengths(check_header, 150, headers())
test_damaged_bytes, test_damaged_bytes_at_length = two_lengths(check_bytes, 150, damaged())
test_mutated_indexes, test_mutated_indexes_at_length = two_lengths(check_index, 150, indexes())


@pytest.mark.parametrize(
    "header,words",
    [
        (b'{"a":' + b'{"b":' * 10_000 + b"1" + b"}" * 10_001, "nested over 64 levels"),
        (b'{"a":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}", "2000001 values in JSON"),
        (b'{"' + b"x" * (8 << 20) + b'": 1}', "a tensor is named 'xxx"),
        (b'{"a": "' + b"\\u0000" * (1 << 20) + b'"}', "tensor a is "),
        (b'{"a":{"dtype":"F16","shape":[1e999],"data_offsets":[0,0]}}', "1e999 overflows"),
        (
            b'{"a":{"dtype":"F16","shape":[' + b"2," * 300_000 + b'2],"data_offsets":[0,2]}}',
            "has shape .*; expected at most 8 whole numbers",
        ),
    ],
    ids=["depth", "brackets", "long name", "escapes", "overflow", "many sizes"],
)
def test_header_bombs(tmp_path, header, words):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(file_bytes(header))
    error = only_our_errors(lambda: open_checkpoint(folder).close())
    assert isinstance(error, CheckpointError)
    with pytest.raises(CheckpointError, match=words):
        raise error
