"""Compile a :class:`Variant` for a target that need not be present.

Needs a process without ``TRITON_INTERPRET``: there ``triton.jit`` makes interpreted functions.
Triton keeps what it compiled in its own cache on disk, keyed by source, options and target.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from .targets import CompileTarget
from .variant import Variant

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_AMD_FIELDS = {
    "registers": re.compile(r"^; NumVgprs: (\d+)", re.M),
    "spills": re.compile(r"\.vgpr_spill_count:\s+(\d+)"),
    "scratch": re.compile(r"^; ScratchSize: (\d+)", re.M),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of one variant.

    Attributes:
        assembly: SASS with its encoding for NVIDIA targets, AMDGCN assembly for AMD's.
        registers: registers of one thread (vector registers on AMD).
        spill_bytes: bytes of registers that one thread keeps in local memory.
        shared_bytes: shared memory of one program.
        conversions: layout conversions left in Triton's own last form.
    """

    assembly: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    conversions: int


def compile_variant(variant: Variant, target: CompileTarget) -> Compiled:
    """Compile for ``target``. Errors of the compiler pass through."""
    names = variant.fn.arg_names
    constants = dict(variant.constants)
    missing = [n for n in names if n not in constants and n not in variant.signature]
    surplus = [n for n in (*constants, *variant.signature, *variant.divisible) if n not in names]
    if missing or surplus:
        raise ValueError(
            f"{variant.kernel} {variant.config}: arguments {missing} have neither type nor value, "
            f"{surplus} do not exist"
        )
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in variant.divisible}
    signature = {n: "constexpr" if n in constants else variant.signature[n] for n in names}
    source = ASTSource(fn=variant.fn, signature=signature, constexprs=constants, attrs=attributes)  # type: ignore[arg-type]
    arch: Any = target.arch if target.backend == "cuda" else target.name
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    kernel: Any = triton.compile(
        source, target=GPUTarget(target.backend, arch, target.warp_size), options=options
    )
    conversions = kernel.asm["ttgir"].count("ttg.convert_layout")
    read = _read_nvidia if target.backend == "cuda" else _read_amd
    assembly, registers, spills = read(kernel, target)
    return Compiled(assembly, registers, spills, int(kernel.metadata.shared), conversions)


def _read_nvidia(kernel: Any, target: CompileTarget) -> tuple[str, int, int]:
    """(SASS, registers, spill bytes) by the tools that come with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        sass = _run("nvdisasm", "-c", "-hex", str(cubin))
        usage = _USAGE.search(_run("cuobjdump", "-res-usage", str(cubin)))
        assert usage is not None, "cuobjdump printed no register count"
        registers, stack = int(usage[1]), int(usage[2])
        spills = 0
        if stack:
            # The stack also holds local arrays of library functions; only ptxas tells them apart.
            ptx = Path(folder) / "kernel.ptx"
            ptx.write_text(kernel.asm["ptx"])
            suffix = "a" if target.arch >= 90 else ""
            # Which of its two assemblers Triton takes differs between its versions.
            tool = get_ptxas(target.arch).path
            log = _run(
                tool, "-v", f"--gpu-name={target.name}{suffix}", "-o", f"{ptx}.out", str(ptx)
            )
            found = _SPILLS.search(log)
            spills = max(int(found[1]), int(found[2])) if found else stack
    return sass, registers, spills


def _read_amd(kernel: Any, target: CompileTarget) -> tuple[str, int, int]:
    """(assembly, vector registers, spill bytes) from the comments of the assembler text."""
    text = kernel.asm["amdgcn"]
    found = {name: pattern.search(text) for name, pattern in _AMD_FIELDS.items()}
    counts = {name: int(m[1]) if m else 0 for name, m in found.items()}
    return text, counts["registers"], 4 * counts["spills"] if counts["scratch"] else 0


def _run(tool: str, *args: str) -> str:
    """Output of a tool that came with Triton, given by name or path."""
    assert triton.__file__ is not None
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    done = subprocess.run([str(path), *args], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr
