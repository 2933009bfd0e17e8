"""Table files on disk: the shipped ones, and the user's own, written entry by entry."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from halfbyte.errors import ConfigError

from ..device.gpus import Device
from .lookup import Tables
from .schema import Entry, Table, parse_table

SHIPPED = Path(__file__).parent
_LIMIT = 16 << 20


def table_name(device: Device) -> str:
    """File name of a device's table."""
    return f"sm_{device.arch}_{device.sms}.json"


def read_table(path: Path) -> Table | None:
    """A checked table, or None when there is no such file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the table {path}: {error.strerror}") from error
    if len(raw) > _LIMIT:
        raise ConfigError(f"{path}: more than {_LIMIT} bytes; not a table of configurations")
    return parse_table(raw.decode("utf-8", "replace"), str(path))


def shipped_tables() -> dict[str, Table]:
    """The tables that ship, by file name. Raises ConfigError for a damaged installation."""
    found = {path.name: read_table(path) for path in sorted(SHIPPED.glob("sm_*.json"))}
    return {name: table for name, table in found.items() if table is not None}


def load_tables(device: Device, folder: Path | None = None) -> Tables:
    """The merged table of a device: the shipped one, then the user's in ``folder``.

    Raises ConfigError naming file and key when a table holds something wrong.
    """
    tables = [(f"shipped {name}", table) for name, table in shipped_tables().items()]
    if folder is not None:
        path = folder / table_name(device)
        own = read_table(path)
        if own is not None:
            _check_device(path, own, device)
            tables.append((f"your {path.name}", own))
    return Tables(device, tables)


def write_entry(path: Path, device: Device, entry: Entry) -> None:
    """Add one entry to a table, making the file if need be; it is never half-written.

    Raises ConfigError when what is there is damaged or of another device, or on a full disk.
    """
    table = read_table(path) or Table(device.name, device.arch, device.sms, {})
    _check_device(path, table, device)
    entries = {**table.entries, str(entry.key): entry}
    text = Table(table.device, table.arch, table.sms, entries).dump()
    parse_table(text, str(path))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".table-", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ConfigError(f"cannot write the table {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_device(path: Path, table: Table, device: Device) -> None:
    if (table.arch, table.sms) != (device.arch, device.sms):
        raise ConfigError(
            f"{path}: is for sm_{table.arch} with {table.sms} multiprocessors; "
            f"{device.name} is sm_{device.arch} with {device.sms}",
            hint="rename or delete it",
        )
