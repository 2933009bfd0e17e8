"""POST /page/chat: a chat completion whose stream also has the answer as HTML."""

from __future__ import annotations

from functools import partial
from typing import Any

from halfbyte.errors import RequestError

from ...engine.request import Delta
from ..dialects.chat import ChatDialect
from ..event_stream import EventStream
from ..job import Call
from ..responses import UsageInfo
from ..schema import ChatCompletionRequest
from ..service import OpenAIService
from .answer_html import AnswerHtml, with_html
from .fields import CHAT_DEFAULTS
from .renderer import Renderer


class PageChatDialect(ChatDialect):
    """Chat completions of which the content is noted as well; the end mark is another's to send.

    Args:
        answer: gets the content of the answer.
        arguments: those of `ChatDialect`.
        options: those of `ChatDialect`.
    """

    def __init__(self, answer: AnswerHtml, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._answer = answer

    def closing(self, usage: UsageInfo) -> bytes:
        """The usage chunk, where it is wanted."""
        self._answer.complete = True
        return self.usage_frame(usage)

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        pieces = super()._pieces(index, delta)
        self._answer.text += "".join(piece["delta"].get("content", "") for piece in pieces)
        return pieces


async def page_chat(
    renderer: Renderer, service: OpenAIService, request: ChatCompletionRequest, call: Call
) -> EventStream:
    """One streamed answer, with its HTML; sampling fields that are not given are a chat's.

    Args:
        renderer: of the server.
        service: of the model.
        request: the conversation.
        call: the request's record.

    Raises:
        RequestError: it asks for anything but one answer that is streamed.
    """
    for field, value, wanted in (("stream", request.stream, True), ("n", request.n or 1, 1)):
        if value != wanted:
            raise RequestError(
                f"{field} is {value!r}; /page/chat streams one answer, so it must be {wanted!r}",
                param=field,
                hint="use /v1/chat/completions",
            )
    absent = {name for name in CHAT_DEFAULTS if getattr(request, name) is None}
    request = request.model_copy(update={name: CHAT_DEFAULTS[name] for name in absent})
    last = request.messages[-1].content if request.continue_final_message else None
    answer = AnswerHtml(renderer, last if isinstance(last, str) else "")
    stream = await service.chat(request, call, partial(PageChatDialect, answer))
    assert isinstance(stream, EventStream), "it was asked for"
    return stream.mapped(lambda frames: with_html(frames, answer))
