"""Token ids to text, a few at a time, exactly as if all had been decoded at once.

Three things keep text back for a while: a character whose bytes are not all there, text that may
be the beginning of a stop string, and a stop string that is complete while an earlier-starting
one is still possible. Work per token is proportional to its text, whatever came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable

from .stop_strings import SpecialBytes, StopMatcher, Symbol


class Detokenizer:
    """Text of one completion.

    The text is a continuation of a prompt, so a sentencepiece space in front is part of it, as
    in ``tokenizer.decode(ids, continuation=True)``. Special tokens have no text, but a stop
    string may name them.

    Args:
        tokenizer: gives the bytes of each token.
        matcher: finds the strings that end the text, or None. The one that starts first wins,
            whatever their order and wherever token boundaries fall; it is not part of the text.
        shown: special tokens that do have text.
        keep_stop: the string that ends the text is part of it.

    Attributes:
        stopped: the stop string that ended the text, or None.
        decoded: characters of all tokens so far, also of what is kept back.
    """

    def __init__(
        self,
        tokenizer: SpecialBytes,
        matcher: StopMatcher | None = None,
        shown: Collection[int] = (),
        *,
        keep_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        special = tokenizer.special_ids
        self._special = special.difference(shown) if shown else special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = matcher
        self._keep_stop = keep_stop
        self._parts: list[str] = []
        self.stopped: str | None = None
        self.decoded = 0

    def feed(self, token_ids: Iterable[int], *, check_stops: bool = True) -> str:
        """Take new ids and return the text that is now certain; "" once stopped.

        ``check_stops=False`` is for tokens before ``min_tokens``: no stop string may use their
        text, so nothing of it is held back.
        """
        out = ""
        for token in token_ids:
            if self.stopped is not None:
                break
            out += self.feed_one(token, check_stops=check_stops)
        return out

    def feed_one(self, token_id: int, *, check_stops: bool = True) -> str:
        """As :meth:`feed` for one id; it must not be stopped."""
        if token_id in self._special:
            return self.hide(token_id, check_stops=check_stops)
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self.decoded += len(text)
        return self._take(text, check_stops)

    def hide(self, token_id: int, *, check_stops: bool = True) -> str:
        """Take an id that has no place in the text; returns what it makes certain, as it may
        complete a stop string, or break off the beginning of one.
        """
        symbol = self._tokenizer.token_bytes(token_id)
        if self.stopped is not None or self._matcher is None or not symbol:
            return ""
        return self._take([symbol], check_stops)

    def finish(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        out = self._take(self._decoder.decode(b"", True), True)
        if self._matcher is not None and self.stopped is None:
            rest, self.stopped = self._matcher.flush()
            rest += self._kept()
            self._parts.append(rest)
            out += rest
        return out

    @property
    def text(self) -> str:
        """All text returned so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def _take(self, symbols: str | list[Symbol], check_stops: bool) -> str:
        if self._matcher is None:
            assert isinstance(symbols, str)
            text = symbols
        elif check_stops:
            text, self.stopped = self._matcher.feed(symbols)
            text += self._kept()
        else:
            text = self._matcher.skip(symbols)
        if text:
            self._parts.append(text)
        return text

    def _kept(self) -> str:
        """The string that ended the text, where it is part of it."""
        return self.stopped or "" if self._keep_stop else ""
