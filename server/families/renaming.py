"""From the fields of another API to a request of OpenAI's, and back for what is said of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from halfbyte.errors import RequestError

from ..schema import AnyRequest, refusal


def request_of(kind: type[AnyRequest], fields: Mapping[str, Any]) -> AnyRequest:
    """A request of OpenAI's API; fields that are None are left out.

    Raises:
        RequestError: a value that this request may not have; names its field.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise refusal(error) from None


def goes_on(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the answer goes on with the last message, which is then the assistant's.

    Args:
        messages: of OpenAI's API.

    Raises:
        RequestError: it is the assistant's, but no text.
    """
    last = messages[-1]
    if last["role"] != "assistant":
        return False
    if not last.get("content") or last.get("tool_calls"):
        raise RequestError(
            "the last message is the assistant's, but no text, so the answer cannot go on with it",
            param="messages",
            hint="end with a message of the user's, or with the results of the calls",
        )
    return True


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Within the block, errors that name a field of OpenAI's name the client's own.

    Args:
        names: OpenAI's name of a field, or of one and what is in it, to the client's; a ``*`` in
            both stands for the same place in a list.

    Raises:
        RequestError: what was raised within, with the other name.
    """
    try:
        yield
    except RequestError as error:
        known = next((k for n in names if (k := _known(n, error.param or ""))), None)
        if known is None:
            raise
        found, name, place = known
        own = names[name].replace("*", place)
        told = str(error).replace(found, own, 1)
        named = own + (error.param or "").removeprefix(found)
        raise RequestError(told, param=named, code=error.code) from error


def _known(name: str, param: str) -> tuple[str, str, str] | None:
    """The beginning of ``param`` that ``name`` stands for, that name, and the place in a list."""
    pattern = re.escape(name).replace(r"\*", r"(\d+)") + r"(?=\.|$)"
    match = re.match(pattern, param)
    return None if match is None else (match[0], name, match[1] if match.lastindex else "")
