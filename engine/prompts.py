"""Prompts as callers give them: text or token ids, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halfbyte.errors import RequestError

from .token_bound import TokenLimit
from .tokenizer import Tokenizer

Prompt = str | list[int]


def prompt_ids(
    prompt: Prompt, tokenizer: Tokenizer, vocabulary: int, limit: TokenLimit | None = None
) -> list[int]:
    """Token ids of a prompt.

    Raises:
        RequestError: neither text nor a list of ids from 0 to ``vocabulary - 1``, empty, or a
            text longer than ``limit``.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, limit=limit)
    elif not isinstance(prompt, (list, tuple)):
        raise RequestError(
            f"a prompt is {prompt!r:.60}; expected text or a list of token ids", param="prompt"
        )
    else:
        ids = list(prompt)
        for token in ids:
            good = isinstance(token, int) and not isinstance(token, bool)
            if not good or not 0 <= token < vocabulary:
                raise RequestError(
                    f"prompt holds token id {token!r:.40}; expected 0 to {vocabulary - 1}",
                    param="prompt",
                )
    if not ids:
        raise RequestError("the prompt is empty", param="prompt", hint="give some text")
    return ids


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """One prompt or many -> many. A list of ints is one prompt of token ids."""
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        return [prompts]
    items = list(prompts)
    return [items] if items and all(isinstance(item, int) for item in items) else items


def only_ids(prompt: list[int]) -> list[int]:
    """The prompt itself, where text is no prompt. Raises RequestError."""
    if isinstance(prompt, str):
        raise RequestError(
            "token_ids is text; expected a list of token ids",
            param="token_ids",
            hint="use engine.tokenizer.encode(text)",
        )
    return prompt
