"""Responses of the OpenAI API as pydantic models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SkipValidation

from .json_bytes import json_bytes


class ResponseModel(BaseModel):
    """Base of response bodies.

    Attributes:
        shape: type of what its JSON holds, where that is not its own fields.
    """

    shape: ClassVar[Any] = None

    def to_json(self) -> bytes:
        """The body's text, UTF-8; ten times as fast as pydantic's for millions of tokens."""
        return json_bytes(dict(self), dict)


class FreeResponse(ResponseModel):
    """A body whose fields are known only when it is written.

    Attributes:
        fields: all of them.
    """

    shape = dict[str, Any]
    fields: dict[str, Any]

    def to_json(self) -> bytes:
        """The fields alone."""
        return json_bytes(self.fields)


class PromptTokensDetails(ResponseModel):
    """Part of the prompt tokens that the prefix cache saved computing."""

    cached_tokens: int = 0


class CompletionTokensDetails(ResponseModel):
    """Part of the completion tokens that were reasoning."""

    reasoning_tokens: int = 0


class UsageInfo(ResponseModel):
    """Token counts, summed over the prompts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class CompletionLogprobs(ResponseModel):
    """Log-probabilities of a text completion, a place for each token in every list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One answer of a text completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str
    stop_reason: str | int | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: SkipValidation[list[int]] | None = None
    token_ids: SkipValidation[list[int]] | None = None


class TextCompletion(ResponseModel):
    """Response of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageInfo


class AssistantMessage(ResponseModel):
    """The answer of a chat; ``content`` is null only beside calls.

    ``tool_calls`` is there where there are calls. What the model thought is there where it did:
    ``reasoning`` is vLLM's name for it, ``reasoning_content`` DeepSeek's.
    """

    model_config = ConfigDict(extra="allow")
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None


class ChatChoice(ResponseModel):
    """One answer of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: SkipValidation[list[int]] | None = None


class ChatCompletion(ResponseModel):
    """Response of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageInfo
    prompt_token_ids: SkipValidation[list[int]] | None = None


class EmbeddingUsage(ResponseModel):
    """Token counts, summed over the texts of a request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(ResponseModel):
    """The vector of one text: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: SkipValidation[list[float]] | str


class EmbeddingList(ResponseModel):
    """Response of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class ModelCard(ResponseModel):
    """One entry of GET /v1/models; ``status`` is as llama.cpp has it.

    ``aliases`` are the model's other names, which have entries of their own.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "halfbyte"
    root: str
    aliases: list[str]
    max_model_len: int
    status: dict[str, str]


class ModelList(ResponseModel):
    """Response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeResponse(ResponseModel):
    """Response of POST /tokenize."""

    count: int
    max_model_len: int
    # Our own, and so many that looking at each would stop all streams for a tenth of a second.
    tokens: SkipValidation[list[int]]
    token_strs: SkipValidation[list[str]] | None = None


class TemplateResponse(ResponseModel):
    """Response of POST /apply-template."""

    prompt: str


class DetokenizeResponse(ResponseModel):
    """Response of POST /detokenize: the text under vLLM's name and llama.cpp's."""

    prompt: str
    content: str


class HealthStatus(ResponseModel):
    """Response of GET /health and /ready, when all is well."""

    status: Literal["ok", "ready"]


class VersionInfo(ResponseModel):
    """Response of GET /version."""

    version: str


class DeletedThing(ResponseModel):
    """Response of DELETE: what is gone."""

    id: str
    object: Literal["file", "response"]
    deleted: Literal[True] = True
