"""From token events to text: detokenizing, stop strings, timings, finished completions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..request import (
    Completion,
    Delta,
    FinishReason,
    Request,
    Sampled,
    Timings,
    TokenEvent,
    Usage,
)
from ..run.readers import LogprobReader
from ..text.detokenizer import Detokenizer
from ..text.stop_strings import StopForms
from ..text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Live:
    """Output side of one choice; times are seconds of ``time.perf_counter``."""

    request: Request
    group: _Group
    detokenizer: Detokenizer
    first: float = 0.0
    last: float = 0.0
    tokens: list[int] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """The choices for one prompt."""

    name: str
    size: int
    submitted: float
    started: float = 0.0
    cached: int = 0
    done: list[tuple[float, Completion]] = field(default_factory=list)


class OutputProcessor:
    """Turns the scheduler's events into :class:`Delta` objects.

    The choices for one prompt are requests of the scheduler; outside they are one, under the id
    of the first.

    Args:
        tokenizer: decodes tokens.
        end_tokens: ids that end a text; they are counted but give no text.
    """

    def __init__(self, tokenizer: Tokenizer, end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._stop_forms = StopForms(tokenizer)
        self._live: dict[str, _Live] = {}
        self._groups: dict[str, _Group] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    def live(self) -> list[str]:
        """Ids of the requests that have not ended, a group under that of its first."""
        return list(self._groups)

    def members(self, request_id: str) -> list[str]:
        """The scheduler's ids of the live choices of a request."""
        if request_id not in self._groups:
            return []
        group = self._groups[request_id]
        return [name for name, live in self._live.items() if live.group is group]

    def add(self, requests: Sequence[Request]) -> None:
        """Begin to follow the choices for a prompt."""
        group = _Group(requests[0].id, len(requests), time.perf_counter())
        self._groups[group.name] = group
        for request in requests:
            stop = request.params.stop
            matcher = self._stop_forms.matcher(stop) if stop else None
            params = request.params
            every = self._tokenizer.special_ids
            shown = params.shown_special_ids if params.skip_special_tokens else every
            detokenizer = Detokenizer(
                self._tokenizer, matcher, shown, keep_stop=params.include_stop_str_in_output
            )
            self._live[request.id] = _Live(request, group, detokenizer)

    def started(self, request_id: str, cached: int) -> None:
        """Note the first step that computes for a request."""
        group = self._live[request_id].group
        if not group.started:
            group.started, group.cached = time.perf_counter(), cached

    def process(self, event: TokenEvent) -> Delta | None:
        """A delta for one event; its ``completion`` is set when the whole request is over.

        A stop string found in the text ends a choice here, before the scheduler knows: the
        caller tells it. Events of a choice that has ended give None.
        """
        live = self._live.get(event.request_id)
        if live is None:
            return None
        now = time.perf_counter()
        text, stop, reason = "", None, event.finish
        taken = len(live.tokens)
        params, group = live.request.params, live.group
        for sampled in event.tokens:
            token = sampled.token
            live.tokens.append(token)
            if params.logprobs is not None or params.choices > params.n:
                live.sampled.append(sampled)
                live.offsets.append(live.detokenizer.decoded)
            live.first = live.first or now
            live.last = now
            ends = token in params.stop_token_ids or (
                token in self._end_tokens and not params.ignore_eos
            )
            # Stop strings are looked for only in text that min_tokens no longer protects.
            check = len(live.tokens) > params.min_tokens
            if reason is FinishReason.STOP and ends and sampled is event.tokens[-1]:
                stop = token if token in params.stop_token_ids else None
                shown = params.include_stop_str_in_output
                take = live.detokenizer.feed_one if shown else live.detokenizer.hide
                text += take(token, check_stops=check)
            else:
                text += live.detokenizer.feed([token], check_stops=check)
            if live.detokenizer.stopped is not None:
                reason, stop = FinishReason.STOP, live.detokenizer.stopped
                break
        if reason is not None and live.detokenizer.stopped is None:
            text += live.detokenizer.finish()
            if live.detokenizer.stopped and reason in (FinishReason.STOP, FinishReason.LENGTH):
                # It was held while a longer stop string was open.
                reason, stop = FinishReason.STOP, live.detokenizer.stopped
        whole = None
        if reason is not None:
            del self._live[event.request_id]
            whole = self._ended(live, self._completion(live, reason, stop, event.error))
        shown = params.logprobs is not None
        return Delta(
            group.name,
            text,
            tuple(live.tokens[taken:]),
            whole,
            live.request.index,
            tuple(live.sampled[taken:]) if shown else (),
            tuple(live.offsets[taken:]) if shown else (),
            reason,
            stop,
        )

    def _ended(self, live: _Live, completion: Completion) -> Completion | None:
        """A choice has ended: the completion of the whole request when it was the last one."""
        group, params = live.group, live.request.params
        # One that failed, or has no token, is the best of none.
        mean = -math.inf
        if live.tokens and completion.error is None:
            mean = sum(s.logprob or 0.0 for s in live.sampled) / len(live.tokens)
        group.done.append((mean, completion))
        if len(group.done) < group.size:
            return None
        del self._groups[group.name]
        if group.size == 1:
            return completion
        return _joined(group.done, params.n, best=params.choices > params.n)

    def _completion(
        self, live: _Live, reason: FinishReason, stop: str | int | None, error: str | None
    ) -> Completion:
        group, params = live.group, live.request.params
        prompt, count = len(live.request.prompt), len(live.tokens)
        started, first = group.started or group.submitted, live.first or time.perf_counter()
        prefill, decode = first - started, live.last - first
        timings = Timings(
            queue_s=started - group.submitted,
            ttft_s=first - group.submitted,
            total_s=(live.last or first) - group.submitted,
            prefill_tok_s=(prompt - group.cached) / prefill if count and prefill > 0 else 0.0,
            decode_tok_s=(count - 1) / decode if count > 1 and decode > 0 else 0.0,
        )
        text, reader = live.detokenizer.text, live.request.reader
        rated = params.logprobs is not None
        return Completion(
            text=text,
            token_ids=live.tokens,
            finish_reason=reason,
            usage=Usage(prompt, count, group.cached),
            timings=timings,
            seed=None if params.greedy else params.seed,
            stop_reason=stop,
            error=error,
            index=live.request.index,
            logprobs=tuple(live.sampled) if rated else None,
            # A stop string is cut off, and its tokens with it.
            text_offsets=tuple(min(o, len(text)) for o in live.offsets) if rated else None,
            # Of a prompt that was not computed to its end nothing is told.
            prompt_logprobs=reader.prompt()
            if isinstance(reader, LogprobReader) and reader.whole
            else None,
        )


def _joined(done: list[tuple[float, Completion]], n: int, *, best: bool) -> Completion:
    """One completion for several choices, with their mean log-probabilities; the best ``n``."""
    ranked = [c for _, c in sorted(done, key=lambda d: (-d[0] if best else 0.0, d[1].index))]
    chosen = [replace(c, index=i) if best else c for i, c in enumerate(ranked[:n])]
    first = chosen[0]
    usage = replace(first.usage, completion_tokens=sum(c.usage.completion_tokens for _, c in done))
    prompt = next((c.prompt_logprobs for _, c in done if c.prompt_logprobs is not None), None)
    choices = tuple(chosen) if n > 1 else ()
    return replace(first, usage=usage, choices=choices, prompt_logprobs=prompt)
