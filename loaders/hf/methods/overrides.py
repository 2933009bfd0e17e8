"""How each module is quantized, by the config: defaults, and overrides for some modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from halfbyte.errors import UnsupportedModelError

from ...files.fields import Fields, shown
from ...files.name_patterns import Patterns

# From here on a "quantized" weight is a plain one.
PLAIN_BITS = 16


@dataclass(frozen=True, slots=True)
class Said:
    """What a config says about a module; the tensors are checked against it.

    Attributes:
        bits: bits of a code, or None when not said.
        group: columns that share a scale, -1 for all of them, or None when not said.
        sym: all zero points are the middle code.
        quantized: False when the module is said to be stored plain.
    """

    bits: int | None = None
    group: int | None = None
    sym: bool = True
    quantized: bool = True


class Overrides(Protocol):
    """Settings of single modules."""

    def apply(self, module: str, said: Said) -> Said:
        """What the config says about the module, given what it says about all."""
        ...


def read_said(config: Fields, default: Said) -> Said:
    """``bits``, ``group_size`` and ``sym`` of a config or of an override.

    Raises CheckpointError for a value that is no whole number or out of all bounds.
    """
    bits, group = default.bits, default.group
    if config.present("bits"):
        bits = config.integer("bits", 1, 32)
    if config.present("group_size"):
        group = config.integer("group_size", -1, 1 << 20)
        if group == 0:
            raise config.error("group_size", 0, "-1 or a positive number")
    sym = config.flag("sym", default.sym)
    return Said(bits, group, sym, default.quantized and (bits or 0) < PLAIN_BITS)


def refuse_settings(config: Fields, keys: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise UnsupportedModelError when a key is set to anything but the harmless values."""
    for key, harmless in keys.items():
        value = config.values.get(key)
        if value is not None and value not in harmless:
            raise UnsupportedModelError(
                f"{config.name(key)} is {shown(value)}; it changes the numbers and is not "
                "implemented"
            )


class Dynamic:
    """GPTQModel's ``dynamic``: patterns in order, ``-:`` for plain modules, first match wins.

    Args:
        config: the quantization config.
        refused: keys that an override may not set, with their harmless values.

    Raises:
        CheckpointError: ``dynamic`` is no object of objects, or a pattern is damaged.
        UnsupportedModelError: an override or a pattern that is not implemented.
    """

    def __init__(self, config: Fields, refused: Mapping[str, tuple[Any, ...]]) -> None:
        self._rules: list[tuple[bool, Fields]] = []
        patterns = []
        # Some writers say false where they mean nothing.
        rules = {} if config.values.get("dynamic") is False else config.mapping("dynamic")
        where = config.name("dynamic")
        for key, values in rules.items():
            if values is not None and not isinstance(values, Mapping):
                raise config.error(f"dynamic[{shown(key)}]", values, "an object")
            rule = Fields(config.where, values or {}, f"{config.prefix}dynamic[{shown(key)}].")
            refuse_settings(rule, refused)
            negative = key.startswith("-:")
            self._rules.append((negative, rule))
            patterns.append(key[2:] if key[:2] in ("-:", "+:") else key)
        self._patterns = Patterns(where, patterns)

    def apply(self, module: str, said: Said) -> Said:
        """See :class:`Overrides`."""
        found = self._patterns.first(module)
        if found is None:
            return said
        negative, rule = self._rules[found]
        return replace(said, quantized=False) if negative else read_said(rule, said)


class ExtraConfig:
    """AutoRound's ``extra_config``: module names first, then patterns found anywhere in a name.

    Args:
        config: the quantization config.
        refused: keys that an override may not set, with their harmless values.

    Raises:
        CheckpointError: ``extra_config`` is no object of objects.
        UnsupportedModelError: an override or a pattern that is not implemented.
    """

    def __init__(self, config: Fields, refused: Mapping[str, tuple[Any, ...]]) -> None:
        self._rules: dict[str, Fields] = {}
        for key, values in config.mapping("extra_config").items():
            if not isinstance(values, Mapping):
                raise config.error(f"extra_config[{shown(key)}]", values, "an object")
            rule = Fields(config.where, values, f"{config.prefix}extra_config[{shown(key)}].")
            refuse_settings(rule, refused)
            self._rules[key] = rule
        self._keys = list(self._rules)
        self._patterns = Patterns(config.name("extra_config"), self._keys, anchored=False)

    def apply(self, module: str, said: Said) -> Said:
        """See :class:`Overrides`."""
        rule = self._rules.get(module)
        if rule is None:
            found = self._patterns.first(module)
            rule = None if found is None else self._rules[self._keys[found]]
        return said if rule is None else read_said(rule, said)
