"""From token events to text: detokenizing, stop strings, timings, finished completions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..request import Completion, Delta, FinishReason, Request, Timings, TokenEvent, Usage
from ..text.detokenizer import Detokenizer
from ..text.stop_strings import StopForms
from ..text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Live:
    """Output side of one request; times are seconds of ``time.perf_counter``."""

    request: Request
    seed: int | None
    detokenizer: Detokenizer
    submitted: float
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    cached: int = 0
    tokens: list[int] = field(default_factory=list)


class OutputProcessor:
    """Turns the scheduler's events into :class:`Delta` objects.

    Args:
        tokenizer: decodes tokens.
        end_tokens: ids that end a text; they are counted but give no text.
    """

    def __init__(self, tokenizer: Tokenizer, end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._stop_forms = StopForms(tokenizer)
        self._live: dict[str, _Live] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    def live(self) -> list[str]:
        """Ids of the requests that have not ended."""
        return list(self._live)

    def add(self, request: Request, seed: int | None) -> None:
        """Begin to follow a request."""
        stop = request.params.stop
        matcher = self._stop_forms.matcher(stop) if stop else None
        detokenizer = Detokenizer(self._tokenizer, matcher)
        self._live[request.id] = _Live(request, seed, detokenizer, time.perf_counter())

    def started(self, request_id: str, cached: int) -> None:
        """Note the first step that computes for a request."""
        live = self._live[request_id]
        if not live.started:
            live.started, live.cached = time.perf_counter(), cached

    def process(self, event: TokenEvent) -> Delta | None:
        """A delta for one event; its ``completion`` is set when the request is over.

        A stop string found in the text ends the request here, before the scheduler knows: the
        caller tells it. Events of a request that has ended give None.
        """
        live = self._live.get(event.request_id)
        if live is None:
            return None
        now = time.perf_counter()
        text, stop, reason = "", None, event.finish
        taken = len(live.tokens)
        params = live.request.params
        for token in event.tokens:
            live.tokens.append(token)
            live.first = live.first or now
            live.last = now
            ends = token in params.stop_token_ids or (
                token in self._end_tokens and not params.ignore_eos
            )
            # Stop strings are looked for only in text that min_tokens no longer protects.
            check = len(live.tokens) > params.min_tokens
            if reason is FinishReason.STOP and ends and token == event.tokens[-1]:
                stop = token if token in params.stop_token_ids else None
                text += live.detokenizer.hide(token, check_stops=check)
            else:
                text += live.detokenizer.feed([token], check_stops=check)
            if live.detokenizer.stopped is not None:
                reason, stop = FinishReason.STOP, live.detokenizer.stopped
                break
        tokens = tuple(live.tokens[taken:])
        if reason is None:
            return Delta(event.request_id, text, tokens)
        if live.detokenizer.stopped is None:
            text += live.detokenizer.finish()
            if live.detokenizer.stopped and reason in (FinishReason.STOP, FinishReason.LENGTH):
                # It was held while a longer stop string was open.
                reason, stop = FinishReason.STOP, live.detokenizer.stopped
        del self._live[event.request_id]
        completion = self._completion(live, reason, stop, event.error)
        return Delta(event.request_id, text, tokens, completion)

    def _completion(
        self, live: _Live, reason: FinishReason, stop: str | int | None, error: str | None
    ) -> Completion:
        prompt, count = len(live.request.prompt), len(live.tokens)
        started, first = live.started or live.submitted, live.first or time.perf_counter()
        prefill, decode = first - started, live.last - first
        timings = Timings(
            queue_s=started - live.submitted,
            ttft_s=first - live.submitted,
            total_s=(live.last or first) - live.submitted,
            prefill_tok_s=(prompt - live.cached) / prefill if count and prefill > 0 else 0.0,
            decode_tok_s=(count - 1) / decode if count > 1 and decode > 0 else 0.0,
        )
        return Completion(
            text=live.detokenizer.text,
            token_ids=live.tokens,
            finish_reason=reason,
            usage=Usage(prompt, count, live.cached),
            timings=timings,
            seed=live.seed,
            stop_reason=stop,
            error=error,
        )
