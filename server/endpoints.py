"""What a client may POST where, in a table that the HTTP face and batches share, and may GET."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .dialects.llama_cpp import LlamaCppCompletion
from .dialects.messages import MessageResponse
from .dialects.ollama import NDJSON, OllamaAnswer
from .dialects.responses import ResponseObject
from .embedding import embed_texts
from .event_stream import EventStream
from .facts import (
    ServerProps,
    SlotList,
    TokenizerInfo,
    server_props,
    slot_list,
    tokenizer_info,
)
from .families import llama_cpp, ollama, ollama_fields
from .families.messages import (
    CountTokensRequest,
    MessagesRequest,
    TokenCount,
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
from .families.scores import ScoreList, ScoreRequest, score_pairs
from .hosting.host import ModelHost
from .hosting.listing import ModelChanged, ModelRequest, list_models, load_model, unload_model
from .job import Call
from .kept import KeptResponses
from .responses import (
    ChatCompletion,
    DeletedThing,
    DetokenizeResponse,
    EmbeddingList,
    ModelList,
    ResponseModel,
    TemplateResponse,
    TextCompletion,
    TokenizeResponse,
)
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
from .sse import SSE


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL's work.

    Attributes:
        asks: the schema of its request bodies.
        answer: called with the service, a body of that schema and the request's record; raises
            what the service's call raises.
        gives: kinds of its whole answers.
        operation: what the GenAI conventions call it; empty where the model does nothing.
        streams: media type of its streamed answers; empty where there are none.
    """

    asks: type[RequestModel]
    answer: Callable[[OpenAIService, Any, Call], Awaitable[ResponseModel | EventStream]]
    gives: tuple[type[ResponseModel], ...]
    operation: str = ""
    streams: str = ""


PAGE_CHAT = "/page/chat"
"""Where the server's own page asks; its endpoint is made with the page."""

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/completions": Endpoint(
        CompletionRequest, OpenAIService.complete, (TextCompletion,), "text_completion", SSE
    ),
    "/v1/chat/completions": Endpoint(
        ChatCompletionRequest, OpenAIService.chat, (ChatCompletion,), "chat", SSE
    ),
    "/v1/embeddings": Endpoint(EmbeddingRequest, embed_texts, (EmbeddingList,), "embeddings"),
    "/tokenize": Endpoint(
        TokenizeRequest, llama_cpp.tokenize, (TokenizeResponse, llama_cpp.LlamaCppTokens)
    ),
    "/detokenize": Endpoint(
        DetokenizeRequest,
        lambda service, asked, _: service.detokenize(asked),
        (DetokenizeResponse,),
    ),
    "/apply-template": Endpoint(
        TemplateRequest, lambda service, asked, _: service.render(asked), (TemplateResponse,)
    ),
}
"""Path -> endpoint: what batches may ask for as well."""

_SCORE = Endpoint(ScoreRequest, score_pairs, (ScoreList,))
_COMPLETION = Endpoint(
    llama_cpp.LlamaCppCompletionRequest,
    llama_cpp.llama_cpp_completion,
    (LlamaCppCompletion,),
    "text_completion",
    SSE,
)
_EMBEDDING = Endpoint(
    llama_cpp.LlamaCppEmbeddingRequest,
    llama_cpp.llama_cpp_embedding,
    (llama_cpp.LlamaCppEmbeddings,),
    "embeddings",
)

FAMILY_ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/responses": Endpoint(ResponsesRequest, create_response, (ResponseObject,), "chat", SSE),
    "/score": _SCORE,
    "/v1/score": _SCORE,
    "/v1/messages": Endpoint(MessagesRequest, create_message, (MessageResponse,), "chat", SSE),
    "/v1/messages/count_tokens": Endpoint(CountTokensRequest, count_tokens, (TokenCount,)),
    "/completion": _COMPLETION,
    "/completions": _COMPLETION,
    "/infill": Endpoint(
        llama_cpp.InfillRequest, llama_cpp.infill, (LlamaCppCompletion,), "text_completion", SSE
    ),
    "/embedding": _EMBEDDING,
    "/embeddings": _EMBEDDING,
    "/api/chat": Endpoint(
        ollama_fields.OllamaChatRequest, ollama.ollama_chat, (OllamaAnswer,), "chat", NDJSON
    ),
    "/api/generate": Endpoint(
        ollama_fields.OllamaGenerateRequest,
        ollama.ollama_generate,
        (OllamaAnswer,),
        "text_completion",
        NDJSON,
    ),
    "/api/embed": Endpoint(
        ollama_fields.OllamaEmbedRequest,
        ollama.ollama_embed,
        (ollama.OllamaEmbeddings,),
        "embeddings",
    ),
    "/api/show": Endpoint(
        ollama_fields.OllamaShowRequest, ollama.ollama_show, (ollama.OllamaModelInfo,)
    ),
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
        gives: kind of its answers.
    """

    asks: type[RequestModel]
    answer: Callable[[ModelHost, Any, Call], Awaitable[ResponseModel]]
    gives: type[ResponseModel]


HOST_ENDPOINTS: Mapping[str, HostEndpoint] = {
    "/models/load": HostEndpoint(ModelRequest, load_model, ModelChanged),
    "/models/unload": HostEndpoint(ModelRequest, unload_model, ModelChanged),
}
"""Path -> endpoint that is no single model's."""


FactSource = TypeVar("FactSource", OpenAIService, ModelHost)


@dataclass(frozen=True, slots=True)
class Fact(Generic[FactSource]):
    """What a GET tells of a model, or of all of them.

    Attributes:
        answer: called with the model's service, or with the host.
        gives: kind of its answers.
    """

    answer: Callable[[FactSource], ResponseModel]
    gives: type[ResponseModel]


FACTS: Mapping[str, Fact[OpenAIService]] = {
    "/tokenizer_info": Fact(tokenizer_info, TokenizerInfo),
    "/props": Fact(server_props, ServerProps),
    "/slots": Fact(slot_list, SlotList),
}
"""Path -> what is told there of a model; which one, the query says."""


HOST_FACTS: Mapping[str, Fact[ModelHost]] = {
    "/v1/models": Fact(list_models, ModelList),
    "/models": Fact(list_models, ModelList),
    "/api/tags": Fact(ollama.ollama_tags, ollama.OllamaModels),
    "/api/ps": Fact(ollama.ollama_running, ollama.OllamaModels),
    "/api/version": Fact(ollama.ollama_version, ollama.OllamaVersion),
}
"""Path -> what is told there of all models."""

OPERATIONS: Mapping[str, str] = {
    path: endpoint.operation
    for path, endpoint in {**ENDPOINTS, **FAMILY_ENDPOINTS}.items()
    if endpoint.operation
} | {PAGE_CHAT: "chat"}
"""Path -> what is done there, for traces."""


@dataclass(frozen=True, slots=True)
class KeptWork:
    """What is done with what an earlier request left.

    Attributes:
        answer: finds or forgets what is kept under an id; raises a 404 where there is nothing.
        gives: kind of its answers.
    """

    answer: Callable[[KeptResponses, str, Call], ResponseModel]
    gives: type[ResponseModel]


KEPT: Mapping[tuple[str, str], KeptWork] = {
    ("GET", "/v1/responses/{id}"): KeptWork(find_response, ResponseObject),
    ("DELETE", "/v1/responses/{id}"): KeptWork(delete_response, DeletedThing),
}
"""Method and path -> what is done with what an earlier request left."""
