"""The GGUF container reader on sound files."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from computing_time import computes_within
from loader_gguf_files import (
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    container,
    kv,
    kv_array,
    tensor_info,
    tiny_gguf,
    write,
)

from halfbyte.errors import CheckpointError
from halfbyte.loaders.gguf.reader import GGUFArray, GGUFFile
from halfbyte.loaders.gguf.types import BLOCK_TYPES, SUPPORTED_TYPES

FIXTURE = Path(__file__).parents[2] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"


def test_block_table_equals_the_format_package():
    theirs = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    ours = {t.id: (t.name, t.elements, t.nbytes) for t in BLOCK_TYPES.values()}
    assert ours == theirs
    assert set(SUPPORTED_TYPES) <= {t.name for t in BLOCK_TYPES.values()}


def test_every_scalar_type(tmp_path):
    scalars = {
        U8: 200,
        I8: -100,
        U16: 60000,
        I16: -30000,
        U32: 1 << 31,
        I32: -(1 << 31),
        F32: 0.5,
        BOOL: True,
        STRING: "Größe 🚀",
        U64: (1 << 64) - 1,
        I64: -(1 << 63),
        F64: 1e-300,
    }
    path = write(tmp_path / "m.gguf", container([kv(f"k{t}", t, v) for t, v in scalars.items()]))
    file = GGUFFile(path)
    assert file.metadata == {f"k{t}": v for t, v in scalars.items()}
    assert [type(v) for v in file.metadata.values()] == [type(v) for v in scalars.values()]
    file.close()


def test_arrays_hold_what_was_written_and_numbers_are_decoded_on_demand(tmp_path):
    arrays = {
        U8: (1, 255),
        I16: (-1, 7),
        F32: (0.25, -2.0),
        F64: (1e300,),
        BOOL: (True, False),
        STRING: ("", "a b", "▁é"),
        U64: (),
    }
    data = container([kv_array(f"k{t}", t, v) for t, v in arrays.items()])
    file = GGUFFile(write(tmp_path / "m.gguf", data))
    for kind, items in arrays.items():
        array = file.metadata[f"k{kind}"]
        assert isinstance(array, GGUFArray)
        assert array.count == len(items)
        assert array.values() == items
    assert repr(file.metadata[f"k{STRING}"]) == "array of 3 string"
    file.close()
    with pytest.raises(CheckpointError, match="is closed"):
        file.metadata[f"k{I16}"].values()
    assert file.metadata[f"k{STRING}"].values() == arrays[STRING]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_versions_and_alignment(tmp_path, version, alignment):
    body = bytes(range(16))
    data = container(
        [kv("general.alignment", U32, alignment)],
        [tensor_info("a", [2], 0, 0), tensor_info("b", [1], 0, alignment)],
        body[:8] + bytes(alignment - 8) + body[8:12],
        version=version,
        alignment=alignment,
    )
    file = GGUFFile(write(tmp_path / "m.gguf", data))
    assert file.version == version
    assert file.alignment == alignment
    assert bytes(file.raw(file.tensors["a"]).tolist()) == body[:8]
    assert bytes(file.raw(file.tensors["b"]).tolist()) == body[8:12]
    file.close()


def test_agrees_with_the_package_reader_on_a_fixture():
    ours, theirs = GGUFFile(FIXTURE), gguf.GGUFReader(FIXTURE)
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        value = ours.metadata[key]
        value = list(value.values()) if isinstance(value, GGUFArray) else value
        assert value == field.contents(), key
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(reversed([int(n) for n in tensor.shape]))
        assert (mine.type.id, mine.offset, mine.nbytes) == (
            tensor.tensor_type.value,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert np.array_equal(ours.raw(mine).numpy(), tensor.data.reshape(-1).view(np.uint8))
    ours.close()


def test_large_vocabulary_is_fast(tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    letters = random.Random(seed)
    tokens = ["".join(letters.choices("abcdé▁", k=6)) for _ in range(150_000)]
    path = write(tmp_path / "m.gguf", container([kv_array("tokens", STRING, tokens)]))
    with computes_within(1):  # promised is one second to open; this also decodes
        file = GGUFFile(path)
        assert file.metadata["tokens"].values() == tuple(tokens)
    file.close()


def test_raw_is_refused_when_the_file_shrinks_while_open(tmp_path):
    path = write(tmp_path / "m.gguf", tiny_gguf())
    file = GGUFFile(path)
    tensor = file.tensors["output_norm.weight"]
    assert len(file.raw(tensor)) == 128
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 64)
    with pytest.raises(CheckpointError, match=r"m\.gguf shrank from \d+ to \d+ bytes"):
        file.raw(tensor)
    file.close()


def test_a_failed_open_leaves_no_map_behind(tmp_path):
    path = write(tmp_path / "bad.gguf", tiny_gguf()[:-40])
    with pytest.raises(CheckpointError):
        GGUFFile(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
