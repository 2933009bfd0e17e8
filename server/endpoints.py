"""What a client may POST where: one table, which the HTTP face and batches share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .job import Call
from .responses import ResponseModel
from .schema import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RequestModel,
    TokenizeRequest,
)
from .service import EventStream, OpenAIService


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL's work.

    Attributes:
        asks: the schema of its request bodies.
        answer: called with the service, a body of that schema and the request's record; raises
            what the service's call raises.
    """

    asks: type[RequestModel]
    answer: Callable[[OpenAIService, Any, Call], Awaitable[ResponseModel | EventStream]]


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/completions": Endpoint(CompletionRequest, OpenAIService.complete),
    "/v1/chat/completions": Endpoint(ChatCompletionRequest, OpenAIService.chat),
    "/v1/embeddings": Endpoint(EmbeddingRequest, OpenAIService.embed),
    "/tokenize": Endpoint(TokenizeRequest, lambda service, asked, _: service.tokenize(asked)),
    "/detokenize": Endpoint(DetokenizeRequest, lambda service, asked, _: service.detokenize(asked)),
}
"""Path -> endpoint."""
