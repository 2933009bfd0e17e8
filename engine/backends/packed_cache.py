"""The option ``packed_cache``: packed weights of ``cpu_c`` are kept in a file for the next run.

A file belongs to one model at one place and one set of options that change packing; its name
says which. Inside it has a key of what it was made from: what the system says of the model's files
(size, inode, times of the last changes), a sample of their bytes, and every source of Halfbyte
that has a part in packing. Another key than expected makes the file worthless, and it is replaced.

To hash all bytes of a model would take longer than to pack it. So the key misses what changes a
model's bytes behind the file system's back: a disk that lost some, a clock set back to the
nanosecond. It does not miss a file written anew with its old size and times, for the system
itself stamps the time of the change.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from halfbyte.errors import ConfigError

from ...kernels.cpu.pack import TiledLinear
from ...loaders.base import Checkpoint
from ...loaders.store.model_store import cache_root
from ..config import EngineConfig
from .base import Packer
from .cpu_c import CompiledOps
from .packed_file import PackedFileError, read_packed, write_packed

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
# Folders whose sources decide about the bytes of a packed weight, or its name.
PACKING_SOURCES = ("kernels/cpu", "kernels/formats", "loaders", "engine/models", "engine/backends")
_SAMPLES, _SAMPLE, _HEADER = 64, 4096, 1 << 20


class PackedCache:
    """Packed weights of one model, from the file of an earlier run or for that of a later one.

    Args:
        path: of the file, which need not be there.
        key: what it must have been made from.
        adopt: told of each weight that comes from the file.
    """

    def __init__(self, path: Path, key: str, adopt: Callable[[TiledLinear], None]) -> None:
        self.path = path
        self._key = key
        self._adopt = adopt
        self._made: dict[str, list[TiledLinear]] = {}
        self._kept: dict[str, list[TiledLinear]] = {}
        try:
            self._kept = read_packed(path, key)
        except FileNotFoundError:
            log.info("%s is not there yet: weights are packed, and kept in it", path)
        except (OSError, PackedFileError) as error:
            log.warning("%s is not used, and made anew: %s", path, error)

    def parts(self, name: str, make: Callable[[], list[TiledLinear]]) -> list[TiledLinear]:
        """The weights of that name, from the file, or packed by ``make``."""
        kept = self._kept.get(name)
        if kept is None:
            self._made[name] = made = make()
            return made
        for weight in kept:
            self._adopt(weight)
        return kept

    def save(self) -> None:
        """Write the file where anything was packed. What the disk refuses is only a warning."""
        if not self._made:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            size = write_packed(self.path, self._key, {**self._kept, **self._made})
        except OSError as error:
            log.warning("%s cannot be written, so the next start packs again: %s", self.path, error)
        else:
            log.info("%s has the packed weights, %d bytes", self.path, size)


def open_packed_cache(
    config: EngineConfig, checkpoint: Checkpoint, packer: Packer[TiledLinear]
) -> PackedCache | None:
    """The file of a model, where the configuration asks for one.

    Raises:
        ConfigError: the backend packs for no file.
    """
    if not config.packed_cache:
        return None
    if not isinstance(packer, CompiledOps):
        raise ConfigError(
            "packed_cache is True, but only backend 'cpu_c' keeps its packed weights in a file",
            hint="leave packed_cache out; `halfbyte doctor` tells why there are no C kernels",
        )
    place = checkpoint.path.resolve()
    options = f"{packer.packing}, {config.quantize}"
    name = hashlib.sha256(f"{place}\n{options}".encode()).hexdigest()[:16]
    path = cache_root() / "packed" / f"{place.stem[:60]}-{name}.packed"
    key = hashlib.sha256(options.encode())
    key.update(sources_key(ROOT).encode())
    key.update(files_key(_files(checkpoint)).encode())
    return PackedCache(path, key.hexdigest(), packer.adopt)


def sources_key(root: Path) -> str:
    """Hash of the sources that decide about packed weights."""
    digest = hashlib.sha256()
    for folder in PACKING_SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".c", ".h"):
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def files_key(paths: Iterable[Path]) -> str:
    """Hash of what the system says of a model's files, of their beginnings and of a sample of
    their pages.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            facts = path.name, info.st_size, info.st_ino, info.st_mtime_ns, info.st_ctime_ns
            digest.update(repr(facts).encode())
            digest.update(file.read(_HEADER))
            for index in range(1, _SAMPLES + 1):
                file.seek(max(0, info.st_size * index // _SAMPLES - _SAMPLE))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _files(checkpoint: Checkpoint) -> list[Path]:
    """What a checkpoint was read from: its weights' files, or all plain files of its folder."""
    path = checkpoint.path
    if path.is_dir():
        return [p for p in sorted(path.iterdir()) if p.is_file() and os.access(p, os.R_OK)]
    return [path.parent / name for name in sorted(checkpoint.report().files)]
