"""Fetch a model from the Hugging Face hub, file by file, into a staging folder.

Only weights, configuration, tokenizer and template files at the top of a repository are
taken; pickles and code never are. The file list comes first, so names, sizes and free space are
checked before a byte is downloaded, and one commit is fetched even if the repository moves on.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import DownloadError, HalfbyteError

from ..gguf.parts import first_part, part_of
from .download import (
    DISK_FULL,
    FileRecord,
    Progress,
    check_digest,
    check_space,
    folder_bytes,
    hash_file,
)
from .sources import HubSource, selects

_PATH = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN_NAMES = ("tokenizer.model", "merges.txt")
_TAKEN_SUFFIXES = (".json", ".jinja", ".safetensors")
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository: path, size in bytes, sha256 ("" when the hub gives none)."""

    path: str
    size: int
    sha256: str


def fetch_hub(
    source: HubSource, work: Path, stage: Path, progress: Progress
) -> dict[str, FileRecord]:
    """Download the files that :func:`choose_files` picks, and verify size and sha256 of each.

    Raises DownloadError: unknown, private or gated repository, no network, wrong contents.
    """
    del work
    commit, listed = _list_files(source)
    chosen = choose_files(source, listed)
    total = sum(file.size for file in chosen)
    check_space(stage, total)
    with _hub_errors(source), _progress_of(stage, total, progress), _quiet():
        from huggingface_hub import hf_hub_download

        # One after the other in this thread: ctrl-C ends it at once, where a pool of
        # downloads would first finish what is in flight.
        for file in chosen:
            hf_hub_download(source.repo, file.path, revision=commit, local_dir=stage)
    records: dict[str, FileRecord] = {}
    for file in chosen:
        path = stage / file.path
        if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
            raise DownloadError(
                f"{source.repo}/{file.path} did not arrive whole; expected {file.size} bytes",
                hint="pull it again",
            )
        record = hash_file(path, lambda done: None)
        if file.sha256:
            check_digest(f"{source.repo}/{file.path}", record, file.sha256)
        records[file.path] = record
    return records


def choose_files(source: HubSource, listed: list[HubFile]) -> list[HubFile]:
    """The files to take. Raises DownloadError when the choice is empty or ambiguous."""
    safe = [file for file in listed if _PATH.fullmatch(file.path) and ".." not in file.path]
    ggufs = [f for f in safe if f.path.endswith(".gguf") and "mmproj" not in f.path.lower()]
    if source.file:
        return _one_model(source, [f for f in safe if f.path == source.file], ggufs)
    if source.pick:
        return _one_model(source, [f for f in ggufs if selects(source.pick, f.path)], ggufs)
    top = [file for file in safe if "/" not in file.path]
    taken = [
        file
        for file in top
        if (file.path.endswith(_TAKEN_SUFFIXES) or file.path in _TAKEN_NAMES)
        and not file.path.startswith("consolidated")
    ]
    if any(file.path.endswith(".safetensors") for file in taken):
        return taken
    if ggufs:
        return _one_model(source, ggufs, ggufs)
    pickled = any(file.path.endswith((".bin", ".pt", ".pth")) for file in listed)
    raise DownloadError(
        f"repository {source.repo} holds neither safetensors nor GGUF files"
        + (", only pickles, which are never loaded" if pickled else ""),
        hint="look for a safetensors or GGUF conversion of this model",
    )


def _one_model(source: HubSource, found: list[HubFile], ggufs: list[HubFile]) -> list[HubFile]:
    """The one file that is meant, or all parts of it when it is split.

    Raises DownloadError that lists what there is to choose from, or says that parts are missing.
    """
    part = part_of(found[0].path) if found else None
    if len(found) == 1 and part is None:
        return found
    if part is not None and first_part(file.path for file in found) is not None:
        parts = [f for f in ggufs if first_part((f.path, found[0].path)) is not None]
        if sorted(p[1] for f in parts if (p := part_of(f.path))) != list(range(1, part[2] + 1)):
            raise DownloadError(
                f"{source.repo} holds {len(parts)} of the {part[2]} parts of {part[0]}.gguf",
                hint="choose another file: this one is incomplete on the hub",
            )
        return sorted(parts, key=lambda file: file.path)
    names = [file.path for file in (found or ggufs)]
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if not names:
        raise DownloadError(f"repository {source.repo} holds no GGUF file")
    problem = "matches several GGUF files" if found else "matches no GGUF file"
    raise DownloadError(
        f"{source.name} {problem} of {source.repo}: {shown}",
        hint=f"name one, such as {source.repo}/{names[0]}",
    )


def _list_files(source: HubSource) -> tuple[str, list[HubFile]]:
    """Commit hash and files of the repository's main branch."""
    with _hub_errors(source):
        from huggingface_hub import HfApi

        info = HfApi().model_info(source.repo, files_metadata=True, timeout=30)
        files = []
        for item in info.siblings or []:
            lfs: Any = item.lfs
            digest = lfs.sha256 if lfs is not None else ""
            files.append(HubFile(item.rfilename, int(item.size or 0), str(digest)))
        return str(info.sha), files


@contextlib.contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """Turn whatever the hub library raises into a DownloadError with a remedy."""
    try:
        yield
    except HalfbyteError:
        raise
    except ImportError as error:
        raise DownloadError(
            f"cannot import huggingface_hub: {error}", hint="pip install huggingface_hub"
        ) from error
    except Exception as error:
        # The library's errors come from several HTTP clients over its versions, with no common
        # base; names are stable where classes are not.
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "GatedRepoError" in kinds:
            raise DownloadError(
                f"repository {source.repo} is gated",
                hint="accept its terms on the hub's site, then log in: hf auth login",
            ) from error
        if "RepositoryNotFoundError" in kinds:
            raise DownloadError(
                f"the hub has no public repository {source.repo}",
                hint="check the spelling; for a private one log in first: hf auth login",
            ) from error
        if "OfflineModeIsEnabled" in kinds:
            raise DownloadError(
                f"cannot fetch {source.repo}: HF_HUB_OFFLINE is set",
                hint="unset HF_HUB_OFFLINE, or give the path of a local model",
            ) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"cannot fetch {source.repo} from the hub: {first[:300]}",
            hint="check the network, or copy the model here and give its path",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the library's own."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


@contextlib.contextmanager
def _progress_of(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the growth of a folder; the library's own callbacks differ between versions."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_S):
            progress(min(folder_bytes(folder), total), total)

    thread = threading.Thread(target=watch, name="halfbyte-pull-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(total, total)
