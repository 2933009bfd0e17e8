"""Forms of the C kernels: which instructions the compiler may use, and which this processor has.

A library is compiled for a form by name, never for "this processor": its file may lie in a cache
that other machines share, and it runs on every processor that has what the form needs.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import ConfigError

VARIABLE = "HALFBYTE_ISA"
NONE = "none"

_AVX2 = ("avx2", "fma", "f16c", "bmi1", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = (*_AVX512, "avx512_vnni")
_AMX = (*_VNNI, "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_AVXVNNI = (*_AVX2, "avx_vnni")
# The dot product, and what the compiler may use besides: all of Armv8.1 that Linux lists and code
# compiled for it has.
_DOTPROD = ("atomics", "asimdrdm", "asimddp")
_I8MM = (*_DOTPROD, "i8mm")
# Names of the kernel that compilers spell in another way.
_SPELLING = {
    "bmi1": "bmi",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx_vnni": "avxvnni",
}
_X86 = frozenset(("x86_64", "AMD64"))
_ARM = frozenset(("aarch64", "arm64"))


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compile the kernels.

    Attributes:
        name: as HALFBYTE_ISA says it.
        machines: what ``platform.machine()`` may be; empty = anything.
        needs: features of the processor, as /proc/cpuinfo names them.
        arch: what -march is given, where features have no flags of their own.
    """

    name: str
    machines: frozenset[str]
    needs: tuple[str, ...] = ()
    arch: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Compiler flags that allow the form's instructions."""
        if self.arch:
            return (f"-march={self.arch}",)
        return tuple("-m" + _SPELLING.get(need, need).replace("_", "-") for need in self.needs)


# Best first. What every processor of a kind has comes last: ``neon`` or ``plain``.
FORMS = (
    Form("amx", _X86, _AMX),
    Form("vnni", _X86, _VNNI),
    Form("avx512", _X86, _AVX512),
    Form("avxvnni", _X86, _AVXVNNI),
    Form("avx2", _X86, _AVX2),
    Form("i8mm", _ARM, _I8MM, "armv8.2-a+dotprod+i8mm"),
    Form("dotprod", _ARM, _DOTPROD, "armv8.2-a+dotprod"),
    Form("neon", _ARM),
    Form("plain", frozenset()),
)


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Features of the first processor as Linux names them; empty where that cannot be read."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def available_forms(
    machine: str | None = None, features: frozenset[str] | None = None
) -> list[Form]:
    """Forms that a processor has, best first; by default those of this one."""
    machine = platform.machine() if machine is None else machine
    features = cpu_features() if features is None else features
    found: list[Form] = []
    for form in FORMS:
        if (not form.machines or machine in form.machines) and features.issuperset(form.needs):
            found.append(form)
            if not form.needs:
                break  # what every processor of this kind has: anything after it is the same
    return found


def chosen_forms(environ: Mapping[str, str] = os.environ) -> list[Form]:
    """Forms to try, best first: the one that HALFBYTE_ISA names, or all that this processor has.

    Empty for ``none``.

    Raises:
        ConfigError: the variable names a form that is unknown, or that this processor lacks.
    """
    here = available_forms()
    wanted = environ.get(VARIABLE, "")
    if not wanted:
        return here
    if wanted == NONE:
        return []
    found = [form for form in here if form.name == wanted]
    if found:
        return found
    can = ", ".join([*(form.name for form in here), NONE])
    known = {form.name: form for form in FORMS}.get(wanted)
    if known is None:
        problem = "which is no form of the kernels"
    elif known.machines and platform.machine() not in known.machines:
        problem = f"which is not for {platform.machine()}"
    else:
        lacks = [need for need in known.needs if need not in cpu_features()]
        problem = f"but this processor lacks {', '.join(lacks)}"
    raise ConfigError(
        f"{VARIABLE} is {wanted!r:.60}, {problem}",
        hint=f"here it can be {can}; without it the best form is taken",
    )
