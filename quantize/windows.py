"""Texts as windows of token ids, of which models are judged and calibrated."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halfbyte.errors import ConfigError, RequestError

from ..engine.text.tokenizer import Tokenizer
from ..loaders.base import Checkpoint

Convention = Literal["hf", "llama.cpp"]


@dataclass(frozen=True, slots=True)
class Windows:
    """Pieces of a text, each by itself.

    Attributes:
        ids: token ids of each window; all are equally long.
        first: the first place in a window whose next token counts.
    """

    ids: tuple[tuple[int, ...], ...]
    first: int = 0

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return len(self.ids[0])

    def digest(self) -> str:
        """SHA-256 of the ids and of the places that count, 64 hexadecimal digits."""
        data = json.dumps([self.first, self.ids], separators=(",", ":"))
        return hashlib.sha256(data.encode()).hexdigest()


def read_text(path: Path, option: str = "--text") -> str:
    """A text file in UTF-8. Raises RequestError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{option} {path}: {error}", hint="name a text file in UTF-8") from None


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """A model's tokenizer. Raises TokenizerError when there is none, or it is damaged."""
    return Tokenizer.from_source(checkpoint.tokenizer(), checkpoint.config.vocab_size)


def common_windows(
    quantized: Checkpoint, reference: Checkpoint, text: str, length: int, limit: int | None
) -> Windows:
    """Windows of a text in tokens that mean the same to both models.

    Raises:
        ConfigError: the models read the text as different tokens.
        RequestError: as :func:`cut_windows`.
        TokenizerError: a tokenizer is damaged or missing.
    """
    ours, theirs = (
        cut_windows(tokenizer_of(checkpoint), text, length, limit)
        for checkpoint in (quantized, reference)
    )
    if ours != theirs:
        raise ConfigError(
            f"{quantized.path.name} and {reference.path.name} read the text as different tokens",
            hint="their tokenizers differ; name the model that the quantized one was made from",
        )
    return theirs


def cut_windows(
    tokenizer: Tokenizer,
    text: str,
    length: int = 512,
    limit: int | None = None,
    convention: Convention = "hf",
) -> Windows:
    """A text's tokens in windows that follow each other; a rest that fills none is left out.

    ``hf``: tokens as they are, and every next token counts. ``llama.cpp``: what its perplexity tool
    does: the model's begin-of-text token, where it has one, takes the place of each window's first
    token, and only the second half of a window counts. Source: tools/perplexity of llama.cpp.

    Args:
        tokenizer: the model's.
        text: what to cut.
        length: tokens of a window, at least 2.
        limit: most windows; None = all.
        convention: see above.

    Raises:
        RequestError: the text is too short for one window, or a number is out of range.
    """
    if length < 2:
        raise RequestError(f"length is {length}; expected at least 2 tokens", param="length")
    if limit is not None and limit < 1:
        raise RequestError(f"windows is {limit}; expected at least 1", param="windows")
    llama = convention == "llama.cpp"
    ids = tokenizer.encode(text, add_bos=llama and tokenizer.add_bos)
    count = len(ids) // length
    if not count:
        raise RequestError(
            f"the text has {len(ids)} tokens; expected at least {length}, one window",
            hint="use a longer text or a smaller --length",
        )
    count = count if limit is None else min(count, limit)
    windows = [ids[i * length : (i + 1) * length] for i in range(count)]
    if llama and tokenizer.add_bos and tokenizer.bos_id is not None:
        windows = [[tokenizer.bos_id, *window[1:]] for window in windows]
    return Windows(tuple(map(tuple, windows)), length // 2 if llama else 0)
