"""The targets that every shipped kernel is compiled for, and what each of them allows."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.errors import ConfigError

from ..device.gpus import gpu


@dataclass(frozen=True, slots=True)
class CompileTarget:
    """One compilation target.

    Attributes:
        name: ``sm_90``, ``gfx942``, ...
        backend: Triton's name of the vendor, ``cuda`` or ``hip``.
        arch: compute capability for :func:`variants`; 0 where there is none.
        warp_size: lanes of a warp.
        shared_limit: bytes of shared memory that one program may have.
    """

    name: str
    backend: str
    arch: int
    warp_size: int
    shared_limit: int


# Opt-in limits per block of the CUDA programming guide; LDS of CDNA3 for gfx942.
TARGETS: dict[str, CompileTarget] = {
    t.name: t
    for t in (
        CompileTarget("sm_80", "cuda", 80, 32, 163 << 10),
        CompileTarget("sm_86", "cuda", 86, 32, 99 << 10),
        CompileTarget("sm_89", "cuda", 89, 32, 99 << 10),
        CompileTarget("sm_90", "cuda", 90, 32, 227 << 10),
        CompileTarget("sm_100", "cuda", 100, 32, 227 << 10),
        CompileTarget("sm_120", "cuda", 120, 32, 99 << 10),
        CompileTarget("gfx942", "hip", 0, 64, 64 << 10),
    )
}


def target(name: str) -> CompileTarget:
    """The target of that name, or of the GPU of that name. Raises ConfigError, listing all."""
    if name in TARGETS:
        return TARGETS[name]
    known = f"known: {', '.join(TARGETS)}"
    try:
        card = gpu(name)
    except ConfigError as error:
        raise ConfigError(f"unknown architecture {name!r}; {known}", hint=error.hint) from None
    if (wanted := f"sm_{card.arch}") not in TARGETS:
        raise ConfigError(f"{card.name} is {wanted}, which no kernel is compiled for; {known}")
    return TARGETS[wanted]
