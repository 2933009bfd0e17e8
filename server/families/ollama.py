"""Ollama's API: /api/chat, /api/generate, /api/embed, /api/show, /api/tags, /api/ps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import halfbyte
from halfbyte.errors import RequestError

from ..answers.abilities import template_abilities
from ..answers.formats import reasoning_format
from ..answers.pieces import WholeAnswer, arguments_object
from ..answers.plan import PLAIN, AnswerPlan
from ..dialects.ollama import OllamaAnswer, OllamaWriter, ShowAnswer, nanoseconds, timestamp
from ..embedding import embed_texts
from ..event_stream import EventStream
from ..facts import ServedModel
from ..hosting.host import HostedModel, ModelHost
from ..job import Call
from ..responses import ResponseModel
from ..schema import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from ..service import OpenAIService
from .ollama_fields import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaOptions,
    OllamaShowRequest,
)
from .ollama_turns import ollama_messages
from .renaming import goes_on, renamed, request_of

_LATEST = ":latest"

# OpenAI's names of fields -> ollama's.
_NAMES: Mapping[str, str] = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    "reasoning_effort": "think",
    **{
        name: f"options.{name}"
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty"),
            *("mirostat_tau", "mirostat_eta", "mirostat"),
        )
    },
}

_HERE = "Models are managed where the server runs, with the program halfbyte, not over HTTP: "
REFUSED: Mapping[str, str] = {
    "/api/pull": _HERE + "use halfbyte pull.",
    "/api/push": _HERE + "nothing is uploaded.",
    "/api/create": _HERE + "use halfbyte quantize, or serve a file by its path.",
    "/api/copy": _HERE + "use halfbyte serve --served-name for another name.",
    "/api/delete": _HERE + "use halfbyte rm.",
}
"""Path -> why ollama's endpoint is not there."""


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
    fields = _fields(service, asked)
    writer = _writer(asked, _message)
    if not asked.messages:
        service.served(fields["model"])
        asked.load_only()
        return writer(PLAIN).empty()
    messages = ollama_messages(asked.messages)
    fields |= {"messages": messages, "tools": asked.tools or None}
    fields["continue_final_message"] = goes_on(messages) or None
    with renamed(_NAMES):
        request = request_of(ChatCompletionRequest, fields | asked.thought())
        return await service.converse(request, call, lambda _, plan, __: writer(plan))


async def ollama_generate(
    service: OpenAIService, asked: OllamaGenerateRequest, call: Call
) -> OllamaAnswer | EventStream:
    """POST /api/generate: a chat of one message, or the prompt as it is.

    It is as it is with ``raw``, and with ``suffix``, before which the answer stands.

    Raises RequestError for what is not honoured.
    """
    fields = _fields(service, asked)
    writer = _writer(asked, _response)
    if not asked.prompt:
        service.served(fields["model"])
        asked.load_only()
        return writer(PLAIN).empty()
    with renamed({**_NAMES, "messages": "prompt"}):
        if not (asked.raw or asked.suffix):
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            fields["messages"] = [*system, {"role": "user", "content": asked.prompt}]
            chat = request_of(ChatCompletionRequest, fields | asked.thought())
            return await service.converse(chat, call, lambda _, plan, __: writer(plan))
        for name in ("system", "think"):
            if value := getattr(asked, name):
                raise RequestError(
                    f"{name} is {value!r:.60} beside {'raw' if asked.raw else 'suffix'}, with "
                    "which there is no chat template",
                    param=name,
                    code="unsupported_value",
                )
        fields |= {"prompt": asked.prompt, "suffix": asked.suffix or None}
        request = request_of(CompletionRequest, fields)
        return await service.prolong(request, call, lambda *_: writer(PLAIN), None)


def _fields(
    service: OpenAIService, asked: OllamaChatRequest | OllamaGenerateRequest
) -> dict[str, Any]:
    """What is the same for chats and plain prompts, as fields of OpenAI's API.

    Raises:
        RequestError: a value that is not honoured.
    """
    template = service.engine.tokenizer.template_source(tools=False)
    if asked.think is True and reasoning_format(template) is None:
        raise RequestError(
            "think is true, but this model does not think: its chat template speaks of none",
            param="think",
            code="unsupported_value",
            hint="leave it out",
        )
    options = asked.options or OllamaOptions()
    return {
        "model": served_name(service, asked.model),
        "stream": asked.stream is not False,
        "response_format": asked.response_format(),
        **options.sampling(service.engine.max_context),
    }


def _writer(
    asked: OllamaChatRequest | OllamaGenerateRequest, shown: ShowAnswer
) -> Callable[[AnswerPlan], OllamaWriter]:
    """Makes the writer of the answer, for what is looked for in it."""
    started = time.perf_counter()
    return lambda plan: OllamaWriter(asked.model, shown, started, plan)


async def ollama_embed(
    service: OpenAIService, asked: OllamaEmbedRequest, call: Call
) -> OllamaEmbeddings:
    """POST /api/embed."""
    started = time.perf_counter()
    if asked.options is not None:
        asked.options.sampling(service.engine.max_context)
    fields = {"model": served_name(service, asked.model), "input": asked.input}
    done = await embed_texts(service, request_of(EmbeddingRequest, fields), call)
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
    abilities = await asyncio.to_thread(template_abilities, service.engine.tokenizer)
    return OllamaModelInfo(
        template=service.engine.tokenizer.template_source(tools=False),
        details=_details(service.facts),
        model_info={
            "general.architecture": family,
            "general.basename": service.engine.name,
            f"{family}.context_length": service.engine.max_context,
        },
        capabilities=["completion", "embedding", *abilities],
        modified_at=timestamp(service.created),
    )


def ollama_tags(host: ModelHost) -> OllamaModels:
    """GET /api/tags."""
    return OllamaModels(
        models=[
            card | {"modified_at": timestamp(model.created)}
            for model in host.models
            for card in _cards(model)
        ]
    )


def ollama_running(host: ModelHost) -> OllamaModels:
    """GET /api/ps: a model that is loaded stays until another needs its room."""
    return OllamaModels(models=[card for model in host.models for card in _running(model)])


def ollama_version(_: ModelHost) -> OllamaVersion:
    """GET /api/version."""
    return OllamaVersion()


def _message(answer: WholeAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["thinking"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "function": {"name": call.name, "arguments": arguments_object(call.arguments)},
            }
            for call in answer.calls
        ]
    return {"message": message}


def _response(answer: WholeAnswer) -> dict[str, Any]:
    thought = {"thinking": answer.reasoning} if answer.reasoning else {}
    return {"response": answer.content, **thought}


def _running(model: HostedModel) -> list[dict[str, Any]]:
    """The cards of a model that is loaded."""
    if model.service is None:
        return []
    on_gpu = model.service.facts.backend == "cuda_triton"
    more = {
        "expires_at": "9999-12-31T23:59:59Z",
        "size_vram": model.offer.facts.nbytes if on_gpu else 0,
        "context_length": model.offer.max_context,
    }
    return [card | more for card in _cards(model)]


def _details(facts: ServedModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": facts.file_format,
        "family": facts.architecture,
        "families": [facts.architecture] if facts.architecture else [],
        "parameter_size": "",
        "quantization_level": facts.quantization,
    }


def _cards(model: HostedModel) -> list[dict[str, Any]]:
    """A card for each name, with a tag as ollama's lists have it."""
    offer = model.offer
    names = [n if ":" in n.rpartition("/")[2] else n + _LATEST for n in offer.names]
    return [
        {
            "name": name,
            "model": name,
            "size": offer.facts.nbytes,
            "digest": offer.digest,
            "details": _details(offer.facts),
        }
        for name in names
    ]
