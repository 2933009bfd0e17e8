"""What a measurement ran on: processor, versions, revision, and measured memory bandwidth."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..kernels.cpu.caches import cache_mib

_MIB = 1 << 20


def machine_info() -> dict[str, Any]:
    """Processor, cores, system and versions as plain JSON types."""
    from halfbyte import __version__

    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "cache_mib": cache_mib(),
        "gpus": gpu_names(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "halfbyte": __version__,
        "git": git_hash(),
    }


def cpu_model() -> str:
    """The processor's name as the system gives it, or "unknown"."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or "unknown"


def gpu_names() -> list[str]:
    """Names of the GPUs that torch can use."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def usable_cores() -> int:
    """Logical processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


def git_hash() -> str | None:
    """Commit of the checkout that the code runs from, ``-dirty`` when changed; None without."""
    home = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # A package in site-packages inside somebody else's checkout is not that checkout's.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=home,
            check=True,
            capture_output=True,
            timeout=10,
        )
        done = subprocess.run(
            command, cwd=home, check=True, capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() or None
    return None


def read_bandwidth(threads: int, *, mib: int = 0, repeats: int = 9) -> float:
    """Measured read bandwidth in bytes per second: best of ``repeats`` sums of a float32 array.

    The array is ``mib`` MiB; 0 chooses 256 MiB or four times the last-level cache, up to
    1 GiB, so that it cannot be read from the cache. ``threads`` is restored afterwards.
    """
    size = mib or min(max(256, 4 * cache_mib()), 1024)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(size * _MIB // 4, dtype=torch.float32)
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            torch.sum(data)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return size * _MIB / best


def known_bandwidth(folder: Path, threads: int, *, again: bool = False) -> float:
    """Read bandwidth in bytes per second, measured once for a processor and a number of threads.

    The figure is kept in ``machine.json`` in ``folder``; ``again`` measures anew. A file that
    cannot be read or written only costs the measurement, half a second.
    """
    path, key = folder / "machine.json", f"{cpu_model()}, {threads} threads"
    known: dict[str, float] = {}
    # The last one is what ten thousand opening brackets give.
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= _MIB:
            found = json.loads(path.read_text(encoding="utf-8"))
            rates = found.get("read_bandwidth") if isinstance(found, dict) else None
            known = rates if isinstance(rates, dict) else {}
    rate = known.get(key)
    if not again and isinstance(rate, (int, float)) and 1e8 < rate < 1e14:
        return float(rate)
    # An array of half a GiB: enough that most caches cannot hold it, read in a tenth of a second.
    known[key] = rate = read_bandwidth(threads, mib=512, repeats=3)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"machine.json.{os.getpid()}")
        part.write_text(json.dumps({"read_bandwidth": known}, indent=1), encoding="utf-8")
        part.replace(path)
    return rate


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
