"""GPUs by name: what a card can do, without it being there. Nothing here imports torch."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from halfbyte.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as the rules that choose kernels see it.

    Attributes:
        name: for people.
        arch: compute capability such as 90.
        sms: multiprocessors.
    """

    name: str
    arch: int
    sms: int


@dataclass(frozen=True, slots=True)
class Gpu(Device):
    """One card.

    Attributes:
        copy: bytes per second that a copy moves, reads and writes together.
        half: dense fp16 operations per second, fp32 accumulation.
        int8: dense int8 operations per second.
        l2: bytes of last-level cache.
        memory: bytes of device memory, as the driver reports them.
    """

    copy: float
    half: float
    int8: float
    l2: int
    memory: int


def _gpu(
    name: str, arch: int, sms: int, copy: float, half: float, int8: float, l2: int, memory: int
) -> Gpu:
    """From TB/s, TFLOP/s, TOP/s, MiB and MiB."""
    return Gpu(name, arch, sms, copy * 1e12, half * 1e12, int8 * 1e12, l2 << 20, memory << 20)


# Multiprocessors as enabled in the product, rates and caches from the vendor's architecture papers
# and datasheets. Copy bandwidth is about 0.9 of the datasheet's figure, on HBM2e cards 0.86. The
# first card of a capability stands for it.
GPUS = (
    _gpu("T4", 75, 40, 0.27, 65, 130, 4, 15360),
    _gpu("A100", 80, 108, 1.75, 312, 624, 40, 81920),
    _gpu("A100 40GB", 80, 108, 1.35, 312, 624, 40, 40960),
    _gpu("A30", 80, 56, 0.80, 165, 330, 24, 24576),
    _gpu("RTX 3090", 86, 82, 0.86, 71, 284, 6, 24576),
    _gpu("RTX 3090 Ti", 86, 84, 0.93, 80, 320, 6, 24564),
    _gpu("RTX 3080", 86, 68, 0.70, 59.5, 238, 5, 10240),
    _gpu("RTX A6000", 86, 84, 0.70, 155, 310, 6, 49140),
    _gpu("A40", 86, 84, 0.63, 150, 299, 6, 46068),
    _gpu("A10", 86, 72, 0.54, 125, 250, 6, 23028),
    _gpu("A10G", 86, 80, 0.54, 70, 140, 6, 23028),
    _gpu("RTX 4090", 89, 128, 0.93, 165, 660, 72, 24564),
    _gpu("RTX 4080", 89, 76, 0.66, 97.5, 390, 64, 16376),
    _gpu("L40S", 89, 142, 0.79, 362, 733, 96, 46068),
    _gpu("L40", 89, 142, 0.79, 181, 362, 96, 46068),
    _gpu("L4", 89, 58, 0.27, 121, 242, 48, 23034),
    _gpu("H100", 90, 132, 3.0, 990, 1979, 50, 81559),
    _gpu("H100 PCIe", 90, 114, 1.8, 756, 1513, 50, 81559),
    _gpu("H100 NVL", 90, 132, 3.5, 835, 1671, 50, 95830),
    _gpu("H200", 90, 132, 4.3, 990, 1979, 50, 143771),
    _gpu("GH200", 90, 132, 3.6, 990, 1979, 50, 97871),
    _gpu("B200", 100, 148, 7.2, 2250, 4500, 126, 183359),
    _gpu("RTX 5090", 120, 170, 1.62, 209, 838, 96, 32607),
    _gpu("RTX 5080", 120, 84, 0.88, 113, 450, 64, 16303),
    _gpu("RTX PRO 6000", 120, 188, 1.62, 504, 1008, 128, 97887),
)
# Words that make another card of a name: an RTX 4080 SUPER is no RTX 4080.
_OTHER = {"ti", "super", "laptop"}


def gpu(name: str) -> Gpu:
    """The card that a name such as ``h100``, ``NVIDIA A100-SXM4-80GB`` or ``sm_90`` means.

    What the driver calls a card, its product name in any spelling, or a compute capability, for
    which its first card stands. Raises ConfigError, with the nearest and all known names, for a
    card that is not listed.
    """
    wanted, plain = set(_words(name)), _plain(name)
    for card in GPUS:
        if plain in (_plain(card.name), f"sm{card.arch}"):
            return card
    found = [c for c in GPUS if set(_words(c.name)) <= wanted]
    card = max(found, key=lambda c: len(_words(c.name)), default=None)
    if card is not None and not _OTHER & (wanted - set(_words(card.name))):
        return card
    archs = dict.fromkeys(f"sm_{card.arch}" for card in GPUS)
    known = [*archs, *(card.name for card in GPUS)]
    squeezed = {"".join(_words(k)): k for k in sorted(known, key=lambda k: (len(k), k))}
    near = difflib.get_close_matches("".join(_words(name)), squeezed, 1, 0.5)
    meant = f"; did you mean {squeezed[near[0]]!r}?" if near else ""
    raise ConfigError(
        f"unknown device {name!r:.60}: no GPU called {name!r:.60} is listed{meant}",
        hint=f"one of: {', '.join(known)}",
    )


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", name.lower())


def _plain(name: str) -> str:
    """A name without what vendors and forms add to it."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|geforce|tesla|rtx)+|sxm\d?$", "", text)
