"""Table files: their form, and checks that name the file and the entry at fault.

    {"schema": 1, "device": "H100", "arch": 90, "sms": 132, "entries": {KIND: {
        KEY: {"us": 11.2, "formula_us": 12.0, FIELD: VALUE}}}}

Keys and fields are those of the kind's :class:`~.tuning.Tuning`.
``us`` and ``formula_us``, the times measured for the entry and for the formula, are optional.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .tuning import TunedKey, TunedProblem, fault, integer, tunings

_SCHEMA = 1
_HEAD = {"schema", "device", "arch", "sms", "entries"}
_TIMES = ("us", "formula_us")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tuned configuration.

    Attributes:
        key: the problem.
        values: as the kind's tuning names them.
        times: ``us`` and ``formula_us`` where known.
    """

    key: TunedKey
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
        kinds: dict[str, dict[str, Any]] = {name: {} for name in tunings()}
        for key, entry in sorted(self.entries.items()):
            kinds[entry.key.kind][key] = {**entry.values, **entry.times}
        head = {"schema": _SCHEMA, "device": self.device, "arch": self.arch, "sms": self.sms}
        return json.dumps({**head, "entries": kinds}, indent=1) + "\n"


def parse_table(text: str, where: str) -> Table:
    """A table from a file's text. Raises ConfigError naming ``where`` and the entry at fault."""
    try:
        data = json.loads(text, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise fault(where, f"not a JSON table: {error}") from None
    if not isinstance(data, dict) or set(data) != _HEAD:
        raise fault(where, f"expected an object with the keys {', '.join(sorted(_HEAD))}")
    if data["schema"] != _SCHEMA:
        raise fault(where, f"schema is {data['schema']!r:.60}; this version reads {_SCHEMA}")
    device, kinds = data["device"], data["entries"]
    if not isinstance(device, str) or not device or not device.isprintable():
        raise fault(where, f"device is {device!r:.60}; expected a name")
    arch = integer(data["arch"], 75, 199, where, "arch")
    sms = integer(data["sms"], 1, 1024, where, "sms")
    known = tunings()
    if not isinstance(kinds, dict) or not set(kinds) <= set(known):
        names = ", ".join(map(repr, known))
        raise fault(where, f"entries must be an object with no key but {names}")
    found = {}
    for kind, entries in kinds.items():
        if not isinstance(entries, dict):
            raise fault(where, f"entries of {kind!r} must be an object")
        for text, value in entries.items():
            found[text] = parse_entry(kind, text, value, arch, where)
    return Table(device, arch, sms, found)


def parse_entry(kind: str, text: str, value: Any, arch: int, where: str) -> Entry:
    """One checked entry. Raises ConfigError naming ``where`` and the key."""
    here, tuning = f"{where}: entry {text!r:.100}", tunings()[kind]
    key = tuning.parse_key(text)
    if key is None or str(key) != text:
        raise fault(here, f"expected a key such as {tuning.EXAMPLE!r}")
    if key.arch != arch:
        raise fault(here, f"is for sm{key.arch} in a table of sm{arch}")
    needed = set(tuning.FIELDS)
    if not isinstance(value, dict) or not needed <= set(value) <= {*needed, *_TIMES}:
        raise fault(here, f"expected an object with {', '.join(sorted(needed))}")
    values = {name: value[name] for name in tuning.FIELDS}
    tuning.check(key, values, here)
    times = {name: value[name] for name in _TIMES if name in value}
    for name, time in times.items():
        if type(time) not in (int, float) or not 0 < time < 1e9:
            raise fault(here, f"{name} is {time!r:.60}; expected microseconds")
    return Entry(key, values, times)


def entry(problem: TunedProblem, values: dict[str, Any], us: float, formula_us: float) -> Entry:
    """A checked entry with its measured times."""
    times = {"us": round(us, 3), "formula_us": round(formula_us, 3)}
    tuning = tunings()[problem.kind]
    text = tuning.table_key(problem)
    key = tuning.parse_key(text)
    arch = 0 if key is None else key.arch
    return parse_entry(problem.kind, text, {**values, **times}, arch, "measured entry")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twin = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twin!r:.100} occurs twice")
    return found
