"""The one form of the JSON files that ``bench serve``, ``sweep`` and ``startup`` write.

Every file has: ``schema`` and ``kind``; ``date``; ``machine`` and versions, the revision among
them, of where it was measured; ``server``, where requests went to one; ``model`` with hash and
format; ``flags``, all of them; ``seed``; and then the figures with every raw sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halfbyte.errors import CheckpointError, ConfigError, ResultFileError

from ..loaders.files.json_text import parse_object
from ..loaders.store.download import hash_file

RESULT_SCHEMA = 1
RESULT_KINDS = ("serve", "sweep", "startup", "engine")
_MOST_BYTES, _MOST_ITEMS = 1 << 28, 1 << 24


def new_result(
    kind: str,
    *,
    model: Mapping[str, Any],
    flags: Mapping[str, Any],
    seed: int,
    figures: Mapping[str, Any],
    server: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A result of now and of this machine, in plain JSON types.

    Args:
        kind: of `RESULT_KINDS`.
        model: of `model_identity`, or what a server tells.
        flags: every option with the value that it had, an infinite one as "inf".
        seed: of what was drawn.
        figures: what was measured, raw samples among them.
        server: where requests went, None where they went to none.
    """
    from .machine import machine_info

    return {
        "schema": RESULT_SCHEMA,
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_info(),
        "load_average": os.getloadavg(),
        "server": None if server is None else dict(server),
        "model": dict(model),
        "flags": dict(flags),
        "seed": seed,
        **figures,
    }


def model_identity(
    path: Path,
    quantize: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """What a model is: name, file, architecture, format, bytes, weights and ``sha256``.

    The hash of a model of several files is that of a list of their names and hashes.

    Args:
        path: file or folder.
        quantize: scheme to which it is rounded while it loads, or None.
        progress: told of the bytes that are hashed, and of those in all.

    Raises:
        CheckpointError: it is no model.
    """
    from .engine import file_facts

    files = set(weight_files(path))
    if path.is_dir():
        # The config decides about the meaning of the weights, the tokenizer about that of ids.
        files |= {file for file in path.iterdir() if file.suffix in (".json", ".model")}
    hashes: list[str] = []
    try:
        total, before = sum(file.stat().st_size for file in files), 0
        for file in sorted(files):
            record = hash_file(file, lambda done, begun=before: progress(begun + done, total))
            hashes.append(record.sha256)
            before += record.size
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    listed = "".join(f"{h} {f.name}\n" for h, f in zip(hashes, sorted(files), strict=True))
    own = hashes[0] if len(hashes) == 1 else hashlib.sha256(listed.encode()).hexdigest()
    return {**asdict(file_facts(path, quantize)), "sha256": own}


def weight_files(path: Path) -> list[Path]:
    """The files of a model's weights.

    Raises:
        CheckpointError: it is no model.
    """
    from ..loaders import open_checkpoint

    checkpoint = open_checkpoint(path)
    try:
        names = sorted(checkpoint.report().files)
    finally:
        checkpoint.close()
    return [(path if path.is_dir() else path.parent) / name for name in names]


def result_text(result: Mapping[str, Any]) -> str:
    """A result as the text of its file."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n"


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result; an earlier file stays whole until the new one is.

    Raises:
        ConfigError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_text(result_text(result), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def read_result(path: Path) -> dict[str, Any]:
    """A result that was written before, its frame checked.

    Raises:
        ResultFileError: the file cannot be read, is damaged, or is no result of this schema.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MOST_BYTES else b""
    except OSError as error:
        raise ResultFileError(f"cannot read {path}: {error.strerror or error}") from error
    if size > _MOST_BYTES:
        raise ResultFileError(f"{path} has {size} bytes; expected at most {_MOST_BYTES}")
    try:
        found = parse_object(
            data, str(path), max_bytes=_MOST_BYTES, max_items=_MOST_ITEMS, unique_keys=False
        )
    except CheckpointError as error:
        raise ResultFileError(
            error.message, hint="the file is damaged, or none that `halfbyte bench` wrote"
        ) from error
    kinds = ", ".join(RESULT_KINDS)
    if found.get("kind") not in RESULT_KINDS:
        raise ResultFileError(
            f"{path}: kind is {found.get('kind')!r:.60}; expected a result of `halfbyte bench`, "
            f"whose kind is one of {kinds}"
        )
    if found.get("schema") != RESULT_SCHEMA:
        raise ResultFileError(
            f"{path}: schema is {found.get('schema')!r:.60}; expected {RESULT_SCHEMA}",
            hint="measure again with this version",
        )
    for name in ("machine", "model", "flags"):
        if not isinstance(found.get(name), dict):
            raise ResultFileError(
                f"{path}: {name} is {found.get(name)!r:.60}; expected an object of facts"
            )
    return found
