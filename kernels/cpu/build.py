"""Compile the C kernels for this machine, once, into a cache folder."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = (
    "pool.c",
    "linear.c",
    "gemm.c",
    "inputs.c",
    "elementwise.c",
    "attention.c",
    "pack.c",
    "blocks.c",
)
HEADERS = ("halfbyte.h", "weight.h", "rows.h")
FLAGS = (
    "-O3",
    "-march=native",
    # Multiply-adds are fused where the source says so (vf_fma in halfbyte.h), nowhere else.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-psabi",
    "-std=gnu11",
    "-shared",
    "-fPIC",
)


class BuildError(Exception):
    """The kernels cannot be built here; the text says why."""


def find_compiler() -> str | None:
    """``$CC``, cc, gcc or clang, whichever is on the path first; None without any."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


def build_library(cache: Path, *, again: bool = False) -> Path:
    """Path of the shared library for this machine, compiled when the cache has none.

    The name holds a hash of sources, flags, compiler version and CPU, so a changed machine or
    version builds anew. The file is moved into place whole; a lost race costs only time.

    ``again`` compiles even so, over a file that proved damaged.

    Raises:
        BuildError: no compiler, or it failed (the first lines of its output are in the text).
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C compiler found (cc, gcc or clang)")
    folder = Path(__file__).parent
    version = _run([compiler, "--version"]).splitlines()[:1]
    digest = hashlib.sha256(repr((FLAGS, version, _cpu())).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((folder / name).read_bytes())
    target = cache / f"halfbyte-cpu-{digest.hexdigest()[:20]}.so"
    if target.exists() and not again:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle, raw = tempfile.mkstemp(suffix=".so", dir=cache)
        os.close(handle)
    except OSError as error:
        raise BuildError(f"cannot write to {cache}: {error}") from error
    temporary = Path(raw)
    try:
        paths = [str(folder / name) for name in SOURCES]
        _run([compiler, *FLAGS, "-o", str(temporary), *paths, "-lpthread", "-lm"])
        # Others may share the cache; mkstemp's file is for its owner alone.
        temporary.chmod(0o755)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        first = "\n".join(done.stderr.strip().splitlines()[:5])
        raise BuildError(f"{command[0]} failed with code {done.returncode}: {first}")
    return done.stdout


def _cpu() -> str:
    """What ``-march=native`` depends on: the instruction set flags of the first core."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return platform.processor() or platform.machine()
