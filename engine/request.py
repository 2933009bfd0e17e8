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

INT31 = (1 << 31) - 1
INT63 = (1 << 63) - 1
LIMITS: dict[str, tuple[float, float] | tuple[int, int]] = {
    "temperature": (0.0, 100.0),
    "top_k": (-1, INT31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (-INT63 - 1, INT63),
    "max_tokens": (1, INT31),
    "min_tokens": (0, INT31),
    "stop_token_ids": (0, INT31),
}
"""Least and largest value of each field: what float32 arithmetic on logits bears, host and device.

Fields with whole numbers here take nothing else. A logit is at most 1e34 in size when a penalty of
100, or of 1 / 100, still leaves it finite.
"""

LEAST_TEMPERATURE = 1e-6
"""Below it only exact ties of float32 logits are told apart from the likeliest token: greedy."""


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
        temperature: 0 is greedy, and so is anything below 1e-6; at most 100.
        top_k: keep the k likeliest tokens; 0 or -1 is off.
        top_p: keep the smallest set with at least this probability mass, in [0, 1]; 0 is greedy.
        min_p: drop tokens below this share of the likeliest one's probability, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens that
            are in the prompt or the output, in [0.01, 100]; 1 is off (CTRL, Keskar et al. 2019).
        presence_penalty: subtracted once from logits of tokens in the output, in [-2, 2].
        frequency_penalty: subtracted per occurrence in the output, in [-2, 2].
        seed: key of the counter-based random numbers, a signed 64-bit number; None or -1 draws one.
        max_tokens: most tokens to generate, at least 1; None means up to the context length.
        min_tokens: so many tokens are part of the answer: no end-of-text or stop token is drawn
            for them, and stop strings are not looked for in their text. Only where nothing else
            could be drawn is one drawn all the same, and ends the answer.
        stop: strings that end the text; they are not part of it. A tuple once checked.
        stop_token_ids: extra token ids that end the text.
        ignore_eos: an end-of-text token is drawn like any other, and does not end the answer.

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
        for name in LIMITS:
            value = getattr(self, name)
            left_out = value is None and name in ("seed", "max_tokens")
            if name != "stop_token_ids" and not left_out:
                _check(name, value)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
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
            _check("stop_token_ids", token)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(
                f"ignore_eos is {self.ignore_eos!r:.60}; expected True or False",
                param="ignore_eos",
            )

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken and no random number is drawn."""
        return self.temperature < LEAST_TEMPERATURE or self.top_p == 0.0

    @property
    def heat(self) -> float:
        """The temperature to draw with: 0.0 when greedy."""
        return 0.0 if self.greedy else self.temperature


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


def _check(name: str, value: object) -> None:
    """Refuse what is not a number in the range; booleans are not numbers here."""
    low, high = LIMITS[name]
    whole = isinstance(low, int)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        wanted = (
            f"a whole number from {low} to {high}" if whole else f"a number in [{low:g}, {high:g}]"
        )
        raise RequestError(f"{name} is {_shown(value)}; expected {wanted}", param=name)


def _shown(value: object) -> str:
    """A value for an error; Python refuses to write out integers of more than 4300 digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    return f"{value!r:.60}"
