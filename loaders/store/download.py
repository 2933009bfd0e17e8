"""Fetch model files into a staging folder: what all fetchers share, and files behind a URL.

Nothing here decides where a model ends up: a fetcher fills a folder that its caller owns and
returns what it wrote, with the digest of every byte. The caller moves the folder into place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from halfbyte.errors import DownloadError

from .sources import UrlSource

Progress = Callable[[int, int], None]

PIECE_BYTES = 1 << 20
GGUF_MAGIC = b"GGUF"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One stored file: size in bytes and lower-case hex sha256."""

    size: int
    sha256: str


def no_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""


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
    digest = hashlib.sha256()
    with target.open("xb") as file:
        size = copy_stream(
            stream, file, digest, name=target.name, limit=limit, advance=advance, magic=magic
        )
    if size == 0 and magic:
        raise DownloadError(f"{target.name} is empty", hint="check the address")
    return FileRecord(size, digest.hexdigest())


def copy_stream(
    stream: IO[bytes] | Any,
    file: IO[bytes],
    digest: hashlib._Hash,
    *,
    name: str,
    limit: int | None,
    advance: Callable[[int], None],
    magic: bytes = b"",
) -> int:
    """Append a stream to an open file and to a digest; the number of bytes.

    Raises DownloadError as :func:`write_stream`. The data is on the disk when this returns.
    """
    size = 0
    while chunk := stream.read(PIECE_BYTES):
        if size == 0 and not chunk.startswith(magic):
            raise DownloadError(
                f"{name} is not a GGUF file: it starts with {chunk[:8]!r}",
                hint="the address may lead to a web page instead of the file itself",
            )
        size += len(chunk)
        if limit is not None and size > limit:
            raise DownloadError(f"{name} has more than the announced {limit} bytes")
        digest.update(chunk)
        file.write(chunk)
        advance(size)
    file.flush()
    os.fsync(file.fileno())
    return size


def hash_file(path: Path, advance: Callable[[int], None]) -> FileRecord:
    """Digest of a file; ``advance`` gets the bytes read so far."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(PIECE_BYTES):
            digest.update(chunk)
            size += len(chunk)
            advance(size)
    return FileRecord(size, digest.hexdigest())


def check_digest(name: str, record: FileRecord, expected: str) -> None:
    """Raises DownloadError when a file's sha256 is not the expected one."""
    if record.sha256 != expected:
        raise DownloadError(
            f"{name} has sha256 {record.sha256}; expected {expected}",
            hint="the file was changed on its way or at its source; it is not kept",
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
