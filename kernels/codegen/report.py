"""Figures of one compiled variant, the limits of its target, and the comparison with a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .compile import compile_variant
from .sass import Loop, main_loop, whole
from .targets import CompileTarget, target
from .variant import Variant

SLACK = 0.03
"""Share by which instructions and registers may exceed the budget."""

BUDGET_FIELDS = (
    "registers",
    "shared_bytes",
    "loop_instructions",
    "instructions_per_weight",
    "i2f",
    "sts",
    "tensor_core",
    "wgmma_waits",
    "fences",
    "membars",
)
"""What a committed budget records of a :class:`VariantRow`."""


@dataclass(frozen=True, slots=True)
class VariantRow:
    """What one variant became on one target.

    Attributes:
        kernel: see :class:`Variant`.
        config: see :class:`Variant`.
        arch: name of the target.
        triton: version of Triton.
        registers: registers of one thread.
        spill_bytes: bytes of registers kept in local memory.
        shared_bytes: shared memory of one program.
        loop_instructions: instructions in the main loop, 0 without a loop.
        instructions_per_weight: the same per unit of work of one lane (:attr:`Variant.unit`).
        i2f: integer-to-float conversions in the loop.
        sts: stores to shared memory in the loop, other than asynchronous copies.
        ldgsts: asynchronous copies to shared memory in the loop.
        bar: barriers in the loop.
        tensor_core: matrix opcodes in the loop, e.g. ``HMMA:32``.
        wgmma_waits: waits of the loop for products of warp groups.
        fences: fences of the loop between the threads' accesses and the asynchronous ones.
        membars: memory barriers of the loop, and those of the whole kernel that reach beyond the
            program.
        conversions: layout conversions in the whole kernel.
        warps: warps of one program.
    """

    kernel: str
    config: str
    arch: str
    triton: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    loop_instructions: int
    instructions_per_weight: float
    i2f: int
    sts: int
    ldgsts: int
    bar: int
    tensor_core: str
    wgmma_waits: int
    fences: int
    membars: int
    conversions: int
    warps: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def budget(self) -> dict[str, Any]:
        """The figures that a budget records; spills only where there are some."""
        figures = {name: getattr(self, name) for name in BUDGET_FIELDS}
        return figures | ({"spill_bytes": self.spill_bytes} if self.spill_bytes else {})


def measure(variant: Variant, on: CompileTarget) -> VariantRow:
    """Compile one variant for one target and count."""
    import triton

    compiled = compile_variant(variant, on)
    loop = main_loop(compiled.assembly)
    size = loop.instructions if loop else 0
    return VariantRow(
        kernel=variant.kernel,
        config=variant.config,
        arch=on.name,
        triton=triton.__version__,
        registers=compiled.registers,
        spill_bytes=compiled.spill_bytes,
        shared_bytes=compiled.shared_bytes,
        loop_instructions=size,
        instructions_per_weight=round(size / variant.unit, 3) if variant.unit else 0.0,
        i2f=loop.count("I2F", "v_cvt_f32_i32", "v_cvt_f32_u32", "v_cvt_f32_ubyte") if loop else 0,
        sts=loop.count("STS", "ds_write", "ds_store") if loop else 0,
        ldgsts=loop.count("LDGSTS", "UBLKCP", "UTMALDG") if loop else 0,
        bar=loop.count("BAR", "s_barrier") if loop else 0,
        tensor_core=loop.tensor_core if loop else "",
        wgmma_waits=loop.count("WARPGROUP.DEPBAR") if loop else 0,
        fences=loop.count("FENCE.") if loop else 0,
        membars=barriers(compiled.assembly, loop),
        conversions=compiled.conversions,
        warps=variant.num_warps,
    )


def barriers(assembly: str, loop: Loop | None) -> int:
    """Memory barriers of the loop, and those anywhere that reach beyond the program."""
    far = [op for op in whole(assembly).opcodes.elements() if _is_far(op)]
    near = loop.count("MEMBAR") - sum(_is_far(op) for op in loop.opcodes.elements()) if loop else 0
    return len(far) + near


def _is_far(opcode: str) -> bool:
    return opcode.startswith("MEMBAR") and not opcode.endswith(".CTA")


def over_limits(row: VariantRow, spill_bytes: int = 0) -> list[str]:
    """What no configuration may do, budget or not: spill, or exceed its target's memory.

    Args:
        row: figures of a variant.
        spill_bytes: spills that are known of an older compiler and granted by its budget.
    """
    limit = target(row.arch).shared_limit
    problems = []
    if row.spill_bytes > spill_bytes:
        problems.append(f"spills {row.spill_bytes} bytes of registers")
    if row.shared_bytes > limit:
        problems.append(f"shared memory {row.shared_bytes} bytes, {row.arch} has {limit}")
    return problems


def over_budget(row: VariantRow, budget: Mapping[str, Any]) -> list[str]:
    """Figures that are worse than the budget by more than the slack."""
    problems = []
    for name in ("registers", "loop_instructions"):
        allowed = math.floor(budget[name] * (1 + SLACK) + 1e-9)
        if getattr(row, name) > allowed:
            problems.append(f"{name} {getattr(row, name)}, budget {budget[name]}")
    # The last three are younger than the budgets of older compilers.
    for name in ("i2f", "sts", "shared_bytes", "wgmma_waits", "fences", "membars"):
        if name in budget and getattr(row, name) > budget[name]:
            problems.append(f"{name} {getattr(row, name)}, budget {budget[name]}")
    if bool(row.tensor_core) < bool(budget["tensor_core"]):
        problems.append(f"no tensor-core instruction in the loop, budget {budget['tensor_core']}")
    return problems
