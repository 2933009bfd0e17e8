"""Table files: their form, and checks that name the file and the entry at fault.

    {"schema": 1, "device": "H100", "arch": 90, "sms": 132, "entries": {"w4a16": {
        "sm90 m16 4096x14336 g128 fp16":
            {"kernel": "late", "bm": 16, "bn": 128, "warps": 2, "stages": 4, "splits": 4,
             "us": 11.2, "formula_us": 12.0}}}}

``us`` and ``formula_us``, the times measured for the entry and for the formula, are optional.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import ConfigError

from ..w4a16.config import BUCKETS
from ..w4a16.layout import ROW_ALIGN, SLICE

SCHEMA = 1
FAMILY = "w4a16"
PARTIAL_BYTES = 32 << 20
"""Bytes of partial sums that every workspace has at least."""
COUNTERS = 8192
"""Output tiles with a counter that every workspace has at least."""

_KEY = re.compile(r"sm(\d{2,3}) m(\d{1,4}) (\d{1,9})x(\d{1,9}) g(\d{1,9}) (fp16|bf16)", re.ASCII)
_HEAD = {"schema", "device", "arch", "sms", "entries"}
_FIELDS = ("bm", "bn", "warps", "stages", "splits")
_TIMES = ("us", "formula_us")
_TILES = {"late": (8, 16, 32), "direct": (16, 32, 64, 128)}


@dataclass(frozen=True, slots=True)
class Key:
    """What a key of :func:`~..w4a16.config.table_key` says.

    Attributes:
        arch: compute capability such as 90.
        m: bucket of the rows of the activations.
        rows: stored rows of the weight, a multiple of 128.
        k: features.
        group: as in ``PackedW4``: 32, 64, a multiple of 128 or 0.
        dtype: of the activations, ``fp16`` or ``bf16``.
    """

    arch: int
    m: int
    rows: int
    k: int
    group: int
    dtype: str

    def __str__(self) -> str:
        size = f"{self.rows}x{self.k}"
        return f"sm{self.arch} m{self.m} {size} g{self.group} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tuned configuration.

    Attributes:
        key: the problem.
        values: ``kernel``, ``bm``, ``bn``, ``warps``, ``stages`` and ``splits``.
        times: ``us`` and ``formula_us`` where known.
    """

    key: Key
    values: dict[str, Any]
    times: dict[str, float]


@dataclass(frozen=True, slots=True)
class Table:
    """The entries of one device.

    Attributes:
        device: its name.
        arch: compute capability such as 90.
        sms: multiprocessors.
        entries: by key, as in the file.
    """

    device: str
    arch: int
    sms: int
    entries: dict[str, Entry]

    def dump(self) -> str:
        """The table as the text of a file."""
        entries = {key: {**e.values, **e.times} for key, e in sorted(self.entries.items())}
        head = {"schema": SCHEMA, "device": self.device, "arch": self.arch, "sms": self.sms}
        return json.dumps({**head, "entries": {FAMILY: entries}}, indent=1) + "\n"


def parse_key(text: str) -> Key | None:
    """The parts of a key, or None when it is none."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    arch, m, rows, k, group = (int(part) for part in match.groups()[:5])
    return Key(arch, m, rows, k, group, match[6])


def parse_table(text: str, where: str) -> Table:
    """A table from a file's text. Raises ConfigError naming ``where`` and the entry at fault."""
    try:
        data = json.loads(text, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise _error(where, f"not a JSON table: {error}") from None
    if not isinstance(data, dict) or set(data) != _HEAD:
        raise _error(where, f"expected an object with the keys {', '.join(sorted(_HEAD))}")
    if data["schema"] != SCHEMA:
        raise _error(where, f"schema is {data['schema']!r:.60}; this version reads {SCHEMA}")
    device, families = data["device"], data["entries"]
    if not isinstance(device, str) or not device or not device.isprintable():
        raise _error(where, f"device is {device!r:.60}; expected a name")
    arch = _integer(data["arch"], 75, 199, where, "arch")
    sms = _integer(data["sms"], 1, 1024, where, "sms")
    if not isinstance(families, dict) or not set(families) <= {FAMILY}:
        raise _error(where, f"entries must be an object with no key but {FAMILY!r}")
    entries = families.get(FAMILY, {})
    if not isinstance(entries, dict):
        raise _error(where, f"entries of {FAMILY!r} must be an object")
    found = {text: parse_entry(text, value, arch, where) for text, value in entries.items()}
    return Table(device, arch, sms, found)


def parse_entry(text: str, value: Any, arch: int, where: str) -> Entry:
    """One checked entry. Raises ConfigError naming ``where`` and the key."""
    here = f"{where}: entry {text!r:.100}"
    key = parse_key(text)
    if key is None or str(key) != text:
        raise _error(here, "expected a key such as 'sm90 m16 4096x14336 g128 fp16'")
    if key.arch != arch:
        raise _error(here, f"is for sm{key.arch} in a table of sm{arch}")
    if key.m not in BUCKETS:
        raise _error(here, f"m is {key.m}; expected one of {', '.join(map(str, BUCKETS))}")
    if key.rows == 0 or key.rows % ROW_ALIGN or key.k == 0:
        raise _error(here, f"{key.rows}x{key.k}; expected rows in whole {ROW_ALIGN}s and k > 0")
    if key.group not in (0, 32, 64) and key.group % SLICE:
        raise _error(here, f"group is {key.group}; expected 0, 32, 64 or a multiple of {SLICE}")
    needed = {"kernel", *_FIELDS}
    if not isinstance(value, dict) or not needed <= set(value) <= {*needed, *_TIMES}:
        raise _error(here, f"expected an object with {', '.join(sorted(needed))}")
    values = {"kernel": value["kernel"]} | {name: value[name] for name in _FIELDS}
    _check_values(key, values, here)
    times = {name: value[name] for name in _TIMES if name in value}
    for name, time in times.items():
        if type(time) not in (int, float) or not 0 < time < 1e9:
            raise _error(here, f"{name} is {time!r:.60}; expected microseconds")
    return Entry(key, values, times)


def _check_values(key: Key, values: dict[str, Any], here: str) -> None:
    kernel = values["kernel"]
    if kernel == "dequantize":
        fixed = {"kernel": kernel, "bm": 0, "bn": 64, "warps": 4, "stages": 1, "splits": 1}
        if values != fixed or any(type(values[name]) is not int for name in _FIELDS):
            raise _error(here, f"expected {fixed} for this kernel")
        return
    if not isinstance(kernel, str) or kernel not in _TILES:
        raise _error(here, f"kernel is {kernel!r:.60}; expected late, direct or dequantize")
    allowed = {"bm": _TILES[kernel], "bn": (ROW_ALIGN,), "warps": (1, 2, 4, 8)}
    for name, choices in allowed.items():
        if type(values[name]) is not int or values[name] not in choices:
            wanted = ", ".join(map(str, choices))
            raise _error(here, f"{name} is {values[name]!r:.60}; expected one of {wanted}")
    _integer(values["stages"], 1, 8, here, "stages")
    splits = _integer(values["splits"], 1, -(-key.k // SLICE), here, "splits")
    tiles = key.rows // values["bn"]
    partials = tiles * splits * values["bm"] * values["bn"] * 4
    if splits > 1 and (tiles > COUNTERS or partials > PARTIAL_BYTES):
        raise _error(here, f"{splits} splits of {tiles} tiles do not fit in the workspace")


def _integer(value: Any, least: int, most: int, where: str, name: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _error(where, f"{name} is {value!r:.60}; expected {least} to {most}")
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twin = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twin!r:.100} occurs twice")
    return found


def _error(where: str, message: str) -> ConfigError:
    return ConfigError(
        f"{where}: {message}", hint="correct or delete it; `halfbyte tune` remakes it"
    )
