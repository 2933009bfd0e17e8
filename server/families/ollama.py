"""Ollama's API: /api/chat, /api/generate, /api/embed, /api/show, /api/tags, /api/ps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

import halfbyte
from halfbyte.errors import RequestError

from ..dialects.ollama import OllamaAnswer, OllamaWriter, nanoseconds, timestamp
from ..event_stream import EventStream
from ..job import Call
from ..responses import ResponseModel
from ..schema import (
    MAX_MESSAGES,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    RequestModel,
)
from ..service import OpenAIService
from ..unsupported import refuse_unsupported
from .renaming import refuse_begun, renamed, request_of

_LATEST = ":latest"
_NONE = (None,)
_OFF = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {}, "")

# Options that change nothing with these values. All other options that are not fields of
# `OllamaOptions` are refused with whatever value.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tfs_z": (None, 1, 1.0),
    "penalize_newline": (None, True),
    "numa": _OFF,
    "low_vram": _OFF,
    "vocab_only": _OFF,
    "use_mlock": _OFF,
    "use_mmap": (None, True),
}

# OpenAI's names of fields -> ollama's.
_NAMES: Mapping[str, str] = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    **{
        name: f"options.{name}"
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty"),
            *("mirostat_tau", "mirostat_eta", "mirostat"),
        )
    },
}

# Ollama's own defaults where they differ from OpenAI's.
_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}

_HERE = "Models are managed where the server runs, with the program halfbyte, not over HTTP: "
REFUSED: Mapping[str, str] = {
    "/api/pull": _HERE + "use halfbyte pull.",
    "/api/push": _HERE + "nothing is uploaded.",
    "/api/create": _HERE + "use halfbyte quantize, or serve a file by its path.",
    "/api/copy": _HERE + "use halfbyte serve --served-name for another name.",
    "/api/delete": _HERE + "use halfbyte rm.",
}
"""Path -> why ollama's endpoint is not there."""


class OllamaOptions(RequestModel):
    """Ollama's ``options``; ranges are those of the same fields of OpenAI's API."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    num_ctx: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _only_known(self) -> Any:
        extra = self.model_extra or {}
        refuse_unsupported(extra, {n: _NEUTRAL.get(n, _NONE) for n in extra}, "options.")
        penalized = self.repeat_penalty not in (None, 1.0)
        if penalized and self.repeat_last_n not in (None, -1):
            raise RequestError(
                f"options.repeat_last_n is {self.repeat_last_n}, but repeat_penalty is for the "
                "whole text here",
                param="options.repeat_last_n",
                code="unsupported_value",
                hint="leave it out, or use -1",
            )
        return self

    def sampling(self, context: int) -> dict[str, Any]:
        """The same as fields of OpenAI's API, with ollama's defaults.

        Raises:
            RequestError: ``num_ctx`` is more than the ``context`` that there is.
        """
        if self.num_ctx is not None and self.num_ctx > context:
            raise RequestError(
                f"options.num_ctx is {self.num_ctx}, but the context holds {context} tokens",
                param="options.num_ctx",
            )
        same = (
            *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed"),
            *("presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau"),
            "mirostat_eta",
        )
        fields = {n: v for n in same if (v := getattr(self, n)) is not None}
        # Mirostat replaces what the defaults do.
        fields = {**({} if self.mirostat else _DEFAULTS), **fields}
        limit = self.num_predict or 0
        return fields | {
            "stop": self.stop or None,
            "repetition_penalty": self.repeat_penalty,
            "max_tokens": limit if limit > 0 else None,
        }


class _OllamaRequest(RequestModel):
    model: Annotated[str, Field(min_length=1)]
    options: OllamaOptions | None = None
    keep_alive: Annotated[str, Field(pattern=r"^-?[0-9a-zµ.]{1,32}$")] | float | None = None


class _OllamaGeneration(_OllamaRequest):
    """Fields that chats and plain prompts share."""

    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | None = None

    def load_only(self) -> None:
        """Raise a RequestError where an empty request asks for the model to be unloaded."""
        if self.keep_alive is not None and str(self.keep_alive).strip("0smh.") in ("", "-"):
            raise RequestError(
                "keep_alive is 0, which unloads the model, but this server keeps it",
                param="keep_alive",
                code="unsupported_value",
                hint="stop the server to free its memory",
            )

    def fields(self, service: OpenAIService) -> dict[str, Any]:
        """What is the same for chats and plain prompts, as fields of OpenAI's API.

        Raises:
            RequestError: a value that is not honoured.
        """
        if self.think:
            raise RequestError(
                "think is true, but this server does not tell thoughts from answers",
                param="think",
                code="unsupported_value",
                hint="leave it out",
            )
        options = self.options or OllamaOptions()
        wanted: dict[str, Any] | None = None
        if isinstance(self.format, dict):
            wanted = {
                "type": "json_schema",
                "json_schema": {"name": "format", "schema": self.format},
            }
        elif self.format:
            wanted = {"type": "json_object"}
        return {
            "model": served_name(service, self.model),
            "stream": self.stream is not False,
            "response_format": wanted,
            **options.sampling(service.engine.max_context),
        }

    def switches(self) -> dict[str, Any] | None:
        """Template switches."""
        return None if self.think is None else {"enable_thinking": self.think}


class OllamaMessage(RequestModel):
    """One message of a conversation."""

    not_honoured: ClassVar[Any] = {
        "images": _EMPTY,
        "tool_calls": _EMPTY,
        "tool_name": _NONE,
        "thinking": (None, ""),
    }
    prefix = "messages."
    role: Literal["system", "user", "assistant"]
    content: str | None = None


class OllamaChatRequest(_OllamaGeneration):
    """Body of POST /api/chat."""

    not_honoured: ClassVar[Any] = {
        "tools": _EMPTY,
        "logprobs": _OFF,
        "top_logprobs": (None, 0),
        "shift": _OFF,
        "truncate": _OFF,
    }
    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES)] | None = None


class OllamaGenerateRequest(_OllamaGeneration):
    """Body of POST /api/generate."""

    not_honoured: ClassVar[Any] = {
        **OllamaChatRequest.not_honoured,
        "suffix": (None, ""),
        "images": _EMPTY,
        "template": (None, ""),
        "context": _EMPTY,
    }
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


class OllamaEmbedRequest(_OllamaRequest):
    """Body of POST /api/embed; a text that does not fit is an error, whatever ``truncate`` is."""

    not_honoured: ClassVar[Any] = {"dimensions": (None, 0)}
    input: Any
    truncate: bool | None = None


class OllamaShowRequest(RequestModel):
    """Body of POST /api/show."""

    not_honoured: ClassVar[Any] = {
        "system": (None, ""),
        "template": (None, ""),
        "options": _EMPTY,
    }
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


class OllamaEmbeddings(ResponseModel):
    """Response of POST /api/embed."""

    model: str
    embeddings: list[Any]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


class OllamaModels(ResponseModel):
    """Response of GET /api/tags and /api/ps."""

    models: list[dict[str, Any]]


class OllamaModelInfo(ResponseModel):
    """Response of POST /api/show."""

    modelfile: str = ""
    parameters: str = ""
    template: str
    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(ResponseModel):
    """Response of GET /api/version: that of this program."""

    version: str = halfbyte.__version__


def served_name(service: OpenAIService, name: str) -> str:
    """The model's name; without a tag it means ``:latest``."""
    return name if name in service.names else name.removesuffix(_LATEST)


async def ollama_chat(
    service: OpenAIService, asked: OllamaChatRequest, call: Call
) -> OllamaAnswer | EventStream:
    """POST /api/chat."""
    writer = OllamaWriter(asked.model, _message, time.perf_counter())
    fields = asked.fields(service)
    if not asked.messages:
        service.served(fields["model"])
        asked.load_only()
        return writer.empty()
    refuse_begun([message.role for message in asked.messages])
    fields["messages"] = [{"role": m.role, "content": m.content or ""} for m in asked.messages]
    fields["chat_template_kwargs"] = asked.switches()
    with renamed(_NAMES):
        request = request_of(ChatCompletionRequest, fields)
        return await service.converse(request, call, lambda *_: writer)


async def ollama_generate(
    service: OpenAIService, asked: OllamaGenerateRequest, call: Call
) -> OllamaAnswer | EventStream:
    """POST /api/generate: a chat of one message, or with ``raw`` the prompt as it is.

    Raises RequestError for what is not honoured.
    """
    writer = OllamaWriter(asked.model, _response, time.perf_counter())
    fields = asked.fields(service)
    if not asked.prompt:
        service.served(fields["model"])
        asked.load_only()
        return writer.empty()
    with renamed({**_NAMES, "messages": "prompt"}):
        if not asked.raw:
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            fields["messages"] = [*system, {"role": "user", "content": asked.prompt}]
            fields["chat_template_kwargs"] = asked.switches()
            chat = request_of(ChatCompletionRequest, fields)
            return await service.converse(chat, call, lambda *_: writer)
        if asked.system:
            raise RequestError(
                "system is given beside raw, with which the prompt is all there is",
                param="system",
                code="unsupported_value",
            )
        request = request_of(CompletionRequest, {**fields, "prompt": asked.prompt})
        return await service.prolong(request, call, lambda *_: writer, None)


async def ollama_embed(
    service: OpenAIService, asked: OllamaEmbedRequest, call: Call
) -> OllamaEmbeddings:
    """POST /api/embed."""
    started = time.perf_counter()
    if asked.options is not None:
        asked.options.sampling(service.engine.max_context)
    fields = {"model": served_name(service, asked.model), "input": asked.input}
    done = await service.embed(request_of(EmbeddingRequest, fields), call)
    return OllamaEmbeddings(
        model=asked.model,
        embeddings=[item.embedding for item in done.data],
        total_duration=nanoseconds(time.perf_counter() - started),
        prompt_eval_count=done.usage.prompt_tokens,
    )


async def ollama_show(service: OpenAIService, asked: OllamaShowRequest, _: Call) -> OllamaModelInfo:
    """POST /api/show. Raises RequestError where no model is named."""
    name = asked.model or asked.name
    if name is None:
        raise RequestError("model is missing", param="model", code="missing_required_parameter")
    service.served(served_name(service, name))
    family = service.facts.architecture
    return OllamaModelInfo(
        template=service.engine.tokenizer.template_source(tools=False),
        details=_details(service),
        model_info={
            "general.architecture": family,
            "general.basename": service.engine.name,
            f"{family}.context_length": service.engine.max_context,
        },
        capabilities=["completion", "embedding"],
        modified_at=timestamp(service.created),
    )


def ollama_tags(service: OpenAIService) -> OllamaModels:
    """GET /api/tags."""
    modified = {"modified_at": timestamp(service.created)}
    return OllamaModels(models=[card | modified for card in _cards(service)])


def ollama_running(service: OpenAIService) -> OllamaModels:
    """GET /api/ps: the model is there as long as the server is."""
    more = {
        "expires_at": "9999-12-31T23:59:59Z",
        "size_vram": service.facts.nbytes if service.engine.config.device == "cuda" else 0,
        "context_length": service.engine.max_context,
    }
    return OllamaModels(models=[card | more for card in _cards(service)])


def ollama_version(_: OpenAIService) -> OllamaVersion:
    """GET /api/version."""
    return OllamaVersion()


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _response(text: str) -> dict[str, Any]:
    return {"response": text}


def _details(service: OpenAIService) -> dict[str, Any]:
    facts = service.facts
    return {
        "parent_model": "",
        "format": facts.file_format,
        "family": facts.architecture,
        "families": [facts.architecture] if facts.architecture else [],
        "parameter_size": "",
        "quantization_level": facts.quantization,
    }


def _cards(service: OpenAIService) -> list[dict[str, Any]]:
    """A card for each name, with a tag as ollama's lists have it."""
    names = [n if ":" in n.rpartition("/")[2] else n + _LATEST for n in service.names]
    return [
        {
            "name": name,
            "model": name,
            "size": service.facts.nbytes,
            "digest": service.digest,
            "details": _details(service),
        }
        for name in names
    ]
