"""The kernels for aarch64, cross-compiled and run under qemu-user, behind the face of ``Library``.

Python and torch stay on this machine: each program goes to a small process under the emulator,
with the memory that its ops address, and the memory comes back as the program left it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import torch

import halfbyte.kernels.cpu.arena as arena
import halfbyte.kernels.cpu.library as lib
import halfbyte.kernels.cpu.ops as ops
from halfbyte.kernels.cpu.build import C_HEADERS, FLAGS, SOURCES
from halfbyte.kernels.cpu.forms import FORMS
from halfbyte.kernels.cpu.library import Library
from halfbyte.kernels.cpu.ops import RECORDS
from halfbyte.kernels.cpu.records import Records

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
_FOLDER = Path(lib.__file__).parent
# Memory that ops address: first byte -> storage.
_known: dict[int, torch.UntypedStorage] = {}


class RemoteLibrary(Library):
    """The kernels in a process under the emulator; see :class:`Library` for its face."""

    def __init__(self, program: Path, threads: int, form: str) -> None:
        self._pool = None
        process = subprocess.Popen(
            [EMULATOR, str(program), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        self._in: IO[bytes] = process.stdin
        self._out: IO[bytes] = process.stdout
        atexit.register(process.kill)
        self.threads = threads
        self.form = form
        self.lanes, amx, moments = struct.unpack("=3i", self._out.read(12))
        self.amx, self.moments = bool(amx), bool(moments)

    def run(self, records: bytes, count: int, spin_us: int | None = None) -> None:
        if not count:
            return
        spans: list[tuple[int, int]] = []
        pointers: list[int] = []
        for start in range(0, len(records), RECORDS.size):
            for at, address in RECORDS.pointers(records[start : start + RECORDS.size]):
                pointers += [start + at, *_relative(address, spans)]
        sizes = [size for _, size in spans]
        self._in.write(struct.pack("=3i", count, len(sizes), len(pointers) // 3))
        self._in.write(struct.pack(f"={len(sizes) + len(pointers)}q", *sizes, *pointers))
        self._in.write(records)
        for begin, size in spans:
            self._in.write(ctypes.string_at(begin, size))
        self._in.flush()
        for begin, size in spans:
            answer = self._out.read(size)
            assert len(answer) == size, "the process under the emulator ended"
            ctypes.memmove(begin, answer, size)


def _relative(address: int, spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Number of a pointer's storage in ``spans``, where a new one is added, and its offset."""
    for base, storage in _known.items():
        if base <= address < base + storage.nbytes():
            span = (base, storage.nbytes())
            if span not in spans:
                spans.append(span)
            return spans.index(span), address - base
    raise AssertionError("an op addresses memory of no tensor")


def _pack(op: ops.Op) -> tuple[bytes, list[torch.Tensor]]:
    record, tensors = Records.pack(RECORDS, op)
    for tensor in tensors:
        if tensor.numel():
            storage = tensor.untyped_storage()
            _known[storage.data_ptr()] = storage
    return record, tensors


def forget() -> None:
    """Let go of the memory of a test."""
    _known.clear()


@functools.cache
def remote_library(threads: int, form: str) -> Library:
    """The kernels in a form of aarch64 with a pool of ``threads``; one process for each."""
    # Whole storages travel: slabs and huge pages would be most of it.
    arena.SLAB = arena.HUGE = 1 << 14
    RECORDS.pack = _pack
    return RemoteLibrary(_program(form), threads, form)


@functools.cache
def _program(name: str) -> Path:
    """The program of a form, compiled once for all processes, and kept until its sources change."""
    for tool in (COMPILER, EMULATOR):
        assert shutil.which(tool), f"{tool} is missing: see the target test-arm of the Makefile"
    form = next(form for form in FORMS if form.name == name and "aarch64" in form.machines)
    driver = Path(__file__).with_name("arm_driver.c")
    command = [COMPILER, *FLAGS, *form.flags, "-Wall", "-Wextra", "-Werror", f"-I{_FOLDER}"]
    digest = hashlib.sha256(repr(command).encode() + ops.header().encode())
    for path in (driver, *(_FOLDER / name for name in (*SOURCES, *C_HEADERS))):
        digest.update(path.read_bytes())
    program = Path(tempfile.gettempdir()) / f"halfbyte-arm-{name}-{digest.hexdigest()[:16]}"
    with open(f"{program}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            with tempfile.TemporaryDirectory(prefix="halfbyte-arm-") as folder:
                (Path(folder) / "ops.h").write_text(ops.header())
                objects = [f"{folder}/{name}.o" for name in (*SOURCES, driver.name)]
                sources = [*(str(_FOLDER / name) for name in SOURCES), str(driver)]
                running = [
                    subprocess.Popen([*command, f"-I{folder}", "-c", "-o", made, source])
                    for made, source in zip(objects, sources, strict=True)
                ]
                assert not any(process.wait(timeout=900) for process in running)
                linked = f"{folder}/driver"
                link = [COMPILER, "-static", "-o", linked, *objects, "-lpthread", "-lm"]
                subprocess.run(link, check=True, timeout=60)
                shutil.copy2(linked, f"{program}.new")
                os.replace(f"{program}.new", program)
    return program
