"""Requests of the OpenAI API as pydantic models; `responses` has what goes out.

Requests are strict: no boolean passes for a number, no string for an integer, no NaN. Every
optional field may be null, which means its default. Unknown fields are ignored, and the known
ones that are not honoured are refused by `unsupported`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError

from halfbyte.errors import RequestError

from ..engine.param_table import INT31, MAX_CHOICES, MAX_STOP_LENGTH, MAX_TOP_LOGPROBS, Param
from ..engine.params import SamplingParams, table
from .grammars import wanted_grammar
from .request_model import RequestModel, given
from .tool_fields import EarlierCalls, ToolChoice, Tools
from .unsupported import CHAT, COMPLETION, EMBEDDING, STREAM_OPTIONS, STRUCTURED

MAX_PROMPTS = 128
MAX_MESSAGES = 2048
MAX_PARTS = 1024
DEFAULT_COMPLETION_TOKENS = 16
# Values of a body, counted roughly by their separators. Making Python objects of millions of
# them would hold up every other request, as no thread can run beside it.
MAX_VALUES = 1 << 18

PromptCut = Annotated[int, Field(ge=-1, le=INT31)]
"""So many tokens from the end of a prompt are kept; -1: as many as fit."""

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
TokenId = Annotated[int, Field(ge=0, le=INT31)]


def within(name: str) -> Any:
    """The range of a sampling field, which is that of the table."""
    return Field(ge=table()[name].low, le=table()[name].high)


def _field_type(param: Param) -> Any:
    """How a sampling field is written in a body."""
    bounds = Field(ge=param.low, le=param.high)
    match param.kind:
        case "number":
            return Annotated[float, bounds]
        case "whole":
            return Annotated[int, bounds]
        case "switch":
            return bool
        case "name":
            return Literal[param.names]
        case "texts":
            text = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
            return str | Annotated[list[text], Field(max_length=param.most)]
        case "ids":
            return Annotated[list[TokenId], Field(max_length=param.most)]
        case "biases":
            # JSON has no keys but texts; they are looked at with the other parameters.
            return Annotated[dict[str, float], Field(max_length=param.most)]
        case "object":
            raise AssertionError("objects of the library do not come in a body")


_MAX_TOKENS = within("max_tokens")
_SAMPLING = {name: param for name, param in table().items() if param.http}


def _check_prompt(value: Any) -> Any:
    """Accept the four shapes of a prompt; written out because a union's errors are unreadable."""
    if isinstance(value, str) or _is_ids(value):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "expected a string or a list")
    if not 0 < len(value) <= MAX_PROMPTS:
        raise PydanticCustomError(
            "prompt",
            "a list of prompts must have 1 to {most} entries, this one has {found}",
            {"most": MAX_PROMPTS, "found": len(value)},
        )
    if not (all(isinstance(v, str) for v in value) or all(_is_ids(v) for v in value)):
        raise PydanticCustomError(
            "prompt",
            "expected a string, a list of strings, a list of token ids, or a list of non-empty "
            "lists of token ids",
        )
    return value


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(v) is int and 0 <= v <= INT31 for v in value)
    )


_ID_SCHEMA = {"type": "integer", "minimum": 0, "maximum": INT31}
_IDS_SCHEMA = {"type": "array", "items": _ID_SCHEMA, "minItems": 1}
PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "maxItems": MAX_PROMPTS, "minItems": 1},
        _IDS_SCHEMA,
        {"type": "array", "items": _IDS_SCHEMA, "maxItems": MAX_PROMPTS, "minItems": 1},
    ]
}
PromptField = Annotated[Any, BeforeValidator(_check_prompt), WithJsonSchema(PROMPT_SCHEMA)]
"""One text, or token ids, or several of one kind."""


class JsonSchemaFormat(RequestModel):
    """The schema of a ``response_format``."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """What form an answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(RequestModel):
    """vLLM's field of that name: one of these."""

    not_honoured = STRUCTURED
    prefix: ClassVar[str] = "structured_outputs."
    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(RequestModel):
    """What a stream contains besides the text."""

    not_honoured = STREAM_OPTIONS
    prefix = "stream_options."
    include_usage: bool | None = None


if TYPE_CHECKING:
    _Sampling = RequestModel
else:
    _Sampling = create_model(
        "_Sampling",
        __base__=RequestModel,
        **{name: (_field_type(param) | None, None) for name, param in _SAMPLING.items()},
    )


class _Generation(_Sampling):
    """Fields that completions and chat share: those of the table of sampling fields, and these."""

    model: str | None = None
    max_tokens: Annotated[int, _MAX_TOKENS] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: PromptCut | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    priority: Annotated[int, Field(ge=-INT31, le=INT31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is only allowed when stream is true", param="stream_options"
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _rated(self) -> dict[str, Any]:
        """Sampling fields that the endpoint has in a form of its own."""
        return {}

    def sampling(self, max_tokens: int | None) -> SamplingParams:
        """Sampling parameters with the API's defaults.

        Args:
            max_tokens: limit already resolved; None is up to the context length.

        Raises:
            RequestError: values that do not go together.
        """
        given = {name: getattr(self, name) for name in _SAMPLING if name != "max_tokens"}
        given |= {"n": self.n, "prompt_logprobs": self.prompt_logprobs}
        given |= {"grammar": wanted_grammar(self), **self._rated()}
        chosen = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(max_tokens=max_tokens, **chosen)


def _prompts(given: Any) -> list[str | list[int]]:
    """One prompt or many -> many."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


class CompletionRequest(_Generation):
    """Body of POST /v1/completions."""

    not_honoured = COMPLETION
    prompt: PromptField
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _known_while_streaming(self) -> Any:
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise RequestError(
                f"best_of is {self.best_of}: the best answers are known at the end, so they "
                "cannot be streamed",
                param="best_of",
                code="unsupported_value",
            )
        for name in ("echo", "prompt_logprobs"):
            rated = self.logprobs is not None or name == "prompt_logprobs"
            if self.stream and getattr(self, name) not in (None, False) and rated:
                raise RequestError(
                    f"{name} is {str(getattr(self, name)).lower()}: log-probabilities of the "
                    "prompt are not streamed",
                    param=name,
                    code="unsupported_value",
                    hint="leave out stream, or the log-probabilities",
                )
        return self

    @model_validator(mode="after")
    def _filled_in_alone(self) -> Any:
        if self.suffix is None or self.suffix == "":
            return self
        if not all(isinstance(prompt, str) for prompt in self.prompts()):
            raise RequestError("suffix is given, but the prompt is no text", param="suffix")
        if self.echo:
            raise RequestError(
                "echo is true beside suffix, between which and the prompt the answer stands",
                param="echo",
                code="unsupported_value",
            )
        return self

    def _rated(self) -> dict[str, Any]:
        echoed = self.prompt_logprobs
        if self.echo and self.logprobs is not None and echoed is None:
            echoed = self.logprobs
        return {"best_of": self.best_of, "logprobs": self.logprobs, "prompt_logprobs": echoed}

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many, each text or token ids."""
        return _prompts(self.prompt)

    @property
    def token_limit(self) -> int | None:
        """The limit that the client gave; None means OpenAI's default of 16."""
        return self.max_tokens


class ReadingRequest(RequestModel):
    """Base of bodies that ask for what the model makes of texts, without an answer."""

    model: str | None = None
    add_special_tokens: bool | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    priority: Annotated[int, Field(ge=-INT31, le=INT31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    user: str | None = None


class EmbeddingRequest(ReadingRequest):
    """Body of POST /v1/embeddings."""

    not_honoured = EMBEDDING
    input: PromptField
    truncate_prompt_tokens: PromptCut | None = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["mean", "last", "cls"] | None = None
    normalize: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """The texts, one or many, each text or token ids."""
        return _prompts(self.input)


class ContentPart(RequestModel):
    """One part of a message; only text parts are honoured."""

    type: str
    text: str | None = None


class ChatMessage(RequestModel):
    """One message of a conversation; ``reasoning_content`` is what the model thought, if kept."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = None
    name: str | None = None
    tool_calls: EarlierCalls | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


ChatMessages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class _Conversation(RequestModel):
    messages: ChatMessages
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatCompletionRequest(_Generation, _Conversation):
    """Body of POST /v1/chat/completions."""

    not_honoured = CHAT
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_completion_tokens: Annotated[int, _MAX_TOKENS] | None = None
    reasoning_effort: ReasoningEffort | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=INT31)] | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Any:
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                f"top_logprobs is {self.top_logprobs}, which needs logprobs to be true",
                param="top_logprobs",
            )
        if self.prompt_logprobs is not None:
            raise RequestError(
                f"prompt_logprobs is {self.prompt_logprobs}, which chats do not have here",
                param="prompt_logprobs",
                code="unsupported_value",
                hint="leave it out, or use /v1/completions",
            )
        return self

    def _rated(self) -> dict[str, Any]:
        return {"logprobs": (self.top_logprobs or 0) if self.logprobs else None}

    @property
    def token_limit(self) -> int | None:
        """The limit that the client gave; the newer field wins. None is up to the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenizeRequest(RequestModel):
    """Body of POST /tokenize: a prompt, a conversation, or llama.cpp's ``content``."""

    not_honoured: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "chat_template": CHAT["chat_template"],
        "parse_special": (None, True),
    }
    model_config = ConfigDict(
        json_schema_extra={"oneOf": [given("prompt"), given("messages"), given("content")]}
    )
    model: str | None = None
    prompt: str | None = None
    messages: ChatMessages | None = None
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    content: str | None = None
    add_special: bool | None = None
    with_pieces: bool | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> Any:
        given = [value for value in (self.prompt, self.messages, self.content) if value is not None]
        if len(given) != 1:
            raise RequestError("expected either prompt, messages or content", param="prompt")
        return self


class TemplateRequest(_Conversation):
    """Body of POST /apply-template."""

    not_honoured = TokenizeRequest.not_honoured
    model: str | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(RequestModel):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_VALUES)]


AnyRequest = TypeVar("AnyRequest", bound=RequestModel)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Read a JSON body as a request.

    Raises:
        RequestError: not JSON, too many values, a wrong type, a missing or refused field; names
            the field.
    """
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RequestError(
            f"The body has more than {MAX_VALUES} values (commas and opening brackets)",
            code="request_too_large",
        )
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error) from None


def refusal(error: ValidationError) -> RequestError:
    """What a client is told about values that do not fit a schema."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # The members of a union each report; the one that got furthest into the value knows best.
    depth = max(len(p["loc"]) for p in problems)
    problems = [p for p in problems if len(p["loc"]) == depth]
    problem = problems[0]
    where = [str(p) for p in problem["loc"] if _is_field(p)]
    if not where:
        message = problem["msg"] if problem["type"] == "json_invalid" else "expected a JSON object"
        return RequestError(f"The body is not usable: {message}", code="invalid_json")
    same = [p for p in problems if [str(x) for x in p["loc"] if _is_field(x)] == where]
    message = " or ".join(dict.fromkeys(p["msg"] for p in same))
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    param = ".".join(where)
    return RequestError(f"{param}: {message}", param=param, code=code)


def _is_field(part: str | int) -> bool:
    """Leave out the names that pydantic gives to the members of a union."""
    return isinstance(part, int) or (part.isidentifier() and part != "str")


def json_schemas(kinds: Iterable[type[RequestModel]]) -> dict[str, Any]:
    """JSON schemas of request bodies by name, for the OpenAPI document."""
    _, top = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    return top["$defs"]
