"""Forms of the C kernels that need no more than AVX2: their further instructions are emulated.

:func:`cpu_support.using` takes them like any other form. See emulated.h.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cpu_support import ARM

from halfbyte.kernels.cpu.forms import FORMS, Form, available_forms

HEADERS = [Path(__file__).with_name(name) for name in ("emulated.h", "emulated_amx.h")]
_PREFIX = "emulated-"


class EmulatedForm(Form):
    """A form compiled for AVX2, with plain C in the place of what that lacks."""

    __slots__ = ()

    @property
    def real(self) -> Form:
        """The form that is emulated."""
        name = self.name.removeprefix(_PREFIX)
        return next(form for form in FORMS if form.name == name)

    @property
    def flags(self) -> tuple[str, ...]:
        version = hashlib.sha256(b"".join(path.read_bytes() for path in HEADERS)).hexdigest()
        return (
            *Form.flags.__get__(self),
            "-include",
            str(HEADERS[0]),
            f"-DEMULATE_{self.real.name.upper()}",
            f"-DEMULATED_VERSION={version[:16]}",  # a library of another header is another one
            "-O1",  # a third of the time of -O3
        )


def _emulated() -> list[EmulatedForm]:
    here = {form.name: form for form in available_forms()}
    if ARM or "avx2" not in here:
        return []
    avx2 = here["avx2"]
    names = ("amx", "vnni", "avx512", "avxvnni")
    return [EmulatedForm(_PREFIX + name, avx2.machines, avx2.needs) for name in names]


EMULATED = _emulated()
"""Best first; none where the processor has no AVX2."""
