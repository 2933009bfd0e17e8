"""Tokens and their log-probabilities as JSON wants them."""

from __future__ import annotations

from typing import Any

from ...engine.request import Sampled
from ...engine.serve.client import TextCodec

LEAST_LOGPROB = -9999.0
"""What stands for a probability of zero: JSON has no infinity."""


def finite(logprob: float | None) -> float | None:
    """A log-probability that JSON can hold."""
    return None if logprob is None else max(logprob, LEAST_LOGPROB)


class TokenText:
    """How single tokens read.

    Args:
        tokenizer: gives the bytes of each.
        as_ids: a token is written ``token_id:N``, as vLLM's ``return_tokens_as_token_ids`` asks.
    """

    def __init__(self, tokenizer: TextCodec, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def bytes(self, token: int) -> bytes:
        """Exact bytes of a token."""
        return self._tokenizer.token_bytes(token)

    def text(self, token: int) -> str:
        """A token's own text; a part of a character is written ``bytes:\\xNN``, as OpenAI does."""
        if self._as_ids:
            return f"token_id:{token}"
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def prompt(self, rated: tuple[Sampled | None, ...]) -> list[dict[str, Any] | None]:
        """Prompt log-probabilities as vLLM writes them: id -> log-probability, rank and text."""
        return [None if item is None else self._ranked(item) for item in rated]

    def _ranked(self, item: Sampled) -> dict[str, Any]:
        out = {
            str(token): {
                "logprob": finite(logprob),
                "rank": rank,
                "decoded_token": self.text(token),
            }
            for rank, (token, logprob) in enumerate(item.top, 1)
        }
        if str(item.token) not in out:
            # Its rank beyond the likeliest ones is not known.
            text = self.text(item.token)
            out[str(item.token)] = {
                "logprob": finite(item.logprob),
                "rank": None,
                "decoded_token": text,
            }
        return out
