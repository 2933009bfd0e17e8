"""How messages become a prompt: by the model's chat template, a plain one, or as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halfbyte.errors import RequestError

from .console import note, warn

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams
    from ..engine.text.tokenizer import Tokenizer

_Messages = Sequence[Mapping[str, str]]

_NAMES = {"user": "User", "assistant": "Assistant"}
_STOP = "\nUser:"
"""Where a base model would begin to speak for the user."""


def chat_ids(tokenizer: Tokenizer, messages: _Messages) -> list[int]:
    """Token ids of a conversation up to the beginning of the next answer.

    A model without a chat template gets ``User:`` and ``Assistant:`` lines, the system message
    above them.
    """
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat(messages)
    parts = []
    for message in messages:
        name = _NAMES.get(message["role"])
        content = message["content"].strip()
        parts.append(f"{name}: {content}\n" if name else f"{content}\n\n")
    return tokenizer.encode("".join(parts) + "Assistant:", parse_special=False)


def chat_params(tokenizer: Tokenizer, params: SamplingParams) -> SamplingParams:
    """The parameters of an answer in a conversation: the plain template needs a stop text."""
    if tokenizer.has_chat_template or _STOP in params.stop:
        return params
    return replace(params, stop=(*params.stop, _STOP))


@dataclass(frozen=True, slots=True)
class Asking:
    """How single prompts are put to a model.

    Attributes:
        chat: True answers the prompt as a message, False continues its text; None answers when
            the model has a chat template.
        system: system message of the conversation, or "".

    Raises:
        RequestError: a system message for a text that is continued.
    """

    chat: bool | None = None
    system: str = ""

    def __post_init__(self) -> None:
        if self.system and self.chat is False:
            raise RequestError(
                "a text that is continued (--raw) has no system message", param="system"
            )

    def answers(self, tokenizer: Tokenizer) -> bool:
        """Whether prompts are messages for this model."""
        if self.chat is None:
            return tokenizer.has_chat_template or bool(self.system)
        return self.chat

    def prompt(self, tokenizer: Tokenizer, text: str) -> str | list[int]:
        """What to submit for a text. Raises RequestError or TemplateError."""
        if not self.answers(tokenizer):
            return text
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return chat_ids(tokenizer, [*opening, {"role": "user", "content": text}])

    def params(self, tokenizer: Tokenizer, params: SamplingParams) -> SamplingParams:
        """The sampling parameters that go with it."""
        return chat_params(tokenizer, params) if self.answers(tokenizer) else params

    def say(self, engine: Engine, model: str) -> None:
        """Tell on stderr what is done for a model without a chat template."""
        if engine.tokenizer.has_chat_template or self.chat is False:
            return
        if self.answers(engine.tokenizer):
            warn_plain(model)
        else:
            note(f"{model} has no chat template: the text is continued")


def warn_plain(model: str) -> None:
    """Say that a model is not made for chats."""
    warn(
        f"{model} has no chat template: it gets plain User: and Assistant: lines, and was "
        "probably not trained to answer"
    )
