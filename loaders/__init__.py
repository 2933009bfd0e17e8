"""Checkpoint loaders: GGUF files and Hugging Face folders become canonical weights.

A loader reads and checks every header when it opens, then hands out weights by name
(:class:`~halfbyte.loaders.base.Checkpoint`). Nothing from a model folder is ever executed or
unpickled, and no size found in a file is trusted before it is checked against the bytes there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError

if TYPE_CHECKING:
    from .base import Checkpoint

__all__ = ["open_checkpoint"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file, or a folder with ``config.json`` + safetensors or exactly one GGUF model.

    Headers are read and checked; no weight data is. Raises ModelNotFoundError when nothing is
    there, CheckpointError for damaged or crafted files, UnsupportedModelError for sound ones
    that this version cannot run.
    """
    path = Path(path)
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, no permission, a NUL byte
        raise ModelNotFoundError(f"cannot open {str(path)!r:.300}: {error}") from error
    if folder:
        return _open_folder(path)
    if not there:
        raise ModelNotFoundError(
            f"no model at {str(path)!r:.300}",
            hint="give a GGUF file or a Hugging Face model folder",
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} is one weights file without its config.json",
            hint="give the folder that holds config.json and the safetensors files",
        )
    if path.suffix in _PICKLES:
        raise _pickle_error(path, [path.name])
    from .gguf.checkpoint import GGUFCheckpoint

    return GGUFCheckpoint(path)


def _open_folder(folder: Path) -> Checkpoint:
    """Choose the loader of a folder by the files that are in it."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot list folder {folder}: {error.strerror}") from error
    ggufs = [name for name in names if name.endswith(".gguf")]
    tensors = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if tensors and "config.json" in names:
        from .hf.folder import HFFolderCheckpoint

        return HFFolderCheckpoint(folder)
    if ggufs:
        from .files.folder_files import ModelFolder
        from .gguf.checkpoint import GGUFCheckpoint
        from .gguf.parts import first_part

        first = ggufs[0] if len(ggufs) == 1 else first_part(ggufs)
        if first is not None:
            ModelFolder(folder).require(first)
            return GGUFCheckpoint(folder / first)
        shown = ", ".join(ggufs[:10])
        raise CheckpointError(
            f"{folder} holds {len(ggufs)} GGUF files ({shown})", hint="give the path of one of them"
        )
    if tensors:
        raise CheckpointError(
            f"{folder} holds safetensors but no config.json",
            hint="download the whole model repository",
        )
    if pickles:
        from .files.folder_files import ModelFolder
        from .hf.smoothquant import refuse_smoothquant

        config = ModelFolder(folder).read_json("config.json")
        refuse_smoothquant(str(folder / "config.json"), config or {})
        raise _pickle_error(folder, pickles)
    raise ModelNotFoundError(
        f"{folder} holds no model: expected config.json with safetensors files, or one .gguf file",
        hint="check the path, or download the whole model repository",
    )


def _pickle_error(where: Path, names: list[str]) -> UnsupportedModelError:
    """The refusal for pickled weights, which could run code when read."""
    return UnsupportedModelError(
        f"{where}: weights are stored as pickle ({', '.join(names[:5])}), which can run code "
        "when it is read and is never opened",
        hint="convert to safetensors, or use the repository's safetensors revision",
    )
