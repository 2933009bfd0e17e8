"""Safetensors containers and shard indexes: sound ones agree, crafted ones are refused."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_gguf_files import refuses, write
from loader_hf_files import file_bytes, safetensors, tiny_folder
from safetensors.torch import save_file

from halfbyte.errors import CheckpointError, HalfbyteError
from halfbyte.loaders.files.folder_files import ModelFolder
from halfbyte.loaders.files.mapped import MappedFile
from halfbyte.loaders.files.safetensors_index import SafetensorsFiles, read_header
from halfbyte.loaders.hf.folder import HFFolderCheckpoint


def headers(path):
    file = MappedFile(path)
    try:
        return read_header(file)
    finally:
        file.close()


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def crafted(header: dict, data: int = 4) -> bytes:
    return file_bytes(json.dumps(header), bytes(data))


CRAFTED: dict[str, tuple[bytes, str]] = {
    "7 bytes": (bytes(7), "7 bytes; a safetensors file has at least 8"),
    "length 2^63": (file_bytes("{}", length=1 << 63), "header length 9223372036854775808; expec"),
    "length beyond the file": (file_bytes("{}", length=100), "header length 100; expected 2 to 2"),
    "length 0": (file_bytes("", bytes(9)), "header length 0; expected 2 to 9"),
    "not an object": (file_bytes("[1]"), "the header starts with b'\\['; expected '{'"),
    "not JSON": (file_bytes("{nope}"), "not valid JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "two values": (file_bytes("{}{}"), "not valid JSON: Extra data"),
    "nested deeply": (
        file_bytes('{"a":' + "[" * 50_000 + "]" * 50_000 + "}"),
        "nested over 64 levels deep",
    ),
    "many objects": (
        file_bytes('{"a":[' + "{}," * 70_000 + "{}]}"),
        r"tensor a is \[{}, {}, {}",
    ),
    "many numbers": (
        file_bytes('{"a":[' + "1," * 1_100_000 + "1]}"),
        "1100002 values in JSON, counted",
    ),
    "duplicate key": (
        file_bytes('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "duplicate key 'a'",
    ),
    "NaN": (file_bytes('{"a": NaN}'), "NaN is not a JSON number"),
    "entry is a number": (crafted({"a": 1}), "tensor a is 1; expected dtype, shape, data_off"),
    "entry lacks a field": (crafted({"a": {"dtype": "F32"}}), "tensor a is {'dtype': 'F32'}"),
    "entry has a field more": (crafted({"a": entry(x=1)}), "expected dtype, shape, data_offsets"),
    "unknown dtype": (crafted({"a": entry("F4")}), "tensor a has dtype 'F4'; expected one of"),
    "dtype a list": (crafted({"a": entry() | {"dtype": []}}), r"has dtype \[\]"),
    "negative size": (crafted({"a": entry(shape=[-1])}), r"has shape \[-1\]; expected at most 8"),
    "size a float": (crafted({"a": entry(shape=[1.0])}), r"has shape \[1\.0\]"),
    "size a bool": (crafted({"a": entry(shape=[True])}), r"has shape \[True\]"),
    "9 dimensions": (crafted({"a": entry(shape=[1] * 9)}), "expected at most 8"),
    "sizes that overflow": (
        crafted({"a": entry(shape=[1 << 62, 1 << 62])}),
        "spans 4 bytes; expected 85070591730234615865843651857942052864",
    ),
    "a size of 1000 digits": (
        file_bytes('{"a":{"dtype":"U8","shape":[' + "9" * 1000 + '],"data_offsets":[0,0]}}'),
        "a whole number has 1000 digits",
    ),
    "size and bytes differ": (crafted({"a": entry(shape=[2])}), "spans 4 bytes; expected 8"),
    "falling offsets": (crafted({"a": entry(offsets=[4, 0])}), r"has data_offsets \[4, 0\]"),
    "three offsets": (crafted({"a": entry(offsets=[0, 4, 8])}), "expected two rising whole"),
    "overlap": (
        crafted({"a": entry(), "b": entry(offsets=[2, 6])}, 6),
        "tensor b starts at data byte 2; expected 4: it overlaps the tensor before it",
    ),
    "hole": (
        crafted({"a": entry(), "b": entry(offsets=[8, 12])}, 12),
        "tensor b starts at data byte 8; expected 4: it leaves a hole",
    ),
    "data too short": (crafted({"a": entry()}, 3), "need 4 bytes of data; the file has 3"),
    "data too long": (crafted({"a": entry()}, 5), "need 4 bytes of data; the file has 5"),
    "offsets beyond the file": (
        crafted({"a": entry("U8", [1 << 40], [0, 1 << 40])}),
        "need 1099511627776 bytes of data; the file has 4",
    ),
    "metadata not text": (crafted({"__metadata__": {"a": 1}}, 0), "__metadata__ is not an obj"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_header_is_refused(tmp_path, name):
    data, message = CRAFTED[name]
    path = write(tmp_path / "evil.safetensors", data)
    refuses(lambda: headers(path), CheckpointError, r"evil\.safetensors: ", message)


def test_header_over_the_size_limit(tmp_path):
    path = write(tmp_path / "evil.safetensors", file_bytes(b"{" + b" " * (17 << 20) + b"}"))
    refuses(lambda: headers(path), CheckpointError, "expected 2 to 16777216")


def test_large_headers_stay_small(tmp_path):
    names = [f"model.layers.{i}.mlp.experts.w" for i in range(30_000)]
    header = {n: entry("U8", [1], [i, i + 1]) for i, n in enumerate(names)}
    header["model.layers.0.mlp.experts.w"]["shape"] = [2]  # wrong, so it is refused after all
    path = write(tmp_path / "big.safetensors", crafted(header, len(names)))
    refuses(lambda: headers(path), CheckpointError, "spans 1 bytes; expected 2")


def test_truncated_at_every_byte(tmp_path):
    data = safetensors({"a": (2, 2), "b": (3,)})
    path = write(tmp_path / "cut.safetensors", data)
    assert [t.name for t in headers(path)] == ["a", "b"]
    for length in range(len(data) - 1, 0, -1):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            headers(path)


def test_agrees_with_the_library_writer(tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    torch.manual_seed(seed)
    tensors = {
        "a.weight": torch.randn(3, 5, dtype=torch.bfloat16),
        "b": torch.randn(7),
        "c": torch.arange(6, dtype=torch.uint8).view(1, 2, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = SafetensorsFiles(ModelFolder(tmp_path))
    assert set(files.tensors) == set(tensors)
    for name, tensor in tensors.items():
        stored = files.tensors[name]
        assert stored.shape == tuple(tensor.shape)
        raw = files.raw(stored).clone().view(tensor.dtype).view(tensor.shape)
        assert torch.equal(raw, tensor)
    files.close()


def test_zero_size_tensors_are_legal_in_the_container(tmp_path):
    path = write(tmp_path / "m.safetensors", safetensors({"empty": (0, 4), "a": (2,)}))
    assert {t.name: t.nbytes for t in headers(path)} == {"empty": 0, "a": 4}


SOUND = safetensors({"a.weight": (2, 3), "b": (4,), "c": ()})


@given(
    st.lists(
        st.tuples(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=6)), max_size=4
    ),
    st.integers(0, len(SOUND)),
)
@settings(max_examples=300, deadline=None)
def test_mutated_files_raise_only_our_errors(tmp_path_factory, edits, cut):
    data = bytearray(SOUND)
    for at, new in edits:
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    write(path, bytes(data[:cut]))
    try:
        headers(path)
    except HalfbyteError as error:
        assert "fuzz.safetensors" in str(error)


def sharded(path, shards: dict[str, dict], weight_map: dict | None = None, index=None):
    """A folder with the tiny config and any shards; returns the path."""
    tiny_folder(path)
    (path / "model.safetensors").unlink()
    for name, shapes in shards.items():
        (path / name).write_bytes(safetensors(shapes))
    if weight_map is None:
        weight_map = {tensor: name for name, shapes in shards.items() for tensor in shapes}
    # total_size is unreliable in real files, and may be a float.
    content = {"metadata": {"total_size": 1e3}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index or content))
    return path


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_are_joined(tmp_path):
    folder = sharded(tmp_path / "m", {ONE: {"a": (2,)}, TWO: {"b": (3,), "c": (1,)}})
    (folder / "model-00003-of-00002.safetensors").write_bytes(b"not listed, not opened")
    files = SafetensorsFiles(ModelFolder(folder))
    assert [files.files[t.file].path.name for t in files.tensors.values()] == [ONE, TWO, TWO]
    files.close()


def test_tensors_that_the_index_leaves_out_are_not_used(tmp_path):
    folder = sharded(tmp_path / "m", {ONE: {"a": (2,), "b": (2,)}}, {"a": ONE})
    files = SafetensorsFiles(ModelFolder(folder))
    assert (list(files.tensors), files.unlisted) == (["a"], ["b"])
    files.close()


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "sub/evil.safetensors",
        "..\\evil.safetensors",
        "a\0.safetensors",
    ],
)
def test_index_names_may_not_leave_the_folder(tmp_path, name):
    (tmp_path / "evil.safetensors").write_bytes(safetensors({"a": (2,)}))
    folder = sharded(tmp_path / "m", {ONE: {"b": (2,)}}, {"a": name, "b": ONE})
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        "is not a plain name in the model folder",
    )


@pytest.mark.parametrize(
    "weight_map,message",
    [
        ({"a": ONE, "b": "model-9.safetensors"}, r"model-9\.safetensors, listed in .* is missing"),
        ({"a": ONE, "b": ONE}, "says that tensor 'b' is in .*; it is not there"),
        ({"a": 3}, "tensor 'a' is in 3; expected the name of a .safetensors file"),
        ({"a": "pytorch_model.bin"}, "expected the name of a .safetensors file"),
        ({}, "weight_map is {}; expected an object with 1 to 262144 tensors"),
        ([], r"weight_map is \[\]"),
    ],
)
def test_bad_indexes(tmp_path, weight_map, message):
    folder = sharded(tmp_path / "m", {ONE: {"a": (2,)}}, index={"weight_map": weight_map})
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, message)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = {ONE: {"a": (2,)}, TWO: {"a": (2,), "b": (1,)}}
    folder = sharded(tmp_path / "m", shards, {"a": ONE, "b": TWO})
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        f"tensor a is in two files, {ONE} and {TWO}",
    )


def test_an_index_that_points_to_the_wrong_shard(tmp_path):
    shards = {ONE: {"a": (2,)}, TWO: {"b": (1,)}}
    folder = sharded(tmp_path / "m", shards, {"a": TWO, "b": ONE})
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, f"is in {TWO}; it is in {ONE}")


def test_no_weights_under_the_usual_names(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        r"has neither model\.safetensors nor model\.safetensors\.index\.json",
    )
