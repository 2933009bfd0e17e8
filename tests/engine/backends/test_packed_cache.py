"""``packed_cache``: the same answers from the file, and no use of any but the right one."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte import Engine
from halfbyte.engine.backends import packed_cache, packed_file
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.engine.backends.packed_cache import files_key, sources_key
from halfbyte.engine.backends.packed_file import (
    MAGIC,
    PAGE,
    PackedFileError,
    read_packed,
    write_packed,
)
from halfbyte.errors import ConfigError
from halfbyte.kernels.cpu.build import find_compiler
from halfbyte.kernels.cpu.enums import Added, NumberType, TileCodes, TileValues
from halfbyte.kernels.cpu.pack import TiledLinear, TileShape
from halfbyte.kernels.formats.weight_format import ActivationFormat

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C compiler")

FIXTURES = Path(__file__).parents[2] / "fixtures"
IDS = [1, 5, 9, 30, 2, 77, 40]
# Between them: blocks, mixed types, tables, act-order, biases, rounded inputs, dense weights, and
# scales of a byte with factors of rows.
MODELS = (
    "gguf-q2_k-iq4-phi3",
    "gptq-v2-4b-g32-asym-actorder-qwen2",
    "ct-w8a8-static-asym-tensor-qwen2",
    "bnb-nf4-dq-llama",
    "ct-nvfp4-llama",
)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that files of packed weights go to."""
    monkeypatch.setattr(packed_cache, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "packed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that a test may touch."""
    return Path(shutil.copytree(FIXTURES / MODELS[1], tmp_path / "model"))


def logits(model: Path, **options: Any) -> torch.Tensor:
    with Engine(model, max_context=64, threads=2, **options) as engine:
        return engine.logits(IDS)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is packed from here on."""
    seen: list[object] = []
    real = CompiledOps.pack

    def pack(self: CompiledOps, *arguments: Any) -> TiledLinear:
        seen.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(CompiledOps, "pack", pack)
    return seen


def nested_parts(draw: random.Random, n: int, spans: int) -> dict[str, Any]:
    """Runs of scales of one byte, a row after the other, as bitsandbytes has them."""
    shift = draw.randrange(1, 7)
    firsts = torch.zeros(-(-n // 32) * 32, dtype=torch.int32)
    firsts[:n] = torch.arange(n, dtype=torch.int32) * spans
    runs = ((n * spans - 1) >> shift) + 1
    return {"outer": torch.randn(256 + 2 * runs), "firsts": firsts, "run_shift": shift}


def drawn(draw: random.Random) -> dict[str, list[TiledLinear]]:
    """Weights that are random bytes, in the shapes and with the parts of packed ones."""
    found: dict[str, list[TiledLinear]] = {}
    for index in range(4):
        n, k, table = draw.randrange(1, 99), 32 * draw.randrange(1, 5), index in (1, 3)
        codes = TileCodes.TABLE if table else TileCodes.BITS3
        number, added = (
            (NumberType.NESTED, Added.NONE) if index == 3 else (NumberType.F16, Added.ZERO)
        )
        shape = TileShape(codes, TileValues.GROUP, k, 32, number=number, added=added)
        found[f"layer {index}"] = [
            TiledLinear(
                data=torch.randint(256, (shape.tile_bytes(n),), dtype=torch.uint8),
                bias=torch.randn(-(-n // 32) * 32) if index else None,
                table=torch.randn(16) if table else None,
                **{name: getattr(shape, name) for name in ("codes", "values", "k", "span")},
                n=n,
                number=number,
                added=added,
                **(nested_parts(draw, n, k // 32) if index == 3 else {}),
                center=index,
                order=torch.randperm(k, dtype=torch.int32) if index == 2 else None,
                act=ActivationFormat(scale=draw.random()) if index == 2 else None,
                rule=("int8-block32", "int8-token", "float")[index % 3],
            )
        ]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_second_start_packs_nothing_and_answers_the_same(
    name: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(FIXTURES / name)
    assert not packed.exists()
    first = logits(FIXTURES / name, packed_cache=True)
    files = [*packed.iterdir()]
    assert len(files) == 1 and files[0].stat().st_mode & 0o777 == 0o600
    assert packed.stat().st_mode & 0o777 == 0o700
    seen = counted(monkeypatch)
    second = logits(FIXTURES / name, packed_cache=True)
    assert not seen and [*packed.iterdir()] == files
    assert torch.equal(first, expected) and torch.equal(second, expected)


def test_changed_models_and_options_are_packed_anew(
    packed: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logits(model, packed_cache=True)
    seen = counted(monkeypatch)
    weights = model / "model.safetensors"
    content, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with caplog.at_level(logging.WARNING, "halfbyte"):
        changed = logits(model, packed_cache=True)
    assert seen and "another model" in caplog.text and len([*packed.iterdir()]) == 1
    assert torch.equal(changed, logits(model))
    seen.clear()
    floats = logits(model, packed_cache=True, activations="float")
    assert seen and len([*packed.iterdir()]) == 2
    assert torch.equal(floats, logits(model, activations="float"))


def test_a_file_that_cannot_be_used_is_replaced(
    packed: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(model, packed_cache=True)
    file = next(packed.iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    seen = counted(monkeypatch)
    with caplog.at_level(logging.WARNING, "halfbyte"):
        assert torch.equal(logits(model, packed_cache=True), expected)
    assert seen and f"has {len(whole) - 1} bytes, not {len(whole)}" in caplog.text
    assert file.read_bytes() == whole


def test_a_full_disk_is_only_a_warning(
    packed: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING, "halfbyte"):
        assert torch.equal(logits(model, packed_cache=True), logits(model))
    assert "cannot be written" in caplog.text and not [*packed.iterdir()]


def test_what_a_killed_process_left_is_removed(packed: Path, model: Path) -> None:
    logits(model, packed_cache=True)
    file = next(packed.iterdir())
    left, fresh = (packed / f"{file.stem}{name}.part" for name in ("left", "fresh"))
    for path in (left, fresh):
        path.write_bytes(b"x")
    os.utime(left, (0, 0))
    file.unlink()
    logits(model, packed_cache=True)
    assert {*packed.iterdir()} == {file, fresh}


def test_other_backends_refuse_the_option(packed: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="packed_cache is True"):
        Engine(model, backend="reference", packed_cache=True)


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    path, weights = tmp_path / "a.packed", drawn(random.Random(seed))
    size = write_packed(path, "key", weights)
    assert size == path.stat().st_size
    found = read_packed(path, "key")
    # Whoever maps the file keeps what it was, whatever takes its place.
    write_packed(path, "key", drawn(random.Random(seed + 1)))
    assert [*tmp_path.iterdir()] == [path] and found.keys() == weights.keys()
    for name, (weight,) in weights.items():
        (read,) = found[name]
        for field in (*packed_file._NUMBERS, *packed_file._ENUMS, *packed_file._FLAGS, "act"):
            assert getattr(read, field) == getattr(weight, field), field
        for field in packed_file._TENSORS:
            ours, theirs = getattr(weight, field), getattr(read, field)
            assert (ours is None) == (theirs is None)
            assert ours is None or (torch.equal(ours, theirs) and theirs.data_ptr() % 64 == 0)


Damage = Callable[[bytearray], object]
DAMAGED: dict[str, Damage] = {
    "no file of packed weights": lambda data: data.__setitem__(0, 0),
    "longer than the file": lambda data: data.__setitem__(slice(8, 16), b"\xff" * 8),
    "header is damaged": lambda data: data.__setitem__(60, data[60] ^ 1),
    "bytes, not": lambda data: data.extend(b"\0"),
    "is empty": lambda data: data.clear(),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, message: str) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, "key", drawn(random.Random(1)))
    data = bytearray(path.read_bytes())
    DAMAGED[message](data)
    path.write_bytes(data)
    with pytest.raises(PackedFileError, match=message):
        read_packed(path, "key")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    with pytest.raises(FileNotFoundError):
        read_packed(path, "key")
    write_packed(path, "key", drawn(random.Random(1)))
    with pytest.raises(PackedFileError, match="another model"):
        read_packed(path, "other")
    path.chmod(0o666)
    with pytest.raises(PackedFileError, match="other users"):
        read_packed(path, "key")


@pytest.mark.parametrize(
    ("layer", "field", "value"),
    [
        ("layer 0", "n", 1 << 20),
        ("layer 0", "n", 0),
        ("layer 0", "k", -32),
        ("layer 0", "span", 33),
        ("layer 0", "codes", 99),
        ("layer 0", "data", [1 << 40, 64]),
        ("layer 0", "data", [-64, 64]),
        ("layer 0", "data", [3, 64]),
        ("layer 0", "data", None),
        ("layer 1", "table", None),
        ("layer 1", "bias", [0, 4]),
        ("layer 2", "act", {"call": "me"}),
        ("layer 2", "order", "data"),
        ("layer 3", "outer", None),
        ("layer 3", "outer", [0, 1024]),
        ("layer 3", "firsts", None),
        ("layer 3", "firsts", [0, 64]),
        ("layer 3", "firsts", "data"),
        ("layer 3", "run_shift", 0),
        ("layer 3", "run_shift", 40),
    ],
)
def test_headers_that_ask_for_too_much_are_refused(
    tmp_path: Path, layer: str, field: str, value: object
) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, "key", drawn(random.Random(1)))
    data = path.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[48 : 48 + length])
    if value == "data":  # random bytes in place of indices
        value = [header["weights"][layer][0]["data"][0], header["weights"][layer][0][field][1]]
    header["weights"][layer][0][field] = value
    text = json.dumps(header).encode()
    assert max(len(text), length) + 48 <= PAGE
    head = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    path.write_bytes(head.ljust(PAGE, b"\0") + data[PAGE:])
    with pytest.raises(PackedFileError):
        read_packed(path, "key")


def test_keys_follow_the_files_and_the_sources(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for folder in packed_cache.PACKING_SOURCES:
        (root / folder).mkdir(parents=True)
        assert any((packed_cache.ROOT / folder).rglob("*.py"))
    (root / "kernels" / "cpu" / "weight.h").write_text("tiles")
    first = sources_key(root)
    assert sources_key(root) == first
    (root / "kernels" / "cpu" / "weight.h").write_text("tiles of another shape")
    assert sources_key(root) != first
    file = tmp_path / "weights"
    file.write_bytes(bytes(3 << 20))
    keys = {files_key([file])}
    assert files_key([file]) in keys
    with file.open("r+b") as opened:  # the last page is always in the sample
        opened.seek(-1, 2)
        opened.write(b"\1")
    keys.add(files_key([file]))
    os.utime(file)
    keys.add(files_key([file]))
    assert len(keys) == 3
