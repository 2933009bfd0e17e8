"""Writing one synthetic checkpoint, whatever its format."""

from __future__ import annotations

from pathlib import Path

from .folder import FOLDER_METHODS, write_folder
from .gguf import BLOCKS, write_gguf
from .shapes import LlamaSizes

FORMATS = (*BLOCKS, *FOLDER_METHODS)


def write_model(
    folder: Path, shape: LlamaSizes, form: str, seed: int, name: str = "model"
) -> tuple[Path, list[Path]]:
    """A Llama in one of ``FORMATS``: what to open, and the files that were written.

    Args:
        folder: exists. A GGUF file is written into it as ``<name>.gguf``, a Hugging Face folder
            is this one.
        shape: sizes; columns must be whole blocks or groups of the format.
        form: format of every matrix, but for embedding and head of a folder.
        seed: of the codes and scales.
        name: of a GGUF file.
    """
    if form in FOLDER_METHODS:
        return folder, write_folder(folder, shape, seed, form)
    path = folder / f"{name}.gguf"
    write_gguf(path, shape, seed, form)
    return path, [path]
