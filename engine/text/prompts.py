"""Prompts as callers give them: text or token ids, one or many, in whatever holds them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any, Protocol, TypeAlias, runtime_checkable

from halfbyte.errors import RequestError

from .token_bound import TokenLimit
from .tokenizer import Tokenizer


@runtime_checkable
class IdArray(Protocol):
    """An array of token ids: numpy's, torch's, or any other with these two."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        ...

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        ...


TokenIds: TypeAlias = Iterable[int] | IdArray
"""Token ids of one prompt: a list, tuple, range, generator, or array of one dimension."""

Prompt: TypeAlias = str | TokenIds
"""Text, or token ids."""

Prompts: TypeAlias = Prompt | Iterable[Prompt]
"""One prompt or many; an array of two dimensions is a prompt a row."""


def prompt_ids(
    prompt: Prompt, tokenizer: Tokenizer, vocabulary: int, limit: TokenLimit | None = None
) -> list[int]:
    """Token ids of a prompt.

    Raises:
        RequestError: neither text nor ids from 0 to ``vocabulary - 1``, empty, or longer than
            ``limit``.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, limit=limit)
    else:
        ids = _ids(prompt, vocabulary)
    if not ids:
        raise RequestError("the prompt is empty", param="prompt", hint="give some text")
    return ids


def prompt_list(prompts: Prompts) -> list[Any]:
    """One prompt or many -> many. Ids that stand alone are one prompt."""
    if isinstance(prompts, IdArray):
        return list(prompts.tolist()) if prompts.ndim == 2 else [prompts]
    if not _is_series(prompts):
        return [prompts]
    items = list(prompts)
    return [items] if items and all(_index(item) is not None for item in items) else items


def only_ids(prompt: TokenIds) -> TokenIds:
    """The prompt itself, where text is no prompt. Raises RequestError."""
    if isinstance(prompt, str):
        raise RequestError(
            "token_ids is text; expected a list of token ids",
            param="token_ids",
            hint="use engine.tokenizer.encode(text)",
        )
    return prompt


def _ids(prompt: object, vocabulary: int) -> list[int]:
    if isinstance(prompt, IdArray):
        if prompt.ndim != 1:
            raise RequestError(
                f"a prompt is an array of {prompt.ndim} dimensions; expected token ids in one",
                param="prompt",
                hint="pass one row of it",
            )
        prompt = prompt.tolist()
    if not isinstance(prompt, Iterable) or not _is_series(prompt):
        raise RequestError(
            f"a prompt is {prompt!r:.60}; expected text or a list of token ids", param="prompt"
        )
    ids: list[int] = []
    for item in prompt:
        token = _index(item)
        if token is None or not 0 <= token < vocabulary:
            raise RequestError(
                f"prompt holds token id {item!r:.40}; expected 0 to {vocabulary - 1}",
                param="prompt",
            )
        ids.append(token)
    return ids


def _is_series(value: object) -> bool:
    """Whether a value holds others in an order; texts, mappings and sets do not."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, Set))


def _index(value: object) -> int | None:
    """A whole number of any library as an int; None for others and for truth values."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # an array of several numbers
        return None
