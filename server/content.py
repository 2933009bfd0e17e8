"""The parts that a message's content may have: texts, whatever an API calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from halfbyte.errors import RequestError


class ContentItem(Protocol):
    """One part of a message's content."""

    @property
    def type(self) -> str:
        """What it is."""
        ...

    @property
    def text(self) -> str | None:
        """Its text, where it is one."""
        ...


def text_part(part: ContentItem, where: str, kinds: Sequence[str] = ("text",)) -> dict[str, str]:
    """A part as chat templates take it.

    Args:
        part: as it was sent.
        where: its place in the body, for errors.
        kinds: types of texts.

    Raises:
        RequestError: it is no text, or has none; names the field.
    """
    if part.type not in kinds:
        supported = " and ".join(kinds)
        raise RequestError(
            f"{where} has type {part.type[:40]!r}; only {supported} is supported",
            param=f"{where}.type",
            code="unsupported_value",
        )
    if part.text is None:
        raise RequestError(f"{where} has no text", param=f"{where}.text")
    return {"type": "text", "text": part.text}


def text_parts(
    parts: Sequence[ContentItem], where: str, kinds: Sequence[str] = ("text",)
) -> list[dict[str, str]]:
    """All parts of a content, which is at ``where``; as `text_part`."""
    return [text_part(part, f"{where}.{n}", kinds) for n, part in enumerate(parts)]
