"""Requests and results: the data that crosses the engine's face."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class RequestFault(str):
    """Why a request ended with an error that lies in what it asked for, not in the engine."""

    __slots__ = ()


class MemoryFault(str):
    """Why a request ended for want of memory; the same request may succeed later."""

    __slots__ = ()


class Sampled(NamedTuple):
    """A token that was drawn, from the runner to whoever asked.

    Attributes:
        token: its id.
        logprob: natural log of its probability; None when nobody asked.
        top: the likeliest tokens and their log-probabilities, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"token": self.token, "logprob": self.logprob, "top": [list(t) for t in self.top]}


class PromptReader(Protocol):
    """Who looks at what the model computes of a prompt (``engine/run/readers.py``).

    Attributes:
        hidden: normed hidden states [T, D] are wanted in place of logits [T, V].
        begin: the first position of interest; what is before it may come from the prefix cache.
    """

    @property
    def begin(self) -> int:
        """The first position of interest."""
        ...

    @property
    def hidden(self) -> bool:
        """Whether hidden states are read in place of logits."""
        ...

    def read(self, start: int, rows_TC: Tensor) -> None:
        """Take in logits [T, V] or hidden states [T, D] of the positions from ``start``.

        Positions come in order; after a preemption they come again.
        """
        ...


@dataclass(slots=True)
class Request:
    """One prompt on its way through the engine.

    Attributes:
        id: unique among the live requests.
        prompt: token ids, at least one.
        params: sampling parameters; ``seed`` is already drawn, ``max_tokens`` resolved.
        priority: smaller runs earlier; equal ones first come, first served.
        cache_salt: separates prefix-cache entries of different tenants.
        draw: what drawing its tokens carries from one to the next.
        reader: reads what is computed of each position of the prompt, or None.
        first: the request whose prompt this one shares: it waits until that is computed.
        index: which of the choices for its prompt.
    """

    id: str
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    draw: Any = None
    reader: PromptReader | None = None
    first: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New tokens of one request, or its end.

    Attributes:
        request_id: which request.
        tokens: what was drawn in this step (several where a grammar leaves no choice).
        finish: set on the last event.
        error: text for ``FinishReason.ERROR``.
    """

    request_id: str
    tokens: tuple[Sampled, ...] = ()
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
        error: text when ``finish_reason`` is ``error``; a ``RequestFault`` where the request itself
            is to blame, a ``MemoryFault`` where memory ran out.
        index: which of the choices for its prompt.
        logprobs: what was drawn, token by token, where ``logprobs`` was asked for.
        text_offsets: where in the text each token's characters begin, where ``logprobs`` was.
        prompt_logprobs: the prompt's tokens, None first, where ``prompt_logprobs`` was asked for.
        choices: all answers where ``n`` is more than 1, the best first; this one stands for the
            first, and its ``usage`` counts them all, the prompt once.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings = field(default_factory=Timings)
    seed: int | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    index: int = 0
    logprobs: tuple[Sampled, ...] | None = None
    text_offsets: tuple[int, ...] | None = None
    prompt_logprobs: tuple[Sampled | None, ...] | None = None
    choices: tuple[Completion, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``finish_reason`` is its string value.

        What was not asked for is left out: log-probabilities, offsets, further choices.
        """
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        out["finish_reason"] = self.finish_reason.value
        out["usage"] = {**asdict(self.usage), "total_tokens": self.usage.total_tokens}
        out["timings"] = asdict(self.timings)
        for name in ("logprobs", "prompt_logprobs"):
            if out[name] is not None:
                out[name] = [item and item.to_dict() for item in out[name]]
        out["choices"] = [choice.to_dict() for choice in self.choices]
        for name in ("logprobs", "text_offsets", "prompt_logprobs", "choices"):
            if not out[name]:
                del out[name]
        return out


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer.

    Attributes:
        request_id: which request.
        text: new characters; may be empty (a character or stop string is still open).
        token_ids: new token ids.
        completion: the whole answer, or all choices, on the last delta only.
        index: which of the choices.
        logprobs: of the new tokens, where ``logprobs`` was asked for.
        text_offsets: where in the text the characters of each of them begin.
        finish: why this choice ended, on its last delta.
        stop_reason: the stop string or stop token id that ended it, or None.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None
    index: int = 0
    logprobs: tuple[Sampled, ...] = ()
    text_offsets: tuple[int, ...] = ()
    finish: FinishReason | None = None
    stop_reason: str | int | None = None


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
