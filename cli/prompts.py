"""Where prompts come from: the command line, a file, a pipe."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import typer

from halfbyte.errors import RequestError

from .console import is_terminal

INPUT_LIMIT = 64 << 20
"""Most bytes that a prompt file or stdin may hold."""


def read_prompts(prompt: str | None, file: Path | None, lines: bool) -> list[str]:
    """The prompts to answer: one, or with ``lines`` one for each line that is not blank.

    Text of a file or a pipe follows the prompt after a blank line; with ``lines`` every line does.

    Raises RequestError for what no model could run, and a usage error when there is no prompt.
    """
    asked = None if prompt == "-" else prompt
    if file is not None and prompt == "-":
        raise typer.BadParameter("give - for stdin or --file, not both")
    given = _read_file(file) if file is not None else _read_stdin(asked is not None)
    if given is None and asked is None:
        raise typer.BadParameter("no prompt: give PROMPT, --file FILE, or pipe text in")
    texts = [asked or ""] if given is None else [given]
    if lines:
        texts = [line.removesuffix("\r") for line in texts[0].split("\n") if line.strip()]
        if not texts:
            raise RequestError("--lines found no line with text", param="prompt")
    if asked and given:
        texts = [f"{asked}\n\n{text}" for text in texts]
    elif asked:
        texts = [asked] if not lines else texts
    for text in texts:
        _check(text)
    return texts


def _check(text: str) -> None:
    """Refuse what no model could run. Raises RequestError."""
    if not text:
        raise RequestError("the prompt is empty", param="prompt", hint="give some text")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestError("the prompt is not valid UTF-8", param="prompt")


def _read_file(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            data = handle.read(INPUT_LIMIT + 1)
    except OSError as error:
        raise RequestError(
            f"cannot read prompt file {file}: {error.strerror or error}", param="file"
        ) from error
    return _decode(data, str(file))


def _read_stdin(prompted: bool) -> str | None:
    """What was piped in, or None at a terminal.

    Beside a prompt only a pipe, a socket or a file counts: a device is what a service manager
    gives to programs that are to read nothing.
    """
    if is_terminal(sys.stdin) or (prompted and not _holds_input()):
        return None
    return _decode(sys.stdin.buffer.read(INPUT_LIMIT + 1), "stdin")


def _holds_input() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _decode(data: bytes, where: str) -> str:
    """UTF-8 text without the line end that editors and ``echo`` add.

    Raises RequestError naming the offset of the first bad byte, or the size when it is too big.
    """
    if len(data) > INPUT_LIMIT:
        raise RequestError(f"{where} has more than {INPUT_LIMIT >> 20} MiB of text", param="prompt")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}",
            param="prompt",
            hint="convert it, for example with iconv -t UTF-8",
        ) from error
    return text.removesuffix("\n").removesuffix("\r")
