"""How few tokens a text can have: refuses prompts far too long before they are tokenized."""

from __future__ import annotations

import string
from collections.abc import Collection
from dataclasses import dataclass

from halfbyte.errors import RequestError

_WORDS = (string.ascii_letters + string.digits).encode()
_LETTERS = [bytes([byte]) for byte in _WORDS]
_OTHERS = bytes(set(range(256)) - set(_WORDS))
_SIGNS = bytes(set(range(128)) - set(_WORDS))


@dataclass(frozen=True, slots=True)
class TokenBound:
    """What one token of a vocabulary can stand for at most.

    Attributes:
        most_bytes: bytes of a text; 0 when there is no limit.
        most_words: ASCII letters and digits; 0 when there is no limit. It is the better bound of
            texts, because the longest tokens are runs of spaces and lines.
    """

    most_bytes: int = 0
    most_words: int = 0

    def least(self, text: str) -> int:
        """A number of tokens that ``text`` has at least; 0 when nothing is known."""
        data = text.encode("utf-8", "replace")
        count = -(-len(data) // self.most_bytes) if self.most_bytes else 0
        if self.most_words:
            count = max(count, -(-len(data.translate(None, _OTHERS)) // self.most_words))
        return count


def bound_of(pieces: Collection[bytes], *, composes: bool, loses_signs: bool) -> TokenBound:
    """The bound of a vocabulary.

    Args:
        pieces: bytes of every token.
        composes: the text is normalized to composed letters (NFC, NFKC).
        loses_signs: spaces, signs or other letters may be left out, or many may share a token.
    """
    most_bytes = most_words = 0
    # A letter may have been composed with an accent.
    others = _SIGNS if composes else _OTHERS
    for piece in pieces:
        most_bytes = max(most_bytes, len(piece))
        if len(piece) > most_words:
            most_words = max(most_words, len(piece.translate(None, others)))
    # Three bytes of a jamo or sign each, and three of them at most, become a letter of three; an
    # ideographic space becomes one byte. Eight is more than any combination gives.
    most_bytes = 0 if loses_signs else most_bytes * (8 if composes else 1)
    # Letters without a token may be dropped, or any number of them share one.
    return TokenBound(most_bytes, most_words if set(_LETTERS) <= set(pieces) else 0)


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """The longest prompt that is taken.

    Attributes:
        context: tokens of the context, which must hold the prompt and one token more.
        param: field of the request that an error names.
    """

    context: int
    param: str = "prompt"

    def check_text(self, text: str, bound: TokenBound) -> None:
        """Raise RequestError if ``text`` is too long whatever its tokens are."""
        least = bound.least(text)
        if least >= self.context:
            raise self._error(f"at least {least}")

    def check(self, count: int) -> None:
        """Raise RequestError if no room is left behind a prompt of ``count`` tokens."""
        if count >= self.context:
            raise self._error(str(count))

    def _error(self, count: str) -> RequestError:
        return RequestError(
            f"the prompt has {count} tokens, but the context holds {self.context} with the answer",
            param=self.param,
            code="context_length_exceeded",
            hint="shorten the prompt or raise max_context",
        )
