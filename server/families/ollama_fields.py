"""The bodies of Ollama's API, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, model_validator

from halfbyte.errors import RequestError

from ..request_model import RequestModel, given
from ..schema import MAX_MESSAGES, PROMPT_SCHEMA, within
from ..tool_fields import MAX_CALLS
from ..unsupported import refuse_unsupported

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

# Ollama's own defaults where they differ from OpenAI's.
_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}


_SAME = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "presence_penalty"),
    *("frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta"),
)


def _describe_neutral(schema: Any) -> None:
    """Say what the options may be that are taken for being neutral, and that there are no more."""
    neutral = {name: {"enum": [*values]} for name, values in _NEUTRAL.items()}
    schema.update(properties={**schema["properties"], **neutral}, additionalProperties=False)


_EVERY_OPTION = ConfigDict(json_schema_extra=_describe_neutral)


class OllamaOptions(RequestModel):
    """Ollama's ``options``; ranges are those of the same fields of OpenAI's API."""

    model_config = _EVERY_OPTION
    temperature: Annotated[float, within("temperature")] | None = None
    top_k: Annotated[int, within("top_k")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    min_p: Annotated[float, within("min_p")] | None = None
    typical_p: Annotated[float, within("typical_p")] | None = None
    seed: Annotated[int, within("seed")] | None = None
    stop: str | list[str] | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    repeat_penalty: Annotated[float, within("repetition_penalty")] | None = None
    repeat_last_n: int | None = None
    presence_penalty: Annotated[float, within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, within("frequency_penalty")] | None = None
    mirostat: Annotated[int, within("mirostat")] | None = None
    mirostat_tau: Annotated[float, within("mirostat_tau")] | None = None
    mirostat_eta: Annotated[float, within("mirostat_eta")] | None = None
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
        fields = {n: v for n in _SAME if (v := getattr(self, n)) is not None}
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
    think: bool | Literal["low", "medium", "high"] | None = None

    def load_only(self) -> None:
        """Raise a RequestError where an empty request asks for the model to be unloaded."""
        if self.keep_alive is not None and str(self.keep_alive).strip("0smh.") in ("", "-"):
            raise RequestError(
                "keep_alive is 0, which unloads the model, but this server keeps it",
                param="keep_alive",
                code="unsupported_value",
                hint="stop the server to free its memory",
            )

    def response_format(self) -> dict[str, Any] | None:
        """The field of that name of OpenAI's API."""
        if isinstance(self.format, dict):
            schema = {"name": "format", "schema": self.format}
            return {"type": "json_schema", "json_schema": schema}
        return {"type": "json_object"} if self.format else None

    def thought(self) -> dict[str, Any]:
        """What ``think`` is as fields of a chat completion."""
        if self.think is None:
            return {}
        if self.think is True:
            return {"chat_template_kwargs": {"enable_thinking": True}}
        return {"reasoning_effort": self.think or "none"}


class OllamaFunction(RequestModel):
    """What a call called; the arguments are an object."""

    name: str
    arguments: dict[str, Any] | None = None


class OllamaCall(RequestModel):
    """A call in a message of the assistant."""

    id: Annotated[str, Field(max_length=256)] | None = None
    function: OllamaFunction


class OllamaMessage(RequestModel):
    """One message of a conversation."""

    not_honoured: ClassVar[Any] = {"images": _EMPTY}
    prefix = "messages."
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_CALLS)] | None = None
    tool_name: str | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None


class OllamaChatRequest(_OllamaGeneration):
    """Body of POST /api/chat."""

    not_honoured: ClassVar[Any] = {
        "logprobs": _OFF,
        "top_logprobs": (None, 0),
        "shift": _OFF,
        "truncate": _OFF,
    }
    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES)] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(_OllamaGeneration):
    """Body of POST /api/generate."""

    not_honoured: ClassVar[Any] = {
        **OllamaChatRequest.not_honoured,
        "tools": _EMPTY,
        "images": _EMPTY,
        "template": (None, ""),
        "context": _EMPTY,
    }
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None


class OllamaEmbedRequest(_OllamaRequest):
    """Body of POST /api/embed; a text that does not fit is an error, whatever ``truncate`` is."""

    not_honoured: ClassVar[Any] = {"dimensions": (None, 0)}
    input: Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]
    truncate: bool | None = None


class OllamaShowRequest(RequestModel):
    """Body of POST /api/show."""

    not_honoured: ClassVar[Any] = {
        "system": (None, ""),
        "template": (None, ""),
        "options": _EMPTY,
    }
    model_config = ConfigDict(json_schema_extra={"anyOf": [given("model"), given("name")]})
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None

    @property
    def wanted_model(self) -> str | None:
        """The model, by either field."""
        return self.model or self.name
