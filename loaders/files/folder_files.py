"""Files of a model folder: plain names, regular files, no way out of the folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from halfbyte.errors import CheckpointError

from .fields import shown
from .json_text import MAX_ITEMS, parse_object

MAX_CONFIG_BYTES = 1 << 22
MAX_TEMPLATE_BYTES = 1 << 20


class ModelFolder:
    """A folder with a model, from which only its own files are read.

    A symbolic link may point inside the folder, or, in the cache layout of huggingface_hub
    (``models--x/snapshots/REVISION``), to the repository's ``blobs``; any other is refused.

    Attributes:
        path: the folder as given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"cannot open folder {path}: {error}") from error
        self._roots = [real]
        if real.parent.name == "snapshots":
            self._roots.append(real.parent.parent / "blobs")

    def subfolder(self, name: str) -> ModelFolder | None:
        """A folder inside this one, under the same rules; None when there is none."""
        path = self.path / name
        if not path.is_dir():
            return None
        inner = ModelFolder(path)
        if not inner._roots[0].is_relative_to(self._roots[0]):
            raise CheckpointError(f"{path} is a link out of the model folder; it is not followed")
        inner._roots = self._roots
        return inner

    def names(self, suffix: str) -> list[str]:
        """Sorted names in the folder that end in ``suffix``."""
        return sorted(entry for entry in os.listdir(self.path) if entry.endswith(suffix))

    def display_name(self) -> str:
        """A name for the model: the repository id in a hub cache, else the folder's name."""
        real = self._roots[0]
        owner = real.parent.parent.name
        if len(self._roots) > 1 and owner.startswith("models--"):
            return owner.removeprefix("models--").replace("--", "/")
        return real.name

    def find(self, name: str) -> Path | None:
        """The file's resolved path, or None when there is none.

        Raises CheckpointError for names that are not plain, for links that leave the folder
        and for anything but a regular file.
        """
        plain = name == os.path.basename(name) and "\\" not in name and name.isprintable()
        if not plain or not 0 < len(name) <= 255 or name in (".", ".."):
            raise CheckpointError(
                f"{self.path}: file name {shown(name)} is not a plain name in the model folder",
                hint="model folders may not refer to files outside themselves",
            )
        link = self.path / name
        if not os.path.lexists(link):
            return None
        try:
            real = link.resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{link} is a link that leads nowhere", hint="download the model again"
            ) from error
        if not any(real.is_relative_to(root) for root in self._roots):
            raise CheckpointError(
                f"{link} is a link to {real}, outside the model folder; it is not followed",
                hint="copy the file into the folder if you trust it",
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{link} is not a regular file")
        return real

    def require(self, name: str) -> Path:
        """As :meth:`find`, but a missing file is an error."""
        found = self.find(name)
        if found is None:
            raise CheckpointError(
                f"{self.path / name} is missing", hint="the download is incomplete: repeat it"
            )
        return found

    def read_bytes(self, name: str, limit: int) -> bytes | None:
        """A file's bytes, or None when there is no such file; at most ``limit`` are allowed."""
        found = self.find(name)
        if found is None:
            return None
        try:
            with found.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > limit:
                    raise CheckpointError(
                        f"{self.path / name} has {size} bytes; expected at most {limit}"
                    )
                return file.read(size)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path / name}: {error.strerror}") from error

    def read_json(
        self, name: str, limit: int = MAX_CONFIG_BYTES, max_items: int = MAX_ITEMS
    ) -> dict[str, Any] | None:
        """A file's JSON object, or None when there is no such file.

        At most ``limit`` bytes and ``max_items`` brackets and commas are allowed.
        """
        data = self.read_bytes(name, limit)
        if data is None:
            return None
        return parse_object(data, str(self.path / name), max_bytes=limit, max_items=max_items)

    def read_text(self, name: str, limit: int = MAX_TEMPLATE_BYTES) -> str | None:
        """A file's UTF-8 text, or None when there is no such file."""
        data = self.read_bytes(name, limit)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path / name} is not UTF-8 at byte {error.start}"
            ) from error
