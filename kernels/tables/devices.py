"""Devices by name: what the choice of a kernel depends on, without the device being there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from halfbyte.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as the rules see it.

    Attributes:
        name: for people.
        arch: compute capability such as 90.
        sms: multiprocessors.
    """

    name: str
    arch: int
    sms: int


# Multiprocessors as enabled in the product, from the vendor's architecture papers. The first
# device of a capability stands for it.
_DEVICES = (
    Device("A100", 80, 108),
    Device("A30", 80, 56),
    Device("RTX 3090", 86, 82),
    Device("RTX 3090 Ti", 86, 84),
    Device("RTX 3080", 86, 68),
    Device("RTX A6000", 86, 84),
    Device("A40", 86, 84),
    Device("A10", 86, 72),
    Device("RTX 4090", 89, 128),
    Device("RTX 4080", 89, 76),
    Device("L40S", 89, 142),
    Device("L40", 89, 142),
    Device("L4", 89, 58),
    Device("H100", 90, 132),
    Device("H100 PCIe", 90, 114),
    Device("H200", 90, 132),
    Device("GH200", 90, 132),
    Device("B200", 100, 148),
    Device("RTX 5090", 120, 170),
    Device("RTX 5080", 120, 84),
    Device("RTX PRO 6000", 120, 188),
)


def find_device(name: str) -> Device:
    """A device by product name or capability: ``sm_90``, ``sm90``, ``H100``, ``rtx-4090``.

    Raises ConfigError with the known names.
    """
    wanted = _plain(name)
    for device in _DEVICES:
        if wanted in (_plain(device.name), f"sm{device.arch}"):
            return device
    names = ", ".join([*dict.fromkeys(f"sm_{d.arch}" for d in _DEVICES), *_names()])
    raise ConfigError(f"unknown device {name!r:.60}", hint=f"known: {names}")


def _names() -> list[str]:
    return [d.name for d in _DEVICES]


def _plain(name: str) -> str:
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^(nvidia|geforce|tesla|rtx)+|sxm\d?$", "", text)
