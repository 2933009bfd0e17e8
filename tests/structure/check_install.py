"""What a user without any configuration gets: ``make check-install``.

Resolves the requirements for every Python and platform that ``pyproject.toml`` promises, builds
the source distribution and the wheel, looks at what is in them, installs each in an environment
of its own kind, and lets the installed program generate text in a folder of its own. Everything
runs under an empty configuration of pip and uv: of the environment only certificates, proxies and
folders of caches stay. On Linux torch's usual build is gigabytes large; ``--torch-index`` takes
torch from another index, as ``make TORCH_INDEX=`` does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from distribution import pins, sdist_problems, wheel_problems
from source_tree import ROOT, tracked

# uv's name -> what else it must know. macOS 14 is the oldest that torch's wheels run on.
PLATFORMS = {
    "x86_64-manylinux_2_28": {},
    "aarch64-manylinux_2_28": {},
    "aarch64-apple-darwin": {"MACOSX_DEPLOYMENT_TARGET": "14.0"},
}
# What structured output and the development extra need besides: llguidance's wheels are for glibc
# 2.31, of Debian 11 and Ubuntu 20.04.
PINNED = {
    "x86_64-manylinux_2_28": "x86_64-manylinux_2_31",
    "aarch64-manylinux_2_28": "aarch64-manylinux_2_31",
}
SETTINGS = ("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "CONDA")
KEPT = ("PIP_CERT", "PIP_CACHE_DIR", "UV_CACHE_DIR", "UV_NATIVE_TLS")
SHOWN = ("torch", "triton", "numpy", "transformers")


class CheckError(Exception):
    """What a user would have met."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """One resolution: versions by project, or why there is none.

    Attributes:
        versions: normal project name to version.
        problem: uv's message; empty when everything was found.
    """

    versions: dict[str, str]
    problem: str


def clean_environment() -> dict[str, str]:
    """This process's environment without any setting of pip, uv or Python."""
    kept = {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(SETTINGS)}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}


def run(*command: str | Path, cwd: Path, extra: dict[str, str] | None = None) -> str:
    """Standard output of a command under the clean environment. Raises CheckError."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment() | (extra or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shown = " ".join(str(part) for part in command)
        raise CheckError(f"{shown}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def promised_pythons() -> list[str]:
    """The versions of Python that the classifiers name, such as ``3.11``; the floor first.

    Raises CheckError when the first of them is not the floor of ``requires-python``.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lead = "Programming Language :: Python :: 3."
    minors = sorted(int(c.removeprefix(lead)) for c in project["classifiers"] if c.startswith(lead))
    if project["requires-python"] != f">=3.{minors[0]}":
        raise CheckError(
            f"requires-python {project['requires-python']}, classifiers from 3.{minors[0]}"
        )
    return [f"3.{minor}" for minor in minors]


def resolve(uv: str, python: str, platform: str, pinned: bool) -> Resolved:
    """The versions that an install from wheels alone would take.

    Args:
        uv: the program.
        python: version such as ``3.11``.
        platform: a key of :data:`PLATFORMS`.
        pinned: with ``constraints.txt`` and all for development, else the ranges alone.
    """
    command = [uv, "pip", "compile", "pyproject.toml", "--quiet", "--no-annotate", "--no-header"]
    target = PINNED.get(platform, platform) if pinned else platform
    command += ["--python-platform", target, "--python-version", python]
    command += ["--only-binary", ":all:"]
    if pinned:
        command += ["--constraint", "constraints.txt", "--extra", "dev", "--extra", "release"]
    try:
        text = run(*command, cwd=ROOT, extra=PLATFORMS[platform])
    except CheckError as error:
        return Resolved({}, str(error))
    return Resolved(pins(text), "")


def check_resolutions(uv: str) -> list[str]:
    """Print a table of every resolution; what failed, one message each."""
    print(
        f"{'python':7}{'platform':24}{'':9}{'packages':>9}  " + " ".join(f"{n:14}" for n in SHOWN)
    )
    problems = []
    for python in promised_pythons():
        for platform in PLATFORMS:
            for pinned in (False, True):
                found = resolve(uv, python, platform, pinned)
                cells = [found.versions.get(name, "-") for name in SHOWN]
                what = "pins" if pinned else "ranges"
                count = len(found.versions) or "FAILED"
                shown = PINNED.get(platform, platform) if pinned else platform
                print(f"{python:7}{shown:24}{what:9}{count:>9}  ", end="")
                print(" ".join(f"{cell:14}" for cell in cells), flush=True)
                if found.problem:
                    problems.append(f"{python}, {platform}, {what}: {found.problem}")
    return problems


def build(uv: str, work: Path) -> tuple[Path, Path]:
    """Source distribution, and the wheel built from it. Raises CheckError when files are wrong."""
    tree, out = work / "tree", work / "dist"
    for path in tracked():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tree / path)
    run(uv, "build", "--quiet", "--out-dir", out, tree, cwd=work)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    problems = [f"{sdist.name}: {p}" for p in sdist_problems(sdist)]
    problems += [f"{wheel.name}: {p}" for p in wheel_problems(wheel)]
    if problems:
        raise CheckError("\n".join(problems))
    for path in (sdist, wheel):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, files as expected", flush=True)
    return sdist, wheel


def install(uv: str, wheel: Path, work: Path, torch_index: str) -> Path:
    """A fresh environment with the wheel in it; its Python."""
    place, began = work / "environment", time.monotonic()
    # With pip, which `halfbyte pull` uses for models that are packages.
    run(uv, "venv", "--quiet", "--seed", "--python", sys.executable, place, cwd=work)
    python = place / "bin" / "python"
    pip = (uv, "pip", "install", "--quiet", "--python", python)
    pip = (*pip, "--constraint", ROOT / "constraints.txt")
    if torch_index:
        run(*pip, "--no-deps", "--index-url", torch_index, "torch", cwd=work)
    run(*pip, wheel, cwd=work)
    run(uv, "pip", "check", "--quiet", "--python", python, cwd=work)
    # Files are linked from uv's cache where that is possible, so this is no use of the disk.
    size = sum(f.lstat().st_size for f in place.rglob("*") if f.is_file())
    print(f"installed: {size / 1e6:.0f} MB in {time.monotonic() - began:.0f} s", flush=True)
    return python


def generate(python: Path, work: Path) -> None:
    """Let the installed program write text in an empty folder. Raises CheckError."""
    elsewhere = work / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    program = python.with_name("halfbyte")
    where = run(python, "-c", "import halfbyte; print(halfbyte.__file__)", cwd=elsewhere).strip()
    if not Path(where).resolve().is_relative_to(python.parents[1].resolve()):
        raise CheckError(f"the environment imports {where}")
    run(program, "pull", "smollm2", cwd=elsewhere)
    prompt = "The three primary colours are"
    text = run(
        *(program, "generate", prompt, "-m", "smollm2"),
        *("--max-tokens", "16", "--temperature", "0"),
        cwd=elsewhere,
    )
    if not text.strip():
        raise CheckError("halfbyte generate wrote nothing")
    print(f"generated: {text.strip()!r}", flush=True)


def installed_files(python: Path, work: Path) -> set[str]:
    """Paths that the environment's record of Halfbyte names."""
    code = "from importlib.metadata import files; print(*files('halfbyte'), sep='\\n')"
    listed = run(python, "-c", code, cwd=work).splitlines()
    return {f for f in listed if f.startswith("halfbyte/") and not f.endswith(".pyc")}


def main() -> int:
    """Every check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--torch-index", default="", metavar="URL", help="index that has torch")
    args = parser.parse_args()
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        parser.error("uv is missing: pip install uv")
    with tempfile.TemporaryDirectory(prefix="halfbyte-install-") as folder:
        work = Path(folder)
        try:
            if problems := check_resolutions(uv):
                raise CheckError("\n".join(problems))
            sdist, wheel = build(uv, work)
            python = install(uv, wheel, work, args.torch_index)
            generate(python, work)
            from_wheel = installed_files(python, work)
            again = ("--quiet", "--python", python, "--no-deps", "--reinstall")
            run(uv, "pip", "install", *again, sdist, cwd=work)
            if installed_files(python, work) != from_wheel:
                raise CheckError("the source distribution installs other files than the wheel")
            generate(python, work)
        except CheckError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("check-install: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
