"""What a client may POST where, in a table that the HTTP face and batches share, and may GET."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .embedding import embed_texts
from .event_stream import EventStream
from .facts import server_props, slot_list, tokenizer_info
from .families import llama_cpp, ollama, ollama_fields
from .families.messages import (
    CountTokensRequest,
    MessagesRequest,
    count_tokens,
    create_message,
)
from .families.rerank import REFUSED_RERANK
from .families.responses_api import (
    ResponsesRequest,
    create_response,
    delete_response,
    find_response,
)
from .families.scores import ScoreRequest, score_pairs
from .hosting.host import ModelHost
from .hosting.listing import ModelRequest, list_models, load_model, unload_model
from .job import Call
from .kept import KeptResponses
from .responses import ResponseModel
from .schema import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RequestModel,
    TemplateRequest,
    TokenizeRequest,
)
from .service import OpenAIService


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL's work.

    Attributes:
        asks: the schema of its request bodies.
        answer: called with the service, a body of that schema and the request's record; raises
            what the service's call raises.
        operation: what the GenAI conventions call it; empty where the model does nothing.
    """

    asks: type[RequestModel]
    answer: Callable[[OpenAIService, Any, Call], Awaitable[ResponseModel | EventStream]]
    operation: str = ""


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/completions": Endpoint(CompletionRequest, OpenAIService.complete, "text_completion"),
    "/v1/chat/completions": Endpoint(ChatCompletionRequest, OpenAIService.chat, "chat"),
    "/v1/embeddings": Endpoint(EmbeddingRequest, embed_texts, "embeddings"),
    "/tokenize": Endpoint(TokenizeRequest, llama_cpp.tokenize),
    "/detokenize": Endpoint(DetokenizeRequest, lambda service, asked, _: service.detokenize(asked)),
    "/apply-template": Endpoint(TemplateRequest, lambda service, asked, _: service.render(asked)),
}
"""Path -> endpoint: what batches may ask for as well."""

FAMILY_ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/responses": Endpoint(ResponsesRequest, create_response, "chat"),
    "/score": Endpoint(ScoreRequest, score_pairs),
    "/v1/score": Endpoint(ScoreRequest, score_pairs),
    "/v1/messages": Endpoint(MessagesRequest, create_message, "chat"),
    "/v1/messages/count_tokens": Endpoint(CountTokensRequest, count_tokens),
    "/completion": Endpoint(
        llama_cpp.LlamaCppCompletionRequest, llama_cpp.llama_cpp_completion, "text_completion"
    ),
    "/completions": Endpoint(
        llama_cpp.LlamaCppCompletionRequest, llama_cpp.llama_cpp_completion, "text_completion"
    ),
    "/infill": Endpoint(llama_cpp.InfillRequest, llama_cpp.infill, "text_completion"),
    "/embedding": Endpoint(
        llama_cpp.LlamaCppEmbeddingRequest, llama_cpp.llama_cpp_embedding, "embeddings"
    ),
    "/embeddings": Endpoint(
        llama_cpp.LlamaCppEmbeddingRequest, llama_cpp.llama_cpp_embedding, "embeddings"
    ),
    "/api/chat": Endpoint(ollama_fields.OllamaChatRequest, ollama.ollama_chat, "chat"),
    "/api/generate": Endpoint(
        ollama_fields.OllamaGenerateRequest, ollama.ollama_generate, "text_completion"
    ),
    "/api/embed": Endpoint(ollama_fields.OllamaEmbedRequest, ollama.ollama_embed, "embeddings"),
    "/api/show": Endpoint(ollama_fields.OllamaShowRequest, ollama.ollama_show),
}
"""Path -> endpoint of another API."""

ABSENT: Mapping[str, tuple[int, str]] = {
    **{path: (403, reason) for path, reason in ollama.REFUSED.items()},
    **{path: (400, reason) for path, reason in REFUSED_RERANK.items()},
}
"""Path -> status and why an endpoint of another program is not there."""


@dataclass(frozen=True, slots=True)
class HostEndpoint:
    """One URL's work on the models as such.

    Attributes:
        asks: the schema of its request bodies.
        answer: called with the host, a body of that schema and the request's record.
    """

    asks: type[RequestModel]
    answer: Callable[[ModelHost, Any, Call], Awaitable[ResponseModel]]


HOST_ENDPOINTS: Mapping[str, HostEndpoint] = {
    "/models/load": HostEndpoint(ModelRequest, load_model),
    "/models/unload": HostEndpoint(ModelRequest, unload_model),
}
"""Path -> endpoint that is no single model's."""

Fact: TypeAlias = Callable[[OpenAIService], ResponseModel]
"""Answers a GET about a model."""

FACTS: Mapping[str, Fact] = {
    "/tokenizer_info": tokenizer_info,
    "/props": server_props,
    "/slots": slot_list,
}
"""Path -> what is told there of a model; which one, the query says."""

HostFact: TypeAlias = Callable[[ModelHost], ResponseModel]
"""Answers a GET about all models."""

HOST_FACTS: Mapping[str, HostFact] = {
    "/v1/models": list_models,
    "/models": list_models,
    "/api/tags": ollama.ollama_tags,
    "/api/ps": ollama.ollama_running,
    "/api/version": ollama.ollama_version,
}
"""Path -> what is told there of all models."""

OPERATIONS: Mapping[str, str] = {
    path: endpoint.operation
    for path, endpoint in {**ENDPOINTS, **FAMILY_ENDPOINTS}.items()
    if endpoint.operation
}
"""Path -> what is done there, for traces."""

KeptWork: TypeAlias = Callable[[KeptResponses, str, Call], ResponseModel]
"""Finds or forgets what is kept under an id; raises a 404 where there is nothing."""

KEPT: Mapping[tuple[str, str], KeptWork] = {
    ("GET", "/v1/responses/{id}"): find_response,
    ("DELETE", "/v1/responses/{id}"): delete_response,
}
"""Method and path -> what is done with what an earlier request left."""
