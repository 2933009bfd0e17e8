"""Building the C kernels, the record layout, and the thread pool that runs programs."""

from __future__ import annotations

import os
import random
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cpu_support import library, needs_compiler, tokens
from statistics_support import fresh_seed

import halfbyte.kernels.cpu.build as build_module
import halfbyte.kernels.cpu.library as lib
from halfbyte.engine.backends.cpu_compiled import CompiledOps
from halfbyte.engine.backends.cpu_native import make_cpu_ops
from halfbyte.engine.config import EngineConfig
from halfbyte.kernels.cpu.arena import ALIGN, Arena
from halfbyte.kernels.cpu.build import BuildError, build_library, find_compiler
from halfbyte.kernels.cpu.library import Library
from halfbyte.loaders.store import cache_root

SOURCES = Path(build_module.__file__).parent


def test_records_have_the_layout_of_the_c_struct() -> None:
    header = (SOURCES / "halfbyte.h").read_text()
    members = r"int32_t kind;\s*int32_t n\[(\d+)\];\s*float f\[(\d+)\];\s*void \*p\[(\d+)\];"
    sizes = re.search(members, header)
    assert sizes is not None
    ints, floats, pointers = map(int, sizes.groups())
    # No padding: four-byte members up to a multiple of eight, then the pointers.
    assert (1 + ints + floats) % 2 == 0
    x = torch.zeros(4)
    record = lib.record(3, range(ints), [0.5] * floats, [x] * pointers)
    assert len(record) == 4 * (1 + ints + floats) + 8 * pointers
    second = lib.record(1, (2,), (), (None, x))[-8 * (pointers - 1) :][:8]
    assert int.from_bytes(second, "little") == x.data_ptr()


def test_op_numbers_are_those_of_the_c_enum() -> None:
    header = (SOURCES / "halfbyte.h").read_text()
    listed = re.search(r"enum \{ (OP_[^}]*) \};", header)
    assert listed is not None
    names = [name.strip().removeprefix("OP_") for name in listed[1].split(",")]
    assert [getattr(lib, name) for name in names] == list(range(len(names)))


@needs_compiler
def test_the_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Sooner done than with the real flags.
    fast = tuple("-O1" if flag == "-O3" else flag for flag in build_module.FLAGS)
    monkeypatch.setattr(build_module, "FLAGS", fast)
    first = build_library(tmp_path / "cache")
    stamp = first.stat().st_mtime_ns
    assert build_library(tmp_path / "cache") == first and first.stat().st_mtime_ns == stamp
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [first.name], "nothing half-done"
    assert re.fullmatch(r"halfbyte-cpu-[0-9a-f]{20}\.so", first.name)


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert find_compiler() is None
    with pytest.raises(BuildError, match="no C compiler found"):
        build_library(tmp_path)


def fake_compiler(folder: Path, script: str) -> None:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_failing_compiler_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_compiler(tmp_path, '[ "$1" = --version ] && exit 0\necho no such flag >&2; exit 3')
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(BuildError, match="failed with code 3: no such flag"):
        build_library(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("script", ["exit 1", "exit 0", "kill -9 $$"])
def test_a_broken_compiler_is_a_build_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    """Even one that cannot tell its version, or says nothing."""
    fake_compiler(tmp_path, script)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises((BuildError, OSError)):
        Library(build_library(tmp_path / "cache"), 1)


def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_compiler(tmp_path, "echo fake 1.0")
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot write to"):
        build_library(tmp_path / "file" / "cache")


def argmax(made: Library, x: torch.Tensor) -> torch.Tensor:
    """A one-op program over all threads."""
    out = torch.full((len(x),), -1)
    made.run(lib.record(lib.ARGMAX, (len(x), x.shape[1], x.stride(0)), (), (x, out)), 1)
    return out


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_thousands_of_small_programs(threads: int) -> None:
    """More threads than cores, too; sometimes the workers have gone to sleep before the next."""
    rng = random.Random(fresh_seed())
    made = Library(build_library(cache_root() / "native"), threads)
    x = tokens(rng.getrandbits(30), 7, 40)
    want = x.argmax(-1)
    for turn in range(1500):
        assert torch.equal(argmax(made, x), want)
        if turn % 100 == 0:
            time.sleep(rng.choice([0.0, lib.SPIN_US * 1e-6, lib.SPIN_US * 2e-6]))
    made.close()
    made.close()


@needs_compiler
def test_an_empty_program_does_nothing() -> None:
    made = library(2)
    x = tokens(1, 3, 20)
    for _ in range(300):
        made.run(b"", 0)
        assert torch.equal(argmax(made, x), x.argmax(-1))


@needs_compiler
def test_pools_do_not_disturb_each_other() -> None:
    path = build_library(cache_root() / "native")
    before = len(os.listdir("/proc/self/task"))
    x = tokens(2, 5, 30)
    for _ in range(20):
        pools = [Library(path, threads) for threads in (1, 2, 3)]
        for made in pools * 5:
            assert torch.equal(argmax(made, x), x.argmax(-1))
        for made in pools:
            made.close()
    assert len(os.listdir("/proc/self/task")) <= before, "threads were left"


def test_arena_pieces_are_aligned_and_apart() -> None:
    arena = Arena()
    pieces = [arena.empty(size) for size in (1, 63, 64, 65, 1 << 20, 40 << 20, 7)]
    spans = sorted((p.data_ptr(), p.data_ptr() + p.numel()) for p in pieces)
    assert all(begin % ALIGN == 0 for begin, _ in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for index, piece in enumerate(pieces):
        piece.fill_(index)
    assert all((piece == index).all() for index, piece in enumerate(pieces))
    copy = arena.place(torch.arange(12, dtype=torch.int32).view(3, 4).T)
    assert copy.tolist() == torch.arange(12).view(3, 4).T.tolist()


@needs_compiler
def test_a_damaged_library_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path))
    path = build_library(cache_root() / "native")
    assert path.stat().st_mode & 0o055 == 0o055, "other users of the cache can load it"
    path.write_bytes(b"")
    ops = make_cpu_ops(EngineConfig(device="cpu"))
    assert isinstance(ops, CompiledOps) and path.stat().st_size > 0
