"""GPUs by name: what a card can do, without it being there. Nothing here imports torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from halfbyte.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card.

    Attributes:
        name: as :func:`gpu` finds it.
        copy: bytes per second that a copy moves, reads and writes together.
        half: dense fp16 operations per second, fp32 accumulation.
        int8: dense int8 operations per second.
        l2: bytes of last-level cache.
        memory: bytes of device memory, as the driver reports them.
    """

    name: str
    copy: float
    half: float
    int8: float
    l2: int
    memory: int


def _gpu(name: str, copy: float, half: float, int8: float, l2: int, memory: int) -> Gpu:
    """From TB/s, TFLOP/s, TOP/s, MiB and MiB."""
    return Gpu(name, copy * 1e12, half * 1e12, int8 * 1e12, l2 << 20, memory << 20)


# Copy bandwidth is about 0.9 of the datasheet's figure, on HBM2e cards 0.86. A name that is part
# of another one's comes after it.
GPUS = (
    _gpu("H200", 4.3, 990, 1979, 50, 143771),
    _gpu("H100 PCIe", 1.8, 756, 1513, 50, 81559),
    _gpu("H100", 3.0, 990, 1979, 50, 81559),
    _gpu("A100 40GB", 1.35, 312, 624, 40, 40960),
    _gpu("A100", 1.75, 312, 624, 40, 81920),
    _gpu("B200", 7.2, 2250, 4500, 126, 183359),
    _gpu("L40S", 0.79, 362, 733, 96, 46068),
    _gpu("L4", 0.27, 121, 242, 48, 23034),
    _gpu("A10G", 0.54, 70, 140, 6, 23028),
    _gpu("A10", 0.54, 125, 250, 6, 23028),
    _gpu("A6000", 0.70, 155, 310, 6, 49140),
    _gpu("RTX 5090", 1.62, 209, 838, 96, 32607),
    _gpu("RTX 4090", 0.93, 165, 660, 72, 24564),
    _gpu("RTX 3090", 0.86, 71, 284, 6, 24576),
    _gpu("T4", 0.27, 65, 130, 4, 15360),
)


def gpu(name: str) -> Gpu:
    """The card that a name such as ``h100`` or ``NVIDIA A100-SXM4-80GB`` means.

    Raises ConfigError, with the nearest and all known names, for a card that is not listed.
    """
    wanted = _words(name)
    for card in GPUS:
        if set(_words(card.name)) <= set(wanted):
            return card
    squeezed = "".join(wanted)
    for card in GPUS:
        if "".join(_words(card.name)) == squeezed or _words(card.name)[-1] == squeezed:
            return card
    plain = {"".join(_words(card.name)): card.name for card in GPUS}
    near = difflib.get_close_matches(squeezed, sorted(plain, key=lambda n: (len(n), n)), 1, 0.5)
    meant = f"; did you mean {plain[near[0]]!r}?" if near else ""
    known = ", ".join(sorted(plain.values()))
    raise ConfigError(f"no GPU called {name!r:.60} is listed{meant}", hint=f"one of: {known}")


def _words(name: str) -> list[str]:
    return name.lower().replace("-", " ").replace("_", " ").split()
