"""Split GGUF models: any part or the folder opens the whole; parts that do not fit are named."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from loader_gguf_files import (
    BOOL,
    STRING,
    TINY_TENSORS,
    U16,
    U32,
    container,
    kv,
    kv_array,
    refuses,
    tiny_gguf,
    tiny_kvs,
    write,
)
from loader_gguf_models import random_state, write_gguf

from halfbyte.errors import CheckpointError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.gguf.parts import GGUFParts, first_part, part_of


def dense(weight) -> np.ndarray:
    weight = weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.float()
    return weight.numpy()


def mixed(name: str) -> str:
    return "Q4_0" if ".mlp." in name else "Q8_0" if "_proj.w" in name else "F32"


@pytest.mark.exact
def test_parts_of_the_package_writer_open_from_any_part(tmp_path):
    state = random_state()
    meant = write_gguf(tmp_path / "m.gguf", "llama", state, types=mixed, tensors_per_part=6)
    paths = sorted(tmp_path.iterdir())
    assert [p.name for p in paths] == [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    for path in (*paths, tmp_path):
        checkpoint = open_checkpoint(path)
        assert {info.name for info in checkpoint.tensors()} == set(state)
        report = checkpoint.report()
        assert report.files == {p.name: p.stat().st_size for p in paths}
        assert "split into 4 parts; all are here" in report.decisions
        for info in checkpoint.tensors():
            # Exactly equal: which file holds the bits does not change their meaning.
            assert np.array_equal(dense(checkpoint.load(info.name)), meant[info.name])
        checkpoint.release(state)
        for info in checkpoint.tensors():
            assert np.array_equal(dense(checkpoint.load(info.name)), meant[info.name])
        checkpoint.close()


def split_kvs(number: int, count: int, total: int = len(TINY_TENSORS)) -> dict[str, bytes]:
    return {
        "split.no": kv("split.no", U16, number),
        "split.count": kv("split.count", U16, count),
        "split.tensors.count": kv("split.tensors.count", U32, total),
    }


def write_parts(folder: Path, changes: dict[int, dict[str, bytes | None]] | None = None) -> Path:
    """The tiny llama in three parts; ``changes`` replaces or drops metadata of single parts."""
    names = list(TINY_TENSORS)
    for number, owned in enumerate((names[:4], names[4:8], names[8:])):
        kvs = (tiny_kvs() if number == 0 else {}) | split_kvs(number, 3)
        for key, entry in (changes or {}).get(number, {}).items():
            kvs.pop(key, None)
            if entry is not None:
                kvs[key] = entry
        # A whole file whose metadata gives way to the part's own.
        drop: dict[str, bytes | None] = dict.fromkeys(tiny_kvs())
        data = tiny_gguf(drop | kvs, {name: TINY_TENSORS[name] for name in owned})
        write(folder / f"t-0000{number + 1}-of-00003.gguf", data)
    return folder / "t-00001-of-00003.gguf"


def test_the_crafted_parts_are_sound(tmp_path):
    checkpoint = open_checkpoint(write_parts(tmp_path))
    assert len(checkpoint.tensors()) == len(TINY_TENSORS)
    assert checkpoint.tokenizer().tokens[4] == "a"
    checkpoint.close()


def test_first_part_without_tensors_and_alignment_of_a_part(tmp_path):
    first = container(list((tiny_kvs() | split_kvs(0, 2)).values()))
    path = write(tmp_path / "x-00001-of-00002.gguf", first)
    own = {"general.alignment": kv("general.alignment", U32, 16)} | split_kvs(1, 2)
    write(tmp_path / "x-00002-of-00002.gguf", tiny_gguf(dict.fromkeys(tiny_kvs()) | own))
    checkpoint = open_checkpoint(path)
    assert len(checkpoint.tensors()) == len(TINY_TENSORS)
    checkpoint.close()


BROKEN: dict[str, tuple[dict[int, dict[str, bytes | None]], int, tuple[str, ...]]] = {
    "number missing": ({0: {"split.no": None}}, 1, (r"1-of-00003\.gguf: split\.no is missing",)),
    "number of another part": (
        {1: {"split.no": kv("split.no", U16, 0)}},
        1,
        (r"00002-of-00003\.gguf: split\.no is 0; expected 1 in part 2 of 3", "copy of another"),
    ),
    "name of another part": (
        {1: {"split.no": kv("split.no", U16, 0)}},
        2,
        (r"is part 1 of 3 .* expected the name t-00001-of-00003\.gguf",),
    ),
    "number too large": (
        {0: {"split.no": kv("split.no", U16, 3)}},
        1,
        (r"split\.no is 3; expected a whole number from 0 to 2",),
    ),
    "count differs between parts": (
        {2: {"split.count": kv("split.count", U16, 4)}},
        1,
        (r"00003-of-00003\.gguf: split\.count is 4; expected 3 in part 3 of 3",),
    ),
    "count differs from the name": (
        {0: {"split.count": kv("split.count", U16, 2)}},
        1,
        (r"is part 1 of 2 .* expected the name t-00001-of-00002\.gguf",),
    ),
    "count of a crafted file": (
        {0: {"split.count": kv("split.count", U32, (1 << 32) - 1)}},
        1,
        (r"split\.count is 4294967295; expected a whole number from 0 to 1024",),
    ),
    "count is text": (
        {0: {"split.count": kv("split.count", STRING, "3")}},
        1,
        (r"split\.count is '3'; expected a whole number",),
    ),
    "count is missing in a part": (
        {1: {"split.count": None}},
        1,
        (r"00002-of-00003\.gguf: split\.count is None; expected 3",),
    ),
    "count is missing in the given part": (
        {0: {"split.count": None}},
        1,
        ("the name says part 1 of 3, but the file has no split.count", "rename the file"),
    ),
    "number is a bool": (
        {1: {"split.no": kv("split.no", BOOL, True)}},
        1,
        (r"split\.no is True; expected 1",),
    ),
    "tensor count missing": (
        {0: {"split.tensors.count": None}},
        1,
        (r"split\.tensors\.count is missing; expected a whole number",),
    ),
    "tensor count of a part differs": (
        {2: {"split.tensors.count": kv("split.tensors.count", U32, 10)}},
        1,
        (r"00003-of-00003\.gguf: split\.tensors\.count is 10; expected 11",),
    ),
    "tensor count wrong": (
        {i: {"split.tensors.count": kv("split.tensors.count", U32, 12)} for i in range(3)},
        1,
        (r"the 3 parts hold 11 tensors; split\.tensors\.count says 12",),
    ),
    "metadata of another model": (
        {1: {"llama.block_count": kv("llama.block_count", U32, 2)}},
        1,
        (r"00002-of-00003\.gguf: metadata key 'llama\.block_count' is 2, but 1 in t-00001",),
    ),
    "metadata only in a later part": (
        {2: {"llama.rope.freq_base": kv("llama.rope.freq_base", U32, 7)}},
        1,
        (r"metadata key 'llama\.rope\.freq_base' is 7, but None in t-00001",),
    ),
    "tokens in a later part": (
        {2: {"tokenizer.ggml.tokens": kv_array("tokenizer.ggml.tokens", STRING, ["a"])}},
        1,
        (r"'tokenizer\.ggml\.tokens' is array of 1 string, but array of 8 string",),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_do_not_fit_are_refused(tmp_path, name):
    changes, given, says = BROKEN[name]
    write_parts(tmp_path, changes)
    path = tmp_path / f"t-0000{given}-of-00003.gguf"
    refuses(lambda: GGUFCheckpoint(path), CheckpointError, *says)


def test_repeated_metadata_that_agrees_is_accepted(tmp_path):
    same: dict[str, bytes | None] = {"llama.block_count": kv("llama.block_count", U32, 1)}
    GGUFParts(write_parts(tmp_path, {1: same, 2: same})).close()


def test_missing_parts_are_listed(tmp_path):
    path = write_parts(tmp_path)
    (tmp_path / "t-00002-of-00003.gguf").unlink()
    for given in (path, tmp_path / "t-00003-of-00003.gguf", tmp_path):
        refuses(
            lambda given=given: open_checkpoint(given),
            CheckpointError,
            r"is part [13] of 3: t-00002-of-00003\.gguf not in ",
            "download all parts",
        )
    lonely = tiny_gguf(split_kvs(0, 1000))
    refuses(
        lambda: open_checkpoint(write(tmp_path / "q-00001-of-01000.gguf", lonely)),
        CheckpointError,
        r"q-00011-of-01000\.gguf and more, 999 in all, not in",
    )


def test_a_tensor_in_two_parts(tmp_path):
    path = write_parts(tmp_path)
    names = list(TINY_TENSORS)
    drop: dict[str, bytes | None] = dict.fromkeys(tiny_kvs())
    twice = tiny_gguf(drop | split_kvs(1, 3), {n: TINY_TENSORS[n] for n in names[3:7]})
    write(tmp_path / "t-00002-of-00003.gguf", twice)
    refuses(
        lambda: GGUFCheckpoint(path),
        CheckpointError,
        r"00002-of-00003\.gguf: tensor blk\.0\.attn_k\.weight is also in t-00001-of-00003\.gguf",
    )


def test_a_damaged_part_is_named_and_nothing_stays_mapped(tmp_path):
    path = write_parts(tmp_path)
    second = tmp_path / "t-00002-of-00003.gguf"
    second.write_bytes(second.read_bytes()[:-8])
    refuses(lambda: GGUFCheckpoint(path), CheckpointError, r"00002-of-00003\.gguf: tensor .* spans")
    gc.collect()  # the error's frames are a cycle, and they hold the map
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    second.write_bytes(b"")
    refuses(lambda: GGUFCheckpoint(path), CheckpointError, r"00002-of-00003\.gguf is empty")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = write_parts(tmp_path / "a")
    second = tmp_path / "a" / "t-00002-of-00003.gguf"
    second.rename(tmp_path / "b" / second.name)
    second.symlink_to(tmp_path / "b" / second.name)
    refuses(lambda: GGUFCheckpoint(path), CheckpointError, "outside the model folder")


def test_a_folder_with_more_than_one_split_model_is_ambiguous(tmp_path):
    write_parts(tmp_path)
    write(tmp_path / "other-00001-of-00001.gguf", tiny_gguf())
    with pytest.raises(CheckpointError, match=r"holds 4 GGUF files .*other-00001-of-00001\.gguf"):
        open_checkpoint(tmp_path)


def test_one_of_one_is_whole(tmp_path):
    for extra in ({}, split_kvs(0, 1)):
        path = write(tmp_path / "m-00001-of-00001.gguf", tiny_gguf(extra))
        checkpoint = open_checkpoint(path)
        assert not any("parts" in text for text in checkpoint.report().decisions)
        checkpoint.close()


def test_names_of_parts():
    assert part_of("q/a-b-00002-of-00010.gguf") == ("q/a-b", 2, 10)
    for name in ("a.gguf", "a-2-of-3.gguf", "a-00001-of-00002.gguf.part", "-00001-of-00002.gguf"):
        assert part_of(name) is None
    assert first_part(["a-00002-of-00002.gguf", "a-00001-of-00002.gguf"]) == "a-00001-of-00002.gguf"
    assert first_part(["a-00002-of-00002.gguf", "b-00001-of-00002.gguf"]) is None
    assert first_part(["a.gguf"]) is None
    assert first_part([]) is None
