"""Requests, sampling parameters and results: the data that crosses the engine's face."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from halfbyte.errors import RequestError

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop. Checked on construction.

    Attributes:
        temperature: 0 is greedy; at most 100.
        top_k: keep the k likeliest tokens; 0 or -1 is off.
        top_p: keep the smallest set with at least this probability mass, in (0, 1].
        min_p: drop tokens below this share of the likeliest one's probability, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens that
            are in the prompt or the output; 1 is off (CTRL, Keskar et al. 2019).
        presence_penalty: subtracted once from logits of tokens in the output, in [-2, 2].
        frequency_penalty: subtracted per occurrence in the output, in [-2, 2].
        seed: key of the counter-based random numbers, 0 to 2**63 - 1; None draws one.
        max_tokens: most tokens to generate, at least 1; None means up to the context length.
        min_tokens: end-of-text and stop conditions are held off until this many tokens.
        stop: strings that end the text; they are not part of it. A tuple once checked.
        stop_token_ids: extra token ids that end the text.
        ignore_eos: go on after an end-of-text token.

    Raises:
        RequestError: a value is outside its range; ``param`` names the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 256
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, -1, 1 << 31)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, 0, (1 << 63) - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 1 << 31)
        _integer("min_tokens", self.min_tokens, 0, 1 << 31)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens {self.max_tokens}",
                param="min_tokens",
            )
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        object.__setattr__(self, "stop", stop)
        if len(stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop has {len(stop)} strings; at most {MAX_STOP_STRINGS} are allowed",
                param="stop",
            )
        for text in stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
                raise RequestError(
                    f"stop holds {text!r:.60}; expected strings of 1 to {MAX_STOP_LENGTH} "
                    "characters",
                    param="stop",
                )
        tokens = _items("stop_token_ids", self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", tokens)
        for token in tokens:
            _integer("stop_token_ids", token, 0, 1 << 31)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(
                f"ignore_eos is {self.ignore_eos!r:.60}; expected True or False",
                param="ignore_eos",
            )

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken and no random number is drawn."""
        return self.temperature == 0.0


def sampling_params(given: object, fields: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a call: ``given`` ones or the defaults, with ``fields`` replaced.

    Raises:
        RequestError: ``given`` is something else, or a field is unknown or out of its range.
    """
    params = SamplingParams() if given is None else given
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params is {params!r:.60}; expected SamplingParams", param="params")
    known = SamplingParams.__dataclass_fields__
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise RequestError(
                f"unknown sampling field {name!r:.60}",
                param=name,
                hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
            )
    return replace(params, **fields) if fields else params


@dataclass(slots=True)
class Request:
    """One prompt on its way through the engine.

    Attributes:
        id: unique among the live requests.
        prompt: token ids, at least one.
        params: sampling parameters; ``seed`` is already drawn, ``max_tokens`` resolved.
        priority: smaller runs earlier; equal ones first come, first served.
        cache_salt: separates prefix-cache entries of different tenants.
    """

    id: str
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New tokens of one request, or its end.

    Attributes:
        request_id: which request.
        tokens: ids sampled in this step (several when speculation accepts).
        finish: set on the last event.
        error: text for ``FinishReason.ERROR``.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens generated.
        cached_tokens: prompt tokens found in the prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went.

    Attributes:
        queue_s: seconds between submission and the first step that computed for it.
        ttft_s: seconds between submission and its first token.
        total_s: seconds between submission and its last token.
        prefill_tok_s: prompt tokens computed per second of prefill; 0 when unknown.
        decode_tok_s: tokens after the first, per second; 0 with fewer than two tokens.
    """

    queue_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    prefill_tok_s: float = 0.0
    decode_tok_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole answer to one prompt.

    Attributes:
        text: decoded answer, without the stop string and special tokens.
        token_ids: generated ids, the end-of-text id included when one was sampled.
        finish_reason: why it ended.
        usage: token counts.
        timings: seconds and tokens per second.
        seed: the seed used, so that a run can be repeated; None when greedy.
        stop_reason: the stop string or stop token id that ended it, or None.
        error: text when ``finish_reason`` is ``error``.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = field(default_factory=Timings)
    seed: int | None = None
    stop_reason: str | int | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``finish_reason`` is its string value."""
        out = asdict(self)
        out["finish_reason"] = self.finish_reason.value
        out["usage"]["total_tokens"] = self.usage.total_tokens
        return out


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer.

    Attributes:
        request_id: which request.
        text: new characters; may be empty (a character or stop string is still open).
        token_ids: new token ids.
        completion: the whole answer, on the last delta only.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Log-probabilities of a prompt's own tokens.

    Attributes:
        token_ids: the prompt, T tokens.
        logprobs: T natural-log probabilities; the first is None (nothing precedes it).
        top_ids: likeliest token at each position, None first, for greedy agreement.
        top_logprobs: their log-probabilities, None first.
    """

    token_ids: list[int]
    logprobs: list[float | None]
    top_ids: list[int | None]
    top_logprobs: list[float | None]

    @property
    def total(self) -> float:
        """Sum of the log-probabilities, in nats."""
        return sum(p for p in self.logprobs if p is not None)


def _items(name: str, value: object) -> tuple[Any, ...]:
    """A list or tuple as a tuple; refuse anything else."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise RequestError(f"{name} is {value!r:.60}; expected a list", param=name)


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse what is not a finite number in the range; booleans are not numbers here."""
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and not (open_low and value == low)
    ):
        return
    bracket = "(" if open_low else "["
    raise RequestError(
        f"{name} is {value!r:.60}; expected a number in {bracket}{low:g}, {high:g}]", param=name
    )


def _integer(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number in the range; booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(
            f"{name} is {value!r:.60}; expected a whole number from {low} to {high}", param=name
        )
