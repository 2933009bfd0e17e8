"""How the tokens of a pipeline of the ``tokenizers`` library become bytes, and text tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from halfbyte.errors import TokenizerError

from .token_bound import TokenBound, bound_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens become bytes.

    Attributes:
        to_bytes: bytes of an ordinary token's text.
        strips_space: the first space of a text is dropped.
        literal_added: added tokens are UTF-8 text, not written in the vocabulary's alphabet.
    """

    to_bytes: Callable[[str], bytes]
    strips_space: bool
    literal_added: bool


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that byte-level vocabularies write bytes with, and their bytes.

    Printable Latin-1 characters stand for themselves; the others are moved, in order, to the
    code points from 256 on.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in set(own)]
    table = {chr(b): b for b in own}
    return table | {chr(256 + i): b for i, b in enumerate(moved)}


def spaced_bytes(text: str) -> bytes:
    """Bytes of a sentencepiece token: ``<0xE4>`` is a byte, U+2581 is a space."""
    match = _BYTE_PIECE.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace(_SPACE, " ").encode()


def decoding_of(tokenizer: HfTokenizer) -> Decoding:
    """How the tokens of a pipeline become bytes.

    Raises:
        TokenizerError: its decoder is of a kind whose bytes per token are not known.
    """
    steps = steps_of(tokenizer.decoder, "decoders")
    steps = steps or steps_of(tokenizer.pre_tokenizer, "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        # Latin-1 that is not of the alphabet goes where Latin-1 has nothing.
        foreign = dict.fromkeys(range(256), 0xFFFF)
        table = foreign | {ord(c): b for c, b in byte_alphabet().items()}

        def byte_level(text: str) -> bytes:
            try:
                return text.translate(table).encode("latin-1")
            except UnicodeEncodeError:
                return text.encode()

        return Decoding(byte_level, strips_space=False, literal_added=True)
    for step in steps:
        if step.get("type") == "Metaspace":
            strips = step.get("prepend_scheme", "always") != "never"
            return Decoding(spaced_bytes, strips, literal_added=False)
    replaces = [s for s in steps if s.get("type") == "Replace" and s.get("content") == " "]
    if any(s.get("pattern") == {"String": _SPACE} for s in replaces):
        strips = any(
            s.get("type") == "Strip" and s.get("content") == " " and s.get("start") == 1
            for s in steps
        )
        return Decoding(spaced_bytes, strips, literal_added=False)
    raise TokenizerError(
        f"its decoder is {kinds or None}; expected ByteLevel, Metaspace or sentencepiece's steps"
    )


def pipeline_bound(
    tokenizer: HfTokenizer, vocab: Mapping[str, int], decoding: Decoding, drops: bool
) -> TokenBound:
    """How much text one token can stand for.

    Args:
        tokenizer: the pipeline.
        vocab: all its tokens, added ones among them: text -> id.
        decoding: how they become bytes.
        drops: bytes without a token are left out.
    """
    from tokenizers import models

    composes = strips = False
    for step in steps_of(tokenizer.normalizer, "normalizers"):
        kind = step.get("type")
        if kind == "Replace":
            if step.get("pattern") != {"String": " "} or not step.get("content"):
                return TokenBound()
        elif kind in ("NFC", "NFKC"):
            composes = True
        elif kind in ("Strip", "Lowercase"):
            strips = True
        elif kind not in ("Prepend", "NFD"):
            return TokenBound()
    if not isinstance(tokenizer.model, (models.BPE, models.Unigram)):
        return TokenBound()
    added = tokenizer.get_added_tokens_decoder().values()
    pieces = [decoding.to_bytes(text) for text in vocab]
    pieces += [token.content.encode() for token in added]
    steps = steps_of(tokenizer.pre_tokenizer, "pretokenizers")
    kinds = {step.get("type") for step in steps}
    is_byte_level = "ByteLevel" in kinds
    alphabet = byte_alphabet() if is_byte_level else [f"<0x{b:02X}>" for b in range(256)]
    loses_signs = (
        (drops or strips or any(token.lstrip or token.rstrip for token in added))
        or not kinds <= {"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation"}
        or any(step.get("behavior") == "Removed" for step in steps)
        or not all(char in vocab for char in alphabet)
        or not (is_byte_level or getattr(tokenizer.model, "byte_fallback", False))
    )
    return bound_of(pieces, composes=composes, loses_signs=loses_signs)


def steps_of(part: Any, member: str) -> list[Mapping[str, Any]]:
    """A pipeline part as a flat list of its JSON steps; empty when there is none."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    if state.get("type") != "Sequence":
        return [state]
    return [step for step in state.get(member, []) if isinstance(step, dict)]


def shielded(call: Callable[[], T], problem: str = "the text cannot be tokenized") -> T:
    """Run ``call``; the library's errors and Rust panics become TokenizerError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        raise TokenizerError(f"{problem}: {str(error)[:200]}") from error
