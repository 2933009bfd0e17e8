"""Clocks of the kernels that a decode step launches, as a compiler made them, recorded.

    python -m halfbyte.bench.kernels.predict_clocks          record them anew

They are played from the machine code (:mod:`halfbyte.kernels.codegen.clocks`), for the targets that
:mod:`.predict` has constants of, and kept beside the budgets, so that predicting compiles nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import triton

from halfbyte.errors import ConfigError

from ...kernels.codegen.clocks import loop_clocks, whole_clocks
from ...kernels.codegen.compile import compile_variant
from ...kernels.codegen.sass import main_span
from ...kernels.codegen.shipped import family_variants
from ...kernels.codegen.targets import target
from ...kernels.codegen.variant import Variant
from ...kernels.kind import MatrixSpec, carrier
from ...kernels.kinds import KINDS
from ..codegen_budget import FOLDER, minor
from .floors import BODY

CLOCK_TARGETS = ("sm_80", "sm_90")
"""Targets whose clocks are recorded."""

MOST_WARPS = 6
"""Warps of a quarter up to which a loop is played."""

_STEP = {
    "attention": ("decode g4 p64 d128 w2 s3 fp16",),
    "fused": ("add_rms_norm fp16 4096", "rope_write_kv fp16 h32 d128 r128"),
    "sampling": ("argmax fp16",),
}
_PRODUCT = " g128 zero "


@dataclass(frozen=True, slots=True)
class KernelClocks:
    """One compiled kernel.

    Attributes:
        kernel: dotted name, as of :class:`~halfbyte.kernels.codegen.variant.Variant`.
        config: its configuration.
        arch: name of the target.
        loop: clocks of one pass of the main loop with 1, 2, ... warps on a quarter; empty without
            a loop.
        whole: clocks of one warp that takes every instruction once.
        registers: of one thread.
        shared_bytes: of one program.
    """

    kernel: str
    config: str
    arch: str
    loop: tuple[int, ...]
    whole: int
    registers: int
    shared_bytes: int


def recorded_clocks(kernel: str, config: str, arch: str) -> KernelClocks:
    """What was recorded of a kernel. Raises ConfigError where nothing was."""
    for entry in json.loads(_path().read_text(encoding="utf-8"))["rows"]:
        if (entry["kernel"], entry["config"], entry["arch"]) == (kernel, config, arch):
            return KernelClocks(**entry | {"loop": tuple(entry["loop"])})
    raise ConfigError(
        f"no clocks of {kernel} | {config} | {arch} are recorded",
        hint="record them with: python -m halfbyte.bench.kernels.predict_clocks",
    )


def step_variants(arch: str) -> list[Variant]:
    """Variants that a decode step in fp16 with groups of 128 can launch on a target."""
    on = target(arch)
    found = [
        v
        for family, configs in _STEP.items()
        for v in family_variants(family, on)
        if f"{v.kernel} {v.config}" in [f"{family}.{config}" for config in configs]
    ]
    kind = carrier(KINDS, MatrixSpec(1, 1, BODY), on.arch).kind
    products = [v for v in kind.variants(on.arch) if _PRODUCT in v.config]
    words = ("bf16", "odd", "bias", "residual")
    return found + [v for v in products if not set(words) & set(v.config.split())]


def count_clocks(variant: Variant, arch: str) -> KernelClocks:
    """Compile a variant for a target and play it."""
    made = compile_variant(variant, target(arch))
    counts = range(1, MOST_WARPS + 1) if main_span(made.assembly) else ()
    loop = tuple(loop_clocks(made.assembly, warps) for warps in counts)
    whole = whole_clocks(made.assembly)
    return KernelClocks(
        *(variant.kernel, variant.config, arch, loop, whole, made.registers, made.shared_bytes)
    )


def _path() -> Path:
    return FOLDER / f"triton-{minor(triton.__version__)}" / "clocks.json"


def main() -> int:
    """Record all; the exit code."""
    rows = [count_clocks(v, arch) for arch in CLOCK_TARGETS for v in step_variants(arch)]
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    _path().write_text('{"rows": [\n' + lines + "\n]}\n", encoding="utf-8")
    print(f"wrote {_path()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
