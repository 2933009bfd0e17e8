"""llama.cpp's API: /completion, /infill, /embedding, and its fields of /tokenize."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from halfbyte.errors import RequestError

from ..dialects.base import Head
from ..dialects.llama_cpp import LlamaCppCompletion, LlamaCppWriter
from ..dialects.token_text import TokenText
from ..embedding import embed_texts
from ..event_stream import EventStream
from ..job import Call
from ..request_model import RequestModel, given
from ..responses import FreeResponse, ResponseModel, TokenizeResponse
from ..schema import (
    PROMPT_SCHEMA,
    CompletionRequest,
    EmbeddingRequest,
    TokenId,
    TokenizeRequest,
)
from ..service import OpenAIService
from .renaming import renamed, request_of

_NONE = (None,)
_OFF = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {}, "")

# OpenAI's names of fields -> llama.cpp's.
_NAMES: Mapping[str, str] = {
    "max_tokens": "n_predict",
    "repetition_penalty": "repeat_penalty",
    "logprobs": "n_probs",
    "guided_grammar": "grammar",
    "guided_json": "json_schema",
}
# llama.cpp's own defaults; Mirostat replaces what they do but for the temperature.
_TEMPERATURE = 0.8
_FILTERS: Mapping[str, Any] = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
# Sampling fields that both have under one name with one meaning; their ranges are ours.
_SAME = (
    *("temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p"),
    *("top_n_sigma", "xtc_probability", "xtc_threshold", "typical_p", "presence_penalty"),
    *("frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length"),
    *("dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau"),
    *("mirostat_eta", "seed", "ignore_eos"),
)

_TEXTS = WithJsonSchema({"anyOf": [PROMPT_SCHEMA, {"type": "null"}]})
Bias = Annotated[list[Any], Field(min_length=2, max_length=2)]


def _describe_ranges(schema: Any) -> None:
    """Add the JSON schemas of the fields that a text completion's schema looks at."""
    names = {name: name for name in _SAME}
    names |= {"repeat_penalty": "repetition_penalty", "n_probs": "logprobs"}
    fields = CompletionRequest.model_json_schema()["properties"]
    schema["properties"].update({own: fields[name] for own, name in names.items()})


class LlamaCppRequest(RequestModel):
    """What /completion and /infill have in common; sampling fields are looked at by `fields`."""

    not_honoured: ClassVar[Any] = {
        "id_slot": (None, -1),
        "t_max_predict_ms": (None, 0, -1),
        "t_max_prompt_ms": (None, 0, -1),
        "n_indent": (None, 0),
        "min_keep": (None, 0),
        "n_cmpl": (None, 1),
        "samplers": _NONE,
        "lora": _EMPTY,
        "image_data": _EMPTY,
        "response_fields": _EMPTY,
        "post_sampling_probs": _OFF,
        "timings_per_token": _OFF,
        "return_progress": _OFF,
        "penalty_prompt": _NONE,
        "grammar_lazy": _OFF,
        "grammar_triggers": _EMPTY,
    }
    model_config = ConfigDict(json_schema_extra=_describe_ranges)
    model: str | None = None
    n_predict: Annotated[int, Field(ge=-2)] | None = None
    # The prompt is never cut, so whatever was to be kept of it is.
    n_keep: int | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    stop: list[str] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    logit_bias: list[Bias] | None = None
    n_probs: int | None = None
    return_tokens: bool | None = None
    cache_prompt: bool | None = None
    stream: bool | None = None

    def fields(self) -> dict[str, Any]:
        """The same as fields of OpenAI's API, with llama.cpp's defaults.

        Raises:
            RequestError: a value that is not honoured.
        """
        if self.repeat_penalty not in (None, 1.0) and self.repeat_last_n not in (None, -1):
            raise RequestError(
                f"repeat_last_n is {self.repeat_last_n}, but repeat_penalty is for the whole text "
                "here",
                param="repeat_last_n",
                code="unsupported_value",
                hint="leave it out, or use -1",
            )
        if self.grammar and self.json_schema is not None:
            raise RequestError(
                "json_schema is given beside grammar: give one of them", param="json_schema"
            )
        extra = self.model_extra or {}
        given = {name: extra[name] for name in _SAME if extra.get(name) is not None}
        filters = {} if given.get("mirostat") else _FILTERS
        limit = -1 if self.n_predict is None else self.n_predict
        return {
            "temperature": _TEMPERATURE,
            **filters,
            **given,
            "model": self.model,
            "max_tokens": limit if limit >= 0 else None,
            "repetition_penalty": self.repeat_penalty,
            "stop": self.stop or None,
            "guided_grammar": self.grammar or None,
            "guided_json": self.json_schema,
            "logit_bias": self._biases(),
            "logprobs": self.n_probs or None,
            "stream": self.stream,
            # Nobody else has this salt, so nothing is found in the cache.
            "cache_salt": uuid.uuid4().hex if self.cache_prompt is False else None,
        }

    def _biases(self) -> dict[str, float] | None:
        """Biases by token id. Raises RequestError for one that is not of that form."""
        if not self.logit_bias:
            return None
        out = {}
        for index, (token, bias) in enumerate(self.logit_bias):
            if type(token) is not int or type(bias) not in (int, float):
                raise RequestError(
                    f"logit_bias.{index} is not a token id and a number",
                    param=f"logit_bias.{index}",
                    code="unsupported_value",
                )
            out[str(token)] = bias
        return out


class LlamaCppCompletionRequest(LlamaCppRequest):
    """Body of POST /completion."""

    prompt: str | list[TokenId]


class InfillRequest(LlamaCppRequest):
    """Body of POST /infill; ``prompt`` is the end of what stands before the hole."""

    not_honoured: ClassVar[Any] = {**LlamaCppRequest.not_honoured, "input_extra": _EMPTY}
    input_prefix: str
    input_suffix: str
    prompt: str | None = None


class LlamaCppEmbeddingRequest(RequestModel):
    """Body of POST /embedding; ``input`` is another name of ``content``."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [given("content"), given("input")]})
    content: Annotated[Any, _TEXTS] = None
    input: Annotated[Any, _TEXTS] = None
    embd_normalize: Literal[-1, 2] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Any:
        if (self.content is None) == (self.input is None):
            raise RequestError("expected either content or input", param="content")
        return self


class EmbeddedText(BaseModel):
    """One entry of the response of POST /embedding."""

    index: int
    embedding: list[list[float]]


class TokenPiece(BaseModel):
    """One token of POST /tokenize ``with_pieces``: its text, or its bytes where it is none."""

    id: int
    piece: str | list[int]


class TokenFields(BaseModel):
    """What is in a response of POST /tokenize to ``content``."""

    tokens: list[int | TokenPiece]


class LlamaCppTokens(FreeResponse):
    """Response of POST /tokenize to ``content``."""

    shape = TokenFields


class LlamaCppEmbeddings(ResponseModel):
    """Response of POST /embedding: a list, with the one vector of each text in a list."""

    shape = list[EmbeddedText]
    items: list[dict[str, Any]]

    def to_json(self) -> bytes:
        """The list alone."""
        return orjson.dumps(self.items)


async def llama_cpp_completion(
    service: OpenAIService, asked: LlamaCppCompletionRequest, call: Call
) -> LlamaCppCompletion | EventStream:
    """POST /completion."""
    return await _prolong(service, asked, {"prompt": asked.prompt}, call, _NAMES)


async def infill(
    service: OpenAIService, asked: InfillRequest, call: Call
) -> LlamaCppCompletion | EventStream:
    """POST /infill. Raises RequestError where the model cannot fill in."""
    texts = {
        "prompt": asked.input_prefix + (asked.prompt or ""),
        # An empty text behind the hole asks for the same thing as one that is there.
        "suffix": asked.input_suffix,
    }
    names = {**_NAMES, "prompt": "input_prefix", "suffix": "input_suffix"}
    return await _prolong(service, asked, texts, call, names)


async def _prolong(
    service: OpenAIService,
    asked: LlamaCppRequest,
    texts: Mapping[str, Any],
    call: Call,
    names: Mapping[str, str],
) -> LlamaCppCompletion | EventStream:
    fields = asked.fields()
    hidden = ("model", "stream", "cache_salt")
    settings = {n: v for n, v in fields.items() if v is not None and n not in hidden}

    def writer(head: Head, ids: list[list[int]], _: object) -> LlamaCppWriter:
        codec = service.engine.tokenizer
        prompt = texts["prompt"]
        if not isinstance(prompt, str) or "suffix" in texts:
            prompt = codec.decode(ids[0], skip_special=False)
        return LlamaCppWriter(
            head,
            TokenText(codec),
            prompt,
            len(ids[0]),
            {names.get(name, name): value for name, value in settings.items()},
            rated=bool(asked.n_probs),
            with_tokens=asked.return_tokens is True or asked.stream is True,
        )

    with renamed(names):
        request = request_of(CompletionRequest, {**fields, **texts})
        return await service.prolong(request, call, writer, None)


async def llama_cpp_embedding(
    service: OpenAIService, asked: LlamaCppEmbeddingRequest, call: Call
) -> LlamaCppEmbeddings:
    """POST /embedding."""
    name = "input" if asked.content is None else "content"
    fields = {"input": getattr(asked, name), "normalize": asked.embd_normalize != -1}
    with renamed({"input": name}):
        done = await embed_texts(service, request_of(EmbeddingRequest, fields), call)
    return LlamaCppEmbeddings(
        items=[{"index": item.index, "embedding": [item.embedding]} for item in done.data]
    )


async def tokenize(
    service: OpenAIService, asked: TokenizeRequest, _: Call
) -> TokenizeResponse | LlamaCppTokens:
    """POST /tokenize: a body with ``content`` is llama.cpp's, and so is the answer."""
    if asked.content is None:
        return await service.tokenize(asked)
    fields = {
        "model": asked.model,
        "prompt": asked.content,
        "add_special_tokens": asked.add_special is True,
    }
    ids = (await service.tokenize(request_of(TokenizeRequest, fields))).tokens
    if not asked.with_pieces:
        return LlamaCppTokens(fields={"tokens": ids})
    bytes_of = service.engine.tokenizer.token_bytes
    return LlamaCppTokens(fields={"tokens": [{"id": i, "piece": _piece(bytes_of(i))} for i in ids]})


def _piece(data: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are no text by themselves."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return [*data]
