"""What the model store holds: its folders, their markers, and how names find them.

A marker ``.halfbyte.json`` in a model's folder lists its files with size and sha256; a folder
without a valid one is no model. Nothing here changes the store; :mod:`.model_store` does.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import DownloadError, ModelNotFoundError

from ..gguf.parts import first_part
from .download import FileRecord, folder_bytes
from .sources import HubSource, Source, UrlSource, WheelSource, parse_source, selects

MARKER = ".halfbyte.json"
SCHEMA = 1
_MARKER_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model in the store.

    Attributes:
        name: what to call it in commands.
        path: the file or folder to open.
        bytes: its size on the disk.
        source: where it was pulled from, in words.
        licence: the licence of a registered model, None for others.
        complete: whether all its files are there; otherwise it has to be pulled again.
    """

    name: str
    path: Path
    bytes: int
    source: str
    licence: str | None
    complete: bool = True


def cache_root() -> Path:
    """Folder of everything Halfbyte keeps: HALFBYTE_HOME, else the XDG cache folder's."""
    if home := os.environ.get("HALFBYTE_HOME"):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path here.
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "halfbyte"


def pulled() -> list[PulledModel]:
    """The models in the store, by name; those that are damaged are not complete."""
    found = [described(folder) for folder in marked_folders()]
    return sorted(found, key=lambda model: (model.name.lower(), model.name))


def models_root() -> Path:
    """Folder of all pulled models."""
    return cache_root() / "models"


def marked_folders() -> list[Path]:
    """The folders of the store that hold a model: those with a marker."""
    return [
        marker.parent
        for marker in sorted(models_root().glob(f"**/{MARKER}"))
        if ".tmp" not in marker.relative_to(models_root()).parts
    ]


def folder_of(source: Source) -> Path:
    """The folder of a source's model; one that differs in case only is the same."""
    exact = models_root() / source.folder
    if exact.exists() or isinstance(source, UrlSource):
        return exact
    parts = tuple(part.lower() for part in Path(source.folder).parts)
    for folder in marked_folders():
        if tuple(part.lower() for part in folder.relative_to(models_root()).parts) == parts:
            return folder
    return exact


def installed(source: Source) -> Path | None:
    """What to open when the model is complete by its marker and the sizes of its files."""
    records = read_marker(folder_of(source))
    if isinstance(source, WheelSource):
        record = records.get(source.file)
        if record is None or (record.size, record.sha256) != (source.size, source.sha256):
            return None
    return _opened(folder_of(source), records)


def _opened(folder: Path, records: dict[str, FileRecord]) -> Path | None:
    """The file or folder to open of these files; None unless all have their sizes."""
    for name, record in records.items():
        try:
            if (folder / name).stat().st_size != record.size:
                return None
        except OSError:
            return None
    names = list(records)
    if not names:
        return None
    if len(names) == 1 and names[0].endswith(".gguf"):
        return folder / names[0]
    first = first_part(names)
    return folder if first is None else folder / first


def described(folder: Path) -> PulledModel:
    """The model in a folder of the store, from its marker."""
    try:
        name = str(json.loads((folder / MARKER).read_bytes()[:_MARKER_LIMIT])["source"])
        source = parse_source(name)
    except (OSError, ValueError, KeyError, TypeError, DownloadError):
        # A marker that nobody wrote: the model can only be listed and removed.
        name, source = folder.relative_to(models_root()).as_posix(), None
    path = _opened(folder, read_marker(folder)) if source is None else installed(source)
    return PulledModel(
        name,
        path or folder,
        folder_bytes(folder),
        "unknown" if source is None else source.origin,
        source.licence if isinstance(source, WheelSource) else None,
        path is not None,
    )


def of_repository(source: HubSource) -> list[PulledModel]:
    """What was pulled of a hub repository, in any form."""
    start = f"hub/{source.repo}/".lower()
    return [
        described(folder)
        for folder in marked_folders()
        if folder.relative_to(models_root()).as_posix().lower().startswith(start)
    ]


def selected(source: Source) -> Path | None:
    """The one GGUF file with the wanted tag or path among those pulled of a repository.

    Raises ModelNotFoundError when there are several.
    """
    if not isinstance(source, HubSource) or not (source.pick or source.file):
        return None
    found: list[Path] = []
    for model in of_repository(source):
        folder = model.path if model.path.is_dir() else model.path.parent
        names = [name for name in read_marker(folder) if name.endswith(".gguf")]
        if source.pick:
            names = [name for name in names if selects(source.pick, name)]
        else:
            names = [name for name in names if name.lower() == source.file.lower()]
        first = first_part(names)
        if model.complete:
            found += [folder / name for name in ([first] if first else names)]
    if len(found) > 1:
        shown = ", ".join(path.name for path in found[:8])
        raise ModelNotFoundError(
            f"{source.name} matches several files that were pulled: {shown}",
            hint=f"name one, such as {source.repo}/{found[0].name}",
        )
    return found[0] if found else None


def read_marker(folder: Path) -> dict[str, FileRecord]:
    """Files that the marker lists; empty when there is no valid marker."""
    try:
        with (folder / MARKER).open("rb") as file:
            data: Any = json.loads(file.read(_MARKER_LIMIT))
        if data["schema"] != SCHEMA:
            return {}
        return {
            str(name): FileRecord(int(entry["size"]), str(entry["sha256"]))
            for name, entry in data["files"].items()
            if not os.path.isabs(name) and ".." not in Path(name).parts
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
