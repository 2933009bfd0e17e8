"""The typed pieces that the text of an answer is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json


@dataclass(frozen=True, slots=True)
class ContentPiece:
    """Text of the answer itself.

    Attributes:
        text: at least one character.
    """

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Text of what the model thought before it answered.

    Attributes:
        text: at least one character.
    """

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The beginning of a tool call.

    Attributes:
        index: which call of the answer, from 0.
        id: by which the client refers to it.
        name: the function.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of a call that has begun.

    Attributes:
        index: which call of the answer.
        text: a part of the JSON text.
    """

    index: int
    text: str


AnswerPiece = ContentPiece | ReasoningPiece | CallBegin | CallArguments


@dataclass(slots=True)
class WholeCall:
    """A tool call as a whole.

    Attributes:
        id: by which the client refers to it.
        name: the function.
        arguments: JSON text; a beginning of it when the answer was cut off.
    """

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class WholeAnswer:
    """All pieces of an answer, joined.

    Attributes:
        content: text of the answer itself.
        reasoning: what the model thought.
        calls: in order.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[WholeCall] = field(default_factory=list)

    @classmethod
    def of(cls, pieces: Iterable[AnswerPiece]) -> WholeAnswer:
        """The answer that has these pieces, in order."""
        content: list[str] = []
        reasoning: list[str] = []
        arguments: list[list[str]] = []
        calls: list[WholeCall] = []
        for piece in pieces:
            match piece:
                case ContentPiece(text):
                    content.append(text)
                case ReasoningPiece(text):
                    reasoning.append(text)
                case CallBegin(_, id, name):
                    calls.append(WholeCall(id, name))
                    arguments.append([])
                case CallArguments(index, text):
                    arguments[index].append(text)
        for call, parts in zip(calls, arguments, strict=True):
            call.arguments = "".join(parts)
        return cls("".join(content), "".join(reasoning), calls)


def arguments_object(text: str) -> dict[str, Any]:
    """The arguments of a call as an object, for the APIs that have no place for their text.

    An answer that was cut off gives what is complete of them, which is what Anthropic's client
    makes of a stream. What is no JSON object is under ``INVALID_JSON``, Anthropic's word for it.

    Args:
        text: JSON text, or a beginning of it.
    """
    try:
        found = from_json(text, allow_inf_nan=False, allow_partial=True) if text else {}
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": text}
