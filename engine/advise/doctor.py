"""Checks of the machine: each function looks at one thing and says what to do about it.

A check never raises for a missing or broken part: that is its finding. ``ok`` is ready, ``warn``
costs speed or a feature, ``fail`` means that Halfbyte cannot run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from halfbyte.errors import ConfigError

from ...kernels.cpu.build import BuildError, find_compiler
from ...kernels.cpu.forms import VARIABLE, available_forms, chosen_forms, cpu_features
from ...kernels.device.versions import version_numbers
from ..backends.cpu_cores import cpu_quota, physical_cores
from ..backends.gpu_choice import FENCED_TRITON, MIN_TRITON, refused_gpu

Status = Literal["ok", "warn", "fail"]

_MIN_PYTHON = (3, 11)
_MIN_TORCH = (2, 11)
_TIMEOUT_S = 60
_FEATURES = (
    ("avx2", "AVX2"),
    ("avx512f", "AVX-512"),
    ("avx_vnni", "AVX-VNNI"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("amx_int8", "AMX int8"),
    ("amx_bf16", "AMX bf16"),
    ("asimddp", "NEON dot product"),
    ("i8mm", "NEON int8 matmul"),
    ("bf16", "NEON bf16"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at.
        status: ``ok``, ``warn`` or ``fail``.
        detail: what was found, in one sentence.
        remedy: what to do, or "".
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def check_python() -> Check:
    """The interpreter's version."""
    found = platform.python_version()
    if sys.version_info < _MIN_PYTHON:
        return Check("python", "fail", found, f"install Python {_dotted(_MIN_PYTHON)} or newer")
    return Check("python", "ok", f"{found}, {platform.system()} {platform.machine()}")


def check_torch() -> Check:
    """Whether torch is new enough and can be imported."""
    need = f"pip install 'torch>={_dotted(_MIN_TORCH)}'"
    version = _version("torch")
    if version is None:
        return Check("torch", "fail", "not installed", need)
    if version_numbers(version) < _MIN_TORCH:
        return Check("torch", "fail", f"{version} is too old", need)
    try:
        import torch
    except Exception as error:
        # A broken native library may raise anything; whatever it is, it is the finding.
        return Check("torch", "fail", f"{version} cannot be imported: {_first_line(error)}", need)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", "ok", f"{version}, {build}, {torch.get_num_threads()} threads")


def check_triton() -> Check:
    """Whether triton works; compiles and runs a kernel when there is a GPU to run it on."""
    version = _version("triton")
    need = f"pip install 'triton>={_dotted(MIN_TRITON)}'"
    if version is None:
        where = "" if sys.platform == "linux" else f"; there is none for {platform.system()}"
        return Check("triton", "warn", f"not installed{where}: no GPU backend", need)
    if version_numbers(version) < MIN_TRITON:
        return Check("triton", "warn", f"{version} is too old", need)
    if not _cuda_available():
        code, done = "import triton", "imports; without a GPU only its interpreter can run kernels"
    else:
        code, done = _TRITON_PROBE, "compiled and ran a kernel on the GPU"
    # In a separate process: a crash of the compiler or driver must not end the doctor.
    problem = _run_probe(code)
    if problem:
        remedy = "see the compiler, headers and driver lines below, or " + need
        return Check("triton", "warn", f"{version} does not work: {problem}", remedy)
    if version_numbers(version, 3) < FENCED_TRITON and _has_hopper():
        found = f"{version} leaves out a fence that products on Hopper need: they may go wrong"
        return Check("triton", "warn", found, f"take a torch with triton {_dotted(FENCED_TRITON)}")
    return Check("triton", "ok", f"{version}, {done}")


def check_compiler() -> Check:
    """Whether a C compiler can build a library that this Python can load and call."""
    remedy = "install one: apt install gcc libc6-dev (Debian), dnf install gcc (Fedora)"
    try:
        compiler = find_compiler()
    except BuildError as error:
        return Check(
            "C compiler", "warn", f"{error}: slower CPU kernels", "set CC right, or unset it"
        )
    if compiler is None:
        return Check("C compiler", "warn", "none (cc, gcc, clang): slower CPU kernels", remedy)
    name = " ".join(compiler)
    try:
        with tempfile.TemporaryDirectory(prefix="halfbyte-doctor-") as folder:
            source, library = Path(folder, "probe.c"), Path(folder, "probe.so")
            source.write_text("#include <math.h>\nint probe(int x) { return x + 41; }\n")
            _output([*compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)])
            answer = ctypes.CDLL(str(library)).probe(1)
            version = _output([*compiler, "--version"]).splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        problem = _first_line(error)
        return Check("C compiler", "warn", f"{name} cannot build a library: {problem}", remedy)
    if answer != 42:
        return Check("C compiler", "warn", f"{name} builds a library that computes wrongly")
    return Check("C compiler", "ok", f"{version} ({name})")


def check_headers() -> Check:
    """Whether Python.h is there; triton compiles its launcher against it."""
    folder = Path(sysconfig.get_paths()["include"])
    if (folder / "Python.h").is_file():
        return Check("Python headers", "ok", str(folder / "Python.h"))
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    return Check(
        "Python headers",
        "warn",
        f"no Python.h in {folder}: triton cannot launch kernels on a GPU",
        f"apt install {package} (Debian), dnf install python3-devel (Fedora)",
    )


def check_gpu() -> Check:
    """The GPU as the driver and torch see it."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
        lines = _output([*query, "--format=csv,noheader"]).strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = []
    if _cuda_available():
        import torch

        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        driver = f", driver {lines[0].split(', ')[1]}" if lines and ", " in lines[0] else ""
        why = refused_gpu()
        if why is not None:
            found = f"{names}{driver}; device='auto' computes on the CPU: {why}"
            return Check("GPU", "warn", found, "see docs/kernels.md, or ask for device='cuda'")
        return Check("GPU", "ok", f"{names}{driver}; device='auto' takes the first")
    if lines:
        return Check(
            "GPU",
            "warn",
            f"the driver sees {lines[0]}, but this torch cannot use it",
            "install a CUDA build of torch that the driver supports",
        )
    if _has_nvidia_card():
        return Check(
            "GPU", "warn", "an NVIDIA card is there, but no driver", "install the NVIDIA driver"
        )
    return Check("GPU", "ok", "none; the CPU backend is used")


def check_cpu() -> Check:
    """Instruction sets that the CPU kernels use, and the form of the C kernels that runs."""
    features = cpu_features()
    found = ", ".join(label for flag, label in _FEATURES if flag in features)
    detail = found or f"{platform.machine()}, features unknown on this system"
    try:
        forms = chosen_forms()
    except ConfigError as error:
        return Check("CPU", "fail", error.message, error.hint)
    asked = f" ({VARIABLE} says so)" if os.environ.get(VARIABLE) else ""
    if not forms:
        remedy = f"unset {VARIABLE}, or set it to {available_forms()[0].name}"
        return Check("CPU", "warn", f"{detail}; no C kernels{asked}: slow", remedy)
    detail += f"; C kernels: {forms[0].name}{asked}"
    if features and "avx2" not in features and platform.machine() in ("x86_64", "AMD64"):
        return Check("CPU", "warn", f"{detail}; no AVX2: slow", "use a newer machine")
    return Check("CPU", "ok", detail)


def check_threads() -> Check:
    """Processors that this process may use, and settings that cut them down."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    detail = f"{usable} of {os.cpu_count()} processors"
    quota = cpu_quota()
    if quota is not None and quota < usable:
        return Check(
            "threads",
            "warn",
            f"{detail}, but the container's quota is {quota:g}: {physical_cores()} are used",
            "raise the quota",
        )
    if text := os.environ.get("OMP_NUM_THREADS"):
        return Check("threads", "ok", f"{detail}; OMP_NUM_THREADS is {text}")
    return Check("threads", "ok", detail)


def check_cache() -> Check:
    """Whether the cache folder can be written, and the free space there."""
    from ...loaders.store.model_store import cache_root

    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-"):
            pass
        stat = os.statvfs(root)
    except OSError as error:
        return Check(
            "cache folder",
            "fail",
            f"cannot write to {root}: {error.strerror or error}",
            "set HALFBYTE_HOME to a folder that you may write to",
        )
    free = stat.f_bavail * stat.f_frsize
    if free < 1 << 30:
        return Check(
            "cache folder",
            "warn",
            f"{root} has {free >> 20} MiB free",
            "free some space, or set HALFBYTE_HOME to a larger disk",
        )
    return Check("cache folder", "ok", f"{root}, {free >> 30} GiB free")


def check_model() -> Check:
    """Whether the default model is in the store."""
    from ...loaders.store.model_store import is_pulled
    from ...loaders.store.sources import DEFAULT_MODEL

    if is_pulled(DEFAULT_MODEL):
        return Check("default model", "ok", f"{DEFAULT_MODEL} is in the store")
    return Check(
        "default model",
        "warn",
        f"{DEFAULT_MODEL} is not in the store",
        f"halfbyte pull {DEFAULT_MODEL} (run, generate and chat do it by themselves)",
    )


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_torch,
    check_triton,
    check_compiler,
    check_headers,
    check_gpu,
    check_cpu,
    check_threads,
    check_cache,
    check_model,
)

# Triton reads a kernel's source from a file, so the probe is written to one.
_TRITON_PROBE = """\
import torch
import triton
import triton.language as tl


@triton.jit
def double(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    tl.store(x_ptr + at, 2.0 * x, mask=at < n)


x = torch.arange(100, dtype=torch.float32, device="cuda")
double[(1,)](x, 100, BLOCK=128)
wanted = 2.0 * torch.arange(100, dtype=torch.float32)
if not torch.equal(x.cpu(), wanted):
    raise SystemExit("the kernel computed wrong values")
"""


def _run_probe(code: str) -> str:
    """Run a Python program in a new process; what went wrong in one line, or ""."""
    try:
        with tempfile.TemporaryDirectory(prefix="halfbyte-doctor-") as folder:
            path = Path(folder, "probe.py")
            path.write_text(code, encoding="utf-8")
            _output([sys.executable, str(path)])
    except (OSError, subprocess.SubprocessError) as error:
        return _first_line(error)
    return ""


def _output(command: list[str]) -> str:
    """Standard output of a program; raises OSError or SubprocessError."""
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S, errors="replace"
    )
    return done.stdout


def _first_line(error: BaseException) -> str:
    """The telling line of an error, at most 200 characters."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer in {error.timeout:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
        is_python = error.cmd[0] == sys.executable
        text = (lines[-1] if is_python else lines[0]) if lines else f"exit code {error.returncode}"
        return text.strip()[:200]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _cuda_available() -> bool:
    try:
        import torch

        return torch.cuda.is_available()
    except Exception:
        # check_torch reports a torch that cannot be imported.
        return False


def _has_hopper() -> bool:
    if not _cuda_available():
        return False
    import torch

    return any(
        torch.cuda.get_device_capability(index)[0] == 9
        for index in range(torch.cuda.device_count())
    )


def _has_nvidia_card() -> bool:
    """An NVIDIA display controller on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor = (device / "vendor").read_text().strip()
            if vendor == "0x10de" and (device / "class").read_text().startswith("0x03"):
                return True
    return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
