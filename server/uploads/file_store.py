"""Files of clients in a folder: each has its bytes in one file and what is known of it in another.

A file is there once its record is, which comes last and by a rename; whatever else a kill leaves
is removed at the next start.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from halfbyte.errors import ConfigError

from ..errors import ApiError
from ..responses import ResponseModel

Purpose = Literal["batch", "batch_output"]

_ID = re.compile(r"[a-z]+[-_][0-9a-f]{32}")

Kept = TypeVar("Kept", bound="KeptRecord")


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Bounds of what clients may leave on the disk.

    Attributes:
        file_bytes: of one file.
        all_bytes: of all files that were sent, whoever sent them; results do not count.
        count: files that were sent.
        upload_s: seconds that one may take to arrive.
    """

    file_bytes: int = 200 << 20
    all_bytes: int = 4 << 30
    count: int = 10_000
    upload_s: float = 600.0


class KeptRecord(BaseModel):
    """What is kept of something that belongs to a tenant.

    Attributes:
        id: its name, also on disk.
        owner: namespace of the tenant; "" on a server without keys.
        created_at: Unix time, seconds.
    """

    id: str
    owner: str = ""
    created_at: int


class StoredFile(KeptRecord):
    """What is known of a file."""

    filename: str
    purpose: Purpose
    bytes: int


class FileObject(ResponseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: None = None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


def new_id(prefix: str) -> str:
    """A name that nobody guesses: the prefix and 32 hexadecimal digits."""
    return prefix + uuid.uuid4().hex


class RecordFolder(Generic[Kept]):
    """Records of one kind, a JSON file each, all of them in memory as well.

    Raises ConfigError where the folder cannot be used, or holds something else.

    Args:
        folder: where they lie; made when it is not there.
        kind: their class.
        noun: what a client's error calls one.
    """

    def __init__(self, folder: Path, kind: type[Kept], noun: str) -> None:
        self.folder = folder
        self._noun = noun
        self._records: dict[str, Kept] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.json.new"):
                path.unlink()
            found = [self._read(path, kind) for path in folder.glob("*.json")]
        except OSError as error:
            raise ConfigError(f"cannot use {folder}: {error.strerror or error}") from error
        for record in sorted(found, key=lambda record: record.created_at):
            self._records[record.id] = record

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._records.values()))

    def _read(self, path: Path, kind: type[Kept]) -> Kept:
        try:
            record = kind.model_validate_json(path.read_bytes())
        except ValidationError:
            record = None
        if record is None or record.id != path.stem or not _ID.fullmatch(record.id):
            raise ConfigError(
                f"{path} is no record of a server's files",
                hint="move it away, or use another folder",
            )
        return record

    def get(self, name: str, owner: str, param: str | None = None) -> Kept:
        """A record of this tenant.

        Raises:
            ApiError: 404, there is none of this name, or it is somebody else's.
        """
        found = self._records.get(name)
        if found is None or found.owner != owner:
            raise ApiError(
                404, f"There is no {self._noun} {name[:80]!r} here.", param=param, code="not_found"
            )
        return found

    def of(self, owner: str) -> list[Kept]:
        """A tenant's records, the newest first."""
        return [record for record in reversed(self._records.values()) if record.owner == owner]

    def put(self, record: Kept) -> None:
        """Write a record in place of what it was; raises OSError, and then nothing has changed."""
        path = self.folder / f"{record.id}.json"
        new = Path(f"{path}.new")
        new.write_text(record.model_dump_json(), encoding="utf-8")
        os.replace(new, path)
        self._records[record.id] = record

    def drop(self, name: str) -> None:
        """Remove a record that is there."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        del self._records[name]


class FileStore:
    """Files of clients.

    Args:
        folder: where they lie; made when it is not there.
        limits: bounds.

    Raises:
        ConfigError: the folder cannot be used, or holds something else.
    """

    def __init__(self, folder: Path, limits: FileLimits) -> None:
        self.limits = limits
        self._records = RecordFolder(folder, StoredFile, "file")
        self._folder = folder
        known = {record.id for record in self._records}
        for path in folder.glob("*.data"):
            if path.stem not in known:
                path.unlink()

    def add(self, source: BinaryIO, filename: str, purpose: Purpose, owner: str) -> StoredFile:
        """Keep a copy of a file.

        Args:
            source: at its start.
            filename: as the client calls it.
            purpose: what it is for.
            owner: namespace of its tenant.

        Raises:
            ApiError: 413 or 507, there is no room.
            OSError: it cannot be written.
        """
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        if purpose == "batch":
            self._check_room(size)
        record = StoredFile(
            id=new_id("file-"),
            owner=owner,
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
            bytes=size,
        )
        path = self._data(record.id)
        try:
            with path.open("xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            self._records.put(record)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return record

    def get(self, name: str, owner: str, param: str | None = None) -> StoredFile:
        """What is known of a tenant's file; raises a 404."""
        return self._records.get(name, owner, param)

    def of(self, owner: str) -> Sequence[StoredFile]:
        """A tenant's files, the newest first."""
        return self._records.of(owner)

    def path(self, name: str, owner: str) -> Path:
        """Where the bytes of a tenant's file lie; raises a 404."""
        return self._data(self.get(name, owner).id)

    def remove(self, name: str, owner: str) -> None:
        """Remove a tenant's file; raises a 404. Whoever has it open can go on reading."""
        found = self.get(name, owner)
        self._records.drop(found.id)
        self._data(found.id).unlink(missing_ok=True)

    def _data(self, name: str) -> Path:
        return self._folder / f"{name}.data"

    def _check_room(self, size: int) -> None:
        limits = self.limits
        sent = [record for record in self._records if record.purpose == "batch"]
        if size > limits.file_bytes:
            raise ApiError(413, f"The file is larger than {limits.file_bytes} bytes.", param="file")
        if len(sent) >= limits.count or sum(x.bytes for x in sent) + size > limits.all_bytes:
            raise ApiError(
                507,
                f"The server keeps {limits.count} files and {limits.all_bytes} bytes of them at "
                "most; delete files that nobody needs any more.",
                param="file",
                code="storage_full",
            )


def file_object(record: StoredFile) -> FileObject:
    """A file as clients are shown it."""
    return FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        filename=record.filename,
        purpose=record.purpose,
    )
