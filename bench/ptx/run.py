"""Running variants in the interpreter: what came of each, and whether it was the one that ships."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from ...kernels.codegen.emulate import EmulationOptions
from ...kernels.codegen.launcher import EmulatedKernel, Emulation, PtxEdit
from ...kernels.codegen.shipped import families, family_cases, family_variants
from ...kernels.codegen.targets import CompileTarget, target
from ...kernels.codegen.variant import Variant

EMULATED_ARCHS = ("sm_80", "sm_90")
"""Targets whose instructions the interpreter knows."""

_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


@dataclass(frozen=True, slots=True)
class PtxJob:
    """One variant on one target, by names that another process can look up.

    Attributes:
        kernel: the variant's dotted kernel name.
        config: the variant's configuration.
        arch: target, such as ``sm_90``.
        seed: of inputs and interleaving.
        edits: changes of the PTX of the variant's own kernel.
        options: of :class:`~halfbyte.kernels.codegen.emulate.EmulationOptions`.
    """

    kernel: str
    config: str
    arch: str
    seed: int
    edits: Sequence[PtxEdit] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PtxJob:
        """Inverse of :meth:`to_dict`."""
        edits = [
            PtxEdit(e["pattern"], e["replacement"], tuple(e["where"])) for e in values["edits"]
        ]
        return cls(**{**values, "edits": edits})


@dataclass(frozen=True, slots=True)
class PtxRow:
    """What came of one job.

    Attributes:
        kernel: see :class:`PtxJob`.
        config: see :class:`PtxJob`.
        arch: see :class:`PtxJob`.
        seed: see :class:`PtxJob`.
        problem: what is wrong, empty when nothing is.
        worst: the largest error in terms of what is allowed.
        covered: the launch was this very variant; else the problem says how it differs.
        edited: places of the PTX that edits changed.
        seconds: of compiling, running and comparing.
        triton: version of Triton.
        conflicts: wavefronts of shared memory for each one that is needed without conflicts of
            banks; 1 where nothing is shared.
        worst_conflicts: the same of the instruction with most of them.
        sector_use: share of the bytes of global memory that were moved and asked for.
    """

    kernel: str
    config: str
    arch: str
    seed: int
    problem: str
    worst: float
    covered: bool
    edited: int
    seconds: float
    triton: str
    conflicts: float
    worst_conflicts: float
    sector_use: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def ptx_jobs(archs: Sequence[str], kernels: Sequence[str], seed: int) -> list[PtxJob]:
    """A job for every shipped variant whose kernel has one of the prefixes (none = all)."""
    return [
        PtxJob(v.kernel, v.config, arch, seed)
        for arch in archs
        for family in families()
        for v in family_variants(family, target(arch))
        if not kernels or any(f"{v.kernel}.".startswith(f"{k}.") for k in kernels)
    ]


def run_job(job: PtxJob) -> PtxRow:
    """Run one job, and once more where the second call meets the counters of the first."""
    on = target(job.arch)
    family, variant = _variant(job, on)
    start = time.perf_counter()
    options = EmulationOptions(**job.options)
    edits = {variant.fn.__name__: job.edits}
    emulation = Emulation(on, seed=job.seed, edits=edits, options=options)
    rng = torch.Generator().manual_seed(job.seed)
    worst, problem = 0.0, ""
    try:
        call = family_cases(family)[variant.kernel](variant, emulation, rng)
        with emulation:
            checks = list(call())
            if any("count_ptr" in launch.kernel.signature for launch in emulation.launches):
                checks += call()
        worst = max(check.share for check in checks)
        problem = "; ".join(
            f"{check.name} is wrong by {check.share:.3g} times what is allowed"
            for check in checks
            if not check.holds
        )
    # Faults, and the compiler's errors of many types: one must not hide the other rows.
    except Exception as fault:
        problem = f"{type(fault).__name__}: {str(fault).strip()[:2000]}"
    differences = [
        differences_of(launch.kernel, variant, on)
        for launch in emulation.launches
        if launch.kernel.fn is variant.fn
    ]
    covered = [] in differences
    if not problem and not covered:
        problem = "launched another variant: " + ", ".join(
            min(differences, key=len, default=["none"])
        )
    accesses = [
        one
        for launch in emulation.launches
        if launch.kernel.fn is variant.fn
        for one in launch.counts.by_line.values()
    ]
    return PtxRow(
        *(job.kernel, job.config, job.arch, job.seed, problem, worst, covered),
        edited=emulation.edited,
        seconds=round(time.perf_counter() - start, 2),
        triton=triton.__version__,
        conflicts=_share(sum(a.wavefronts for a in accesses), sum(a.ideal for a in accesses)),
        worst_conflicts=max((_share(a.wavefronts, a.ideal) for a in accesses), default=1.0),
        sector_use=_share(sum(a.used for a in accesses), 32 * sum(a.sectors for a in accesses)),
    )


def _share(part: int, whole: int) -> float:
    return round(part / whole, 3) if whole else 1.0


def differences_of(kernel: EmulatedKernel, variant: Variant, on: CompileTarget) -> list[str]:
    """How a launched kernel is not a variant; types of arguments that it never reads apart."""
    found = [
        f"{name} is {kernel.constants.get(name)!r} for {value!r}"
        for name, value in variant.constants.items()
        if kernel.constants.get(name) != value
    ]
    loaded = _loaded(kernel)
    for name, kind in variant.signature.items():
        launched = kernel.signature.get(name)
        if launched == "constexpr":
            found.append(f"{name} became a constant")
        elif name in loaded:
            if launched != kind:
                found.append(f"{name} is {launched} for {kind}")
            if (name in kernel.divisible) != (name in variant.divisible):
                found.append(f"{name} {'' if name in kernel.divisible else 'not '}divisible by 16")
    backend: Any = make_backend(GPUTarget(on.backend, on.arch, on.warp_size))
    given = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    wanted = backend.parse_options({**given, **variant.options}).__dict__
    found += [
        f"{name} is {kernel.options.get(name)} for {wanted[name]}"
        for name in _OPTIONS
        if kernel.options.get(name) != wanted[name]
    ]
    return found


def _loaded(kernel: EmulatedKernel) -> set[str]:
    """Arguments that the code reads, besides naming them as its parameters."""
    names = [name for name, kind in kernel.signature.items() if kind != "constexpr"]
    named = Counter(int(number) for number in re.findall(r"_param_(\d+)\b", kernel.ptx))
    return {name for i, name in enumerate(names) if named[i] > 1}


def _variant(job: PtxJob, on: CompileTarget) -> tuple[str, Variant]:
    """(family, variant) of a job."""
    family = next(f for f in families() if f"{job.kernel}.".startswith(f"{f}."))
    name = job.kernel, job.config
    return family, next(v for v in family_variants(family, on) if (v.kernel, v.config) == name)
